//! Two enrolled pods of one node: the agent carries their connections from socket to socket, by the same certificates and
//! policies as a tunnel, and reports both ends. Each test shows that it was no tunnel.

mod carried;
mod ended;
mod native;
mod refused;
mod world;
