//! Connections that nobody uses.

use std::{net::SocketAddr, thread};

use anyhow::{Context as _, Result};

use crate::{
    allow_files,
    message::{CLIENT_CLOSES, IDLE_OFFSET, ask, at, connect},
};

/// Opens connections and keeps them until the process is killed.
pub(crate) fn hold(target: SocketAddr, connections: usize) -> Result<()> {
    allow_files()?;
    let mut held = Vec::with_capacity(connections);
    for number in 0..connections {
        let mut stream = connect(at(target, IDLE_OFFSET)).with_context(|| format!("connection {number}"))?;
        ask(&mut stream, CLIENT_CLOSES).with_context(|| format!("connection {number}"))?;
        held.push(stream);
    }
    println!("ready");
    loop {
        thread::park();
    }
}
