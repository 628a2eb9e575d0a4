//! `load`: the load generator of `cargo xtask bench`, and the server that it talks to.
//!
//! One blocking thread a connection, as netperf and the like have it: what is measured is the path between two sockets
//! and not an event loop. Every message is [`MESSAGE`] bytes long; the first of them says what the server is to do.
//! Results are one line of JSON.

mod churn;
mod idle;
mod message;
mod ping_pong;
mod server;
mod times;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;

use self::message::Closer;

#[derive(Parser)]
#[command(name = "load", about = "A load generator for TCP, and its server")]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Serve until killed; says `ready` when it listens
    Serve {
        /// The first of its ports: messages on open connections
        #[arg(long)]
        port: u16,
    },
    /// Send a message and wait for the answer, again and again
    PingPong {
        #[command(flatten)]
        run: Run,
        /// How many connections do so side by side
        #[arg(long)]
        connections: usize,
    },
    /// Connect, ask, close, again and again
    Churn {
        #[command(flatten)]
        run: Run,
        /// How many threads do so side by side
        #[arg(long)]
        threads: usize,
        /// Who closes first
        #[arg(long)]
        closer: Closer,
    },
    /// Open connections, send one message over each, and keep them until killed; says `ready` when they are open
    Idle {
        /// The server: the address and its first port
        target: SocketAddr,
        /// How many
        #[arg(long)]
        connections: usize,
    },
}

/// Against whom, and for how long.
#[derive(Args, Clone, Copy)]
struct Run {
    /// The server: the address and its first port
    target: SocketAddr,
    /// How long, in seconds, after half a second that does not count
    #[arg(long)]
    seconds: f64,
}

impl Run {
    fn duration(self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

fn main() -> Result<()> {
    let result: Value = match Arguments::parse().role {
        Role::Serve { port } => return server::serve(port),
        Role::Idle { target, connections } => return idle::hold(target, connections),
        Role::PingPong { run, connections } => ping_pong::measure(run.target, connections, run.duration())?,
        Role::Churn { run, threads, closer } => {
            churn::measure(run.target, (threads, closer), run.duration())?
        }
    };
    println!("{result}");
    Ok(())
}

/// Lets this process have as many descriptors as it may.
fn allow_files() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raising the limit of open files")
}

/// What does not count at the beginning of a run: connections open, caches and congestion windows fill.
const WARM_UP: Duration = Duration::from_millis(500);
