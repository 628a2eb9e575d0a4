//! HBONE: TCP connections as CONNECT streams of HTTP/2 over mutual TLS, as Istio's ambient mesh speaks it.
//!
//! Owns the wire between two agents: opening and pooling connections, serving them, and the [`Tunnel`]s on them. Does
//! not own where to connect to, who may, or what happens with the bytes; it is given a function that dials, and knows
//! nothing of namespaces or policy.
//!
//! ```text
//! Pool::connect(key, svid, dial, CONNECT) ──► Tunnel ◄── Incoming::accept ◄── ServerConnection::next ◄── accept(TCP)
//!                                              │
//!                            split ──► TunnelSender, TunnelReceiver
//! ```
//!
//! # Memory
//! Each tunnel may have [`STREAM_WINDOW`] bytes underway that the receiving application has not taken, and
//! [`SEND_BUFFER`] that the network has not: 1.5 MiB a tunnel and direction at the most, whatever the applications do.
//! The window of the connection is that of all its tunnels together, so that one whose application does not read never
//! holds up its neighbours. A peer that means harm can fill them all: 200 MiB on a connection to the server
//! ([`MAX_STREAMS`]), 100 MiB on one of the client's ([`STREAMS_PER_CONNECTION`]); frames too small to be worth their
//! bookkeeping are bounded by h2 (half the window of the connection), which ends the connection beyond that.

mod client;
mod dialect;
mod error;
mod handshakes;
mod keepalive;
mod link;
mod pool;
mod request;
mod server;
mod socket;
#[cfg(test)]
mod tests;
mod tls;
mod tunnel;

pub use client::FirstBytes;
pub use error::{ConnectError, Loss, ServeError, Stage, TunnelError};
pub use handshakes::Handshakes;
pub use pool::{Pool, PoolConfig, PoolKey, PoolStats};
pub use request::ConnectRequest;
pub use server::{HANDSHAKE, Incoming, MAX_STREAMS, ServerConnection, accept};
pub use tunnel::{Finished, Tunnel, TunnelReceiver, TunnelSender};

/// Bytes that a peer may send on a tunnel before the application takes them: the most that one tunnel can carry in a
/// round trip, so 8 Gbit/s at 1 ms. Large against the socket buffers at either end, small enough to be multiplied.
pub const STREAM_WINDOW: u32 = 1 << 20;

/// Bytes of a tunnel that may wait for the socket.
pub const SEND_BUFFER: usize = 512 * 1024;

/// Tunnels on a connection before the pool opens another (hbone.md: what ztunnel does).
pub const STREAMS_PER_CONNECTION: u32 = 100;

/// The largest DATA frame that is accepted (hbone.md).
const MAX_FRAME: u32 = 1 << 20;

/// Streams of a connection whose reset by this side is remembered for a second, so that frames that were underway are
/// ignored. h2 remembers 50 otherwise, answers further frames with a reset each, and ends the connection after 1024
/// of those in its life: applications that reset downloads are no attack.
const RECENT_RESETS: usize = 4096;
