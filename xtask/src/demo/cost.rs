//! What the mesh costs, measured in the same run: the same two pods, first without agents and then with them.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lab::{Agent, tcp};

use super::stage::{ECHO, Stage};
use crate::report::{Report, bytes, row};

/// Enough for a steady median; a second in all.
const ROUND_TRIPS: usize = 1000;
const CONNECTIONS: usize = 100;

/// The size of a small request.
const MESSAGE: &str = "sixty-four bytes, which is what this field's benchmarks all use.";

/// Times of one path.
struct Path {
    round_trip: Duration,
    connection: Duration,
}

/// Times of both paths.
pub(super) struct Cost {
    first: Duration,
    across: Path,
    same_node: Path,
}

/// Measures the paths from the client to both web pods. The first connection is a first one only if nothing was sent
/// between the two before.
pub(super) fn measure(stage: &Stage) -> Result<Cost> {
    let target = |replica: usize| stage.web[replica].at(ECHO);
    let first = stage.client.run(|| connect_and_ask(target(0)))?;
    let path = |replica| stage.client.run(|| measure_path(target(replica)));
    Ok(Cost { first, across: path(0).context("across nodes")?, same_node: path(1).context("on one node")? })
}

fn measure_path(target: SocketAddr) -> Result<Path> {
    let connection = median((0..CONNECTIONS).map(|_| connect_and_ask(target)))?;
    let mut stream = connect(target)?;
    stream.set_nodelay(true)?;
    let round_trip = median((0..ROUND_TRIPS).map(|_| {
        let start = Instant::now();
        tcp::ping(&mut stream, MESSAGE)?;
        Ok(start.elapsed())
    }))?;
    Ok(Path { round_trip, connection })
}

fn connect_and_ask(target: SocketAddr) -> Result<Duration> {
    let start = Instant::now();
    tcp::ping(&mut connect(target)?, MESSAGE)?;
    Ok(start.elapsed())
}

fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&target, Duration::from_secs(5))
}

fn median(times: impl Iterator<Item = Result<Duration>>) -> Result<Duration> {
    let mut times = times.collect::<Result<Vec<_>>>()?;
    times.sort_unstable();
    times.get(times.len() / 2).copied().context("nothing was measured")
}

/// Says what was measured.
pub(super) fn compare(report: &mut Report, plain: &Cost, mesh: &Cost, agents: &[Agent; 2]) {
    report.heading("What it costs (medians, beside plain TCP between the same pods before the agents ran)");
    let line = |what: &str, plain: Duration, mesh: Duration| {
        [what.to_owned(), shown(plain), shown(mesh), shown(mesh.saturating_sub(plain))]
    };
    let mut rows = vec![row(["", "PLAIN", "MESH", "ADDED"])];
    for (path, plain, mesh) in [
        ("across nodes, over mutual TLS", &plain.across, &mesh.across),
        ("on one node", &plain.same_node, &mesh.same_node),
    ] {
        rows.push(row([path, "", "", ""]));
        rows.push(line("  a round trip", plain.round_trip, mesh.round_trip));
        rows.push(line("  a new connection and a round trip", plain.connection, mesh.connection));
    }
    // Of TCP alone it is a new connection as any other.
    rows.insert(4, row(["  the first connection of the pair", "", &shown(mesh.first), ""]));
    report.table(&rows);
    for agent in agents {
        let (memory, time) = (bytes(agent.rss()), agent.cpu_time());
        report.line(&format!(
            "the agent of {} uses {memory} of memory and has used {time:?} of a processor",
            agent.node()
        ));
    }
}

fn shown(time: Duration) -> String {
    format!("{} µs", time.as_micros())
}
