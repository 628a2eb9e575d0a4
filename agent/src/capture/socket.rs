//! How a socket toward an application ends.

use std::{io, os::fd::AsFd, time::Duration};

use socket2::SockRef;

use super::sys;

/// Makes the close of a socket a reset (`SO_LINGER` 0), also the close that the kernel does when the process is killed.
///
/// A killed process's sockets otherwise send a FIN, and the peer takes a cut transfer for a whole one. What the outbound
/// listeners accept and what [`Dialler`](super::Dialler) connects to applications has it already.
///
/// # Errors
/// Where the descriptor is no socket.
pub fn reset_on_close(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}

/// Makes the close of a socket an orderly one again: to be called when both directions have ended well, and before the
/// socket is dropped. Without it what the peer has not yet acknowledged may be lost.
///
/// # Errors
/// Where the descriptor is no socket.
pub fn end_cleanly(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(None)
}

/// Whether the peer of a TCP socket has acknowledged all that was written to it, the end included.
///
/// # Errors
/// Where the descriptor is no TCP socket.
pub fn is_delivered(socket: &impl AsFd) -> io::Result<bool> {
    Ok(sys::unacknowledged(socket)? == 0)
}
