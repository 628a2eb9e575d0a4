//! Servers and clients over plain TCP, for the suites: what they send is known byte by byte, so that a byte that is
//! lost, doubled or out of order is found where it is.

mod pattern;
mod server;

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    libc::linger,
    sys::socket::{setsockopt, sockopt::Linger},
};

pub use self::{
    pattern::{receive, receive_exactly, send},
    server::{Handler, Server},
};

/// What nobody waits longer for than: a transfer that makes no progress in this time is dead.
pub const STALL: Duration = Duration::from_secs(30);

/// A handler: sends back what comes, until the client's end of file, and then ends its own direction.
pub fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = read(&mut stream, &mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// A handler: reads and forgets.
pub fn sink(mut stream: TcpStream) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(1..) = read(&mut stream, &mut buffer) {}
}

/// A handler: verifies [`send`]'s bytes to the end of file and answers `<count>\n`, or what was wrong with them.
pub fn checksum(mut stream: TcpStream) {
    let answer = match receive(&mut stream) {
        Ok(count) => format!("{count}\n"),
        Err(error) => format!("{error}\n"),
    };
    let _ = stream.write_all(answer.as_bytes());
}

/// A handler: sends `bytes` of [`send`]'s and ends.
pub fn source(bytes: u64) -> impl Handler {
    move |mut stream: TcpStream| {
        let _ = send(&mut stream, bytes).and_then(|()| stream.shutdown(Shutdown::Write));
        // The other side may still send; a close with unread bytes would be a reset.
        sink(stream);
    }
}

/// Reads once, as [`Read::read`] does, and goes on where a signal came in between: the kernel takes no interrupted read
/// up again on a socket with a deadline (signal(7), `SO_RCVTIMEO`), also where all that came was a stop and a continuation.
pub fn read(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// A handler: speaks first, then echoes.
pub fn speak_first(greeting: &'static str) -> impl Handler {
    move |mut stream: TcpStream| {
        if stream.write_all(greeting.as_bytes()).is_ok() {
            echo(stream);
        }
    }
}

/// A handler: answers with what the server sees as its client, `address:port\n`, and ends.
pub fn who(mut stream: TcpStream) {
    let seen = stream.peer_addr().map(canonical).map(|peer| peer.to_string());
    let seen = seen.unwrap_or_else(|error| error.to_string());
    let _ = stream.write_all(format!("{seen}\n").as_bytes());
}

/// The address with IPv4-mapped IPv6 as IPv4.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Client of [`echo`]: sends `bytes` and reads them back, both at once, each end checked and each half closed.
pub fn exchange(stream: TcpStream, bytes: u64) -> Result<()> {
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    let mut writer = stream.try_clone().context("a second handle of the connection")?;
    let mut reader = stream;
    thread::scope(|scope| {
        let sent = scope.spawn(move || {
            send(&mut writer, bytes)?;
            writer.shutdown(Shutdown::Write)
        });
        let received = receive(&mut reader).context("receiving");
        let sent = sent.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).context("sending");
        let received = received?;
        sent?;
        ensure!(received == bytes, "{received} bytes came back of {bytes}");
        Ok(())
    })
}

/// Client of [`checksum`]: sends `bytes`, half-closes, and checks the answer.
pub fn upload(mut stream: TcpStream, bytes: u64) -> Result<()> {
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    send(&mut stream, bytes).context("sending")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("reading the answer")?;
    ensure!(answer.trim() == bytes.to_string(), "the server received: {}", answer.trim());
    Ok(())
}

/// Client of [`source`]: reads to the end and returns how many bytes came, each checked.
pub fn download(mut stream: TcpStream) -> Result<u64> {
    stream.set_read_timeout(Some(STALL))?;
    receive(&mut stream).context("receiving")
}

/// Client of [`who`]: the address that the server sees.
pub fn ask_who(mut stream: TcpStream) -> Result<SocketAddr> {
    stream.set_read_timeout(Some(STALL))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("reading the answer")?;
    answer.trim().parse().with_context(|| format!("the server answered {answer:?}"))
}

/// One round trip of a line over a connection to [`echo`].
pub fn ping(stream: &mut TcpStream, line: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(STALL))?;
    stream.write_all(line.as_bytes())?;
    let mut back = vec![0; line.len()];
    stream.read_exact(&mut back)?;
    if back == line.as_bytes() { Ok(()) } else { Err(io::Error::other("another line came back")) }
}

/// Closes with a reset instead of a FIN.
pub fn reset(stream: TcpStream) -> io::Result<()> {
    setsockopt(&stream, Linger, &linger { l_onoff: 1, l_linger: 0 })?;
    drop(stream);
    Ok(())
}
