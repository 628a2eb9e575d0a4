//! Agents whose certificates another process gives out, and what becomes of them when it does not.

mod cluster;
mod server;
mod world;
