//! The agent over a real API server: what it takes from there, what it says there, and what it does without.

mod definitions;
mod loss;
mod rights;
mod status;
mod traffic;
mod world;
