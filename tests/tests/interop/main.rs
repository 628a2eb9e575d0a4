//! Our agent and an HBONE peer that shares no code with it, in both directions: what a node with ztunnel would meet.
//!
//! The peer is Python's ssl and hyper-h2 (`tests/peers`), in a pod of a node without agent, at the pod's own address,
//! with certificates that OpenSSL signed with the mesh's intermediate.

mod client;
mod ends;
mod inbound;
mod keepalive;
mod outbound;
mod server;
