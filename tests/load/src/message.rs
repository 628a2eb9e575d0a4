//! What client and server say to each other, and where.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use clap::ValueEnum;

/// The size of a message in bytes: that of a small request, which this field's benchmarks all use.
pub(crate) const MESSAGE: usize = 64;

/// Who closes a connection first: that end's socket stays in TIME_WAIT.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Closer {
    Client,
    Server,
}

/// How many ports [`Closer`]'s connections go to in turn. One has 28,232 ports to come from
/// (`net.ipv4.ip_local_port_range`), each unusable for a minute after the client closed.
pub(crate) const CHURN_PORTS: u16 = 64;
/// Where the connections are that wait, after the first port.
pub(crate) const IDLE_OFFSET: u16 = 1;
/// Where those begin that come and go.
pub(crate) const CHURN_OFFSET: u16 = 2;

/// The first byte of a message that asks the server to close.
pub(crate) const SERVER_CLOSES: u8 = b's';
/// Of one that says that the client will.
pub(crate) const CLIENT_CLOSES: u8 = b'c';

/// The server's address for a purpose.
pub(crate) fn at(target: SocketAddr, offset: u16) -> SocketAddr {
    SocketAddr::new(target.ip(), target.port() + offset)
}

/// Connects, with a bound on every wait.
pub(crate) fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends a message and waits for its answer.
pub(crate) fn ask(stream: &mut TcpStream, first: u8) -> io::Result<()> {
    let mut message = [first; MESSAGE];
    stream.write_all(&message)?;
    stream.read_exact(&mut message)
}

/// How long one answer may take before it is an error.
const PATIENCE: Duration = Duration::from_secs(10);
