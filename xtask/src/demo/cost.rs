//! What the mesh costs, measured in the same run: the same two pods, first without agents and then with them.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lab::{Agent, tcp};

use super::{
    report::{Report, bytes, row},
    stage::{ECHO, Stage},
};

/// Enough for a steady median; a second in all.
const ROUND_TRIPS: usize = 1000;
const CONNECTIONS: usize = 100;

/// The size of a small request.
const MESSAGE: &str = "sixty-four bytes, as the benchmarks of this field like to have it";

/// Times of one path.
pub(super) struct Path {
    first: Duration,
    round_trip: Duration,
    connection: Duration,
}

/// Times of both paths.
pub(super) struct Cost {
    across: Path,
    same_node: Path,
}

/// Measures the paths from the client to both web pods.
pub(super) fn measure(stage: &Stage) -> Result<Cost> {
    let path = |replica: usize| measure_path(stage, stage.web[replica].at(ECHO));
    Ok(Cost { across: path(0).context("across nodes")?, same_node: path(1).context("on one node")? })
}

fn measure_path(stage: &Stage, target: SocketAddr) -> Result<Path> {
    stage.client.run(|| {
        let connect = || std::net::TcpStream::connect_timeout(&target, Duration::from_secs(5));
        let connect_and_ask = || -> Result<Duration> {
            let start = Instant::now();
            tcp::ping(&mut connect()?, MESSAGE)?;
            Ok(start.elapsed())
        };
        let first = connect_and_ask()?;
        let connection = median((0..CONNECTIONS).map(|_| connect_and_ask()))?;
        let mut stream = connect()?;
        stream.set_nodelay(true)?;
        let round_trip = median((0..ROUND_TRIPS).map(|_| {
            let start = Instant::now();
            tcp::ping(&mut stream, MESSAGE)?;
            Ok(start.elapsed())
        }))?;
        Ok(Path { first, round_trip, connection })
    })
}

fn median(times: impl Iterator<Item = Result<Duration>>) -> Result<Duration> {
    let mut times = times.collect::<Result<Vec<_>>>()?;
    times.sort_unstable();
    times.get(times.len() / 2).copied().context("nothing was measured")
}

/// Says what was measured.
pub(super) fn compare(report: &mut Report, plain: &Cost, mesh: &Cost, agents: &[Agent; 2]) {
    report.heading(
        "What it costs (medians; plain TCP between the same pods, before the agents ran, beside it)",
    );
    let mut rows = vec![row(["", "PLAIN", "MESH", "ADDED"])];
    for (path, plain, mesh) in [
        ("across nodes, mutual TLS", &plain.across, &mesh.across),
        ("on one node, in the agent's memory", &plain.same_node, &mesh.same_node),
    ] {
        for (what, plain, mesh) in [
            ("a round trip on an open connection", plain.round_trip, mesh.round_trip),
            ("a new connection and a round trip", plain.connection, mesh.connection),
        ] {
            let added = shown(mesh.saturating_sub(plain));
            rows.push([format!("{path}: {what}"), shown(plain), shown(mesh), added]);
        }
    }
    let first = "across nodes: the first connection of a pair here";
    let added = shown(mesh.across.first.saturating_sub(plain.across.first));
    rows.push([first.to_owned(), shown(plain.across.first), shown(mesh.across.first), added]);
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
