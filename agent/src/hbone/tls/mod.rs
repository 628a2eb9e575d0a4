//! TLS as tunnels run over it: few system calls, and no memory while nothing is underway.
//!
//! Owns a stream over rustls' unbuffered connections ([`rustls::unbuffered`]): the handshake of both ends, the records
//! of what is read and written, alerts, and the end of either direction. Does not own who may speak to whom: that is in
//! the configurations, which `identity` makes; nor cryptography, which is rustls' alone.
//!
//! ```text
//! socket ──► Buffer (64 KiB a read) ──► rustls decrypts it in place ──► h2's buffer
//! socket ◄── Buffer (one write) ◄────── rustls encrypts into it ◄────── h2's frame: head, payload
//! ```
//!
//! # Memory
//! A [`buffer::Buffer`] is of the thread's ([`buffer::SIZE`] bytes each, a few of them kept) and with a stream only while
//! there are bytes in it: an incomplete record, what the caller had no room for, what the socket did not take. So a
//! stream holds three at the most, whatever the peer does, and an idle one none. While the socket does not take what was
//! written, nothing more is taken from the caller, and while the caller does not take what was read, nothing more is
//! read.
//!
//! # Turns
//! Who has read 64 KiB lets the other tasks of its thread run before it reads on, also where there is more to be read: what
//! was read is then passed on while the processor's cache has it, and the peer's window opens again meanwhile.
//!
//! # Records
//! One record holds 16 KiB (RFC 8446 §5.1). What one write hands over is cut so that what fits into one record becomes
//! one, and a long slice begins a record of its own: h2 writes the head of a frame and its payload as two slices, reads
//! the head, and then asks for exactly the payload. So the peer's h2 gets whole records where it wants them, and neither
//! end copies a payload only to put nine bytes before it.

mod buffer;
mod handshake;
mod session;
mod step;
mod stream;
#[cfg(test)]
mod tests;

pub(super) use handshake::{accept, connect};
pub(super) use stream::TlsStream;
