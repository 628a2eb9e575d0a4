//! How a socket toward an application ends.

use std::{io, os::fd::AsFd, time::Duration};

use socket2::SockRef;

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
