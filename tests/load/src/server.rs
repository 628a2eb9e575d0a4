//! The server: messages are sent back.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    thread,
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{Backlog, listen};

use crate::{
    allow_files,
    message::{CHURN_OFFSET, CHURN_PORTS, IDLE_OFFSET, MESSAGE, SERVER_CLOSES},
};

/// Serves until the process is killed.
pub(crate) fn serve(port: u16) -> Result<()> {
    allow_files()?;
    let open = bind(port)?;
    let idle = bind(port + IDLE_OFFSET)?;
    for number in 0..CHURN_PORTS {
        let churn = bind(port + CHURN_OFFSET + number)?;
        thread::spawn(move || churn.incoming().flatten().for_each(once));
    }
    thread::spawn(move || hold(&idle));
    println!("ready");
    for stream in open.incoming() {
        let stream = stream.context("accepting a connection")?;
        thread::spawn(move || echo(stream));
    }
    Ok(())
}

/// Messages on a connection that stays open.
fn echo(mut stream: TcpStream) {
    let mut message = [0; MESSAGE];
    let _ = stream.set_nodelay(true);
    while stream.read_exact(&mut message).is_ok() && stream.write_all(&message).is_ok() {}
}

/// One message on a connection that ends with it. In the thread that accepted it: a thread for each would cost more than the
/// connection.
fn once(mut stream: TcpStream) {
    let mut message = [0; MESSAGE];
    if stream.read_exact(&mut message).is_err() || stream.write_all(&message).is_err() {
        return;
    }
    if message[0] != SERVER_CLOSES {
        // Until the client has closed.
        let _ = stream.read(&mut message);
    }
}

/// One message on each connection, which then stays open without a thread.
fn hold(listener: &TcpListener) {
    let mut held = Vec::new();
    let mut message = [0; MESSAGE];
    for mut stream in listener.incoming().flatten() {
        if stream.read_exact(&mut message).is_ok() && stream.write_all(&message).is_ok() {
            held.push(stream);
        }
    }
}

fn bind(port: u16) -> Result<TcpListener> {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = TcpListener::bind(address).with_context(|| format!("listening at {address}"))?;
    // The standard library's backlog of 128 is less than a burst of connections that wait for a processor.
    listen(&listener, Backlog::new(4096)?).context("widening the backlog")?;
    Ok(listener)
}
