//! The ways in which a program can connect.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
};

use io_uring::{IoUring, opcode, types};
use nix::{
    errno::Errno,
    sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage},
};

/// Connects a new socket of the calling thread's namespace.
pub(crate) type Connect = fn(SocketAddr) -> io::Result<TcpStream>;

/// Every way, by name.
pub(crate) const WAYS: [(&str, Connect); 4] = [
    ("blocking", TcpStream::connect::<SocketAddr>),
    ("non-blocking, asked again and again", polled),
    ("non-blocking, by epoll", by_epoll),
    ("io_uring", by_uring),
];

/// Connects from an address.
pub(crate) fn bound(from: IpAddr, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = new_socket(target, SockFlag::empty())?;
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
    socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(target))?;
    Ok(socket.into())
}

/// Connects a socket that is connected already.
pub(crate) fn again(stream: &TcpStream, target: SocketAddr) -> io::Result<()> {
    Ok(socket::connect(stream.as_raw_fd(), &SockaddrStorage::from(target))?)
}

/// Calls connect until it says that the socket is connected (connect(2): EINPROGRESS, EALREADY, then EISCONN or 0).
fn polled(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = new_socket(target, SockFlag::SOCK_NONBLOCK)?;
    let connect = || socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(target));
    assert_eq!(connect(), Err(Errno::EINPROGRESS));
    lab::eventually(lab::PATIENCE, || match connect() {
        Ok(()) | Err(Errno::EISCONN) => Some(Ok(())),
        Err(Errno::EALREADY | Errno::EINPROGRESS) => None,
        Err(error) => Some(Err(error)),
    })?;
    into_blocking(socket)
}

/// As every asynchronous runtime does it: tokio's.
fn by_epoll(target: SocketAddr) -> io::Result<TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stream = runtime.block_on(tokio::net::TcpStream::connect(target))?.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Fails, and does not skip, where the kernel has io_uring switched off (`kernel.io_uring_disabled`).
fn by_uring(target: SocketAddr) -> io::Result<TcpStream> {
    let socket = new_socket(target, SockFlag::empty())?;
    let address = SockaddrStorage::from(target);
    let mut ring = IoUring::new(2)?;
    let entry = opcode::Connect::new(types::Fd(socket.as_raw_fd()), address.as_ptr(), address.len()).build();
    #[expect(unsafe_code, reason = "the kernel reads the address through a bare pointer")]
    // SAFETY: the address and the socket live until the one completion has been waited for.
    unsafe {
        ring.submission().push(&entry).map_err(io::Error::other)?;
    }
    while let Err(error) = ring.submit_and_wait(1) {
        // Also by a stop and a continuation.
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let result = ring.completion().next().map_or(-nix::libc::EIO, |completion| completion.result());
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    into_blocking(socket)
}

fn new_socket(target: SocketAddr, flags: SockFlag) -> io::Result<OwnedFd> {
    let family = if target.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    Ok(socket::socket(family, SockType::Stream, flags | SockFlag::SOCK_CLOEXEC, None)?)
}

fn into_blocking(socket: OwnedFd) -> io::Result<TcpStream> {
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}
