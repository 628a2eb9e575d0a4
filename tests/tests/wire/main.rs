//! What crosses the wire between two nodes, whom an agent talks to, and which addresses the two applications see.
//!
//! Real agents on both nodes; where one end is to be wrong, OpenSSL's certificates and a peer that is not our agent.

mod addresses;
mod certificates;
mod connects;
mod secrecy;
mod world;
