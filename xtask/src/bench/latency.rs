//! The first connection between two identities, and the next.

use std::{
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use lab::{Pod, tcp, try_eventually};

use super::stage::{PATIENCE, PORT, Path, Stage};

/// Median times of connect and one round trip, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct FirstConnections {
    /// To a peer that was never spoken to.
    pub(super) first: f64,
    /// The one after it.
    pub(super) next: f64,
    /// Of plain TCP.
    pub(super) plain: f64,
}

/// Measures them, with a new server each time.
pub(super) fn first_connections(stage: &Stage) -> Result<FirstConnections> {
    let (mut first, mut next, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..PEERS {
        let (pod, _servers) = stage.new_server(&format!("new-{number}"))?;
        let target = pod.at_v4(PORT);
        let ask = |pod: &Pod, target| pod.run(|| ask(target));
        // Another identity tries until it goes through a tunnel: from then on both nodes know the pod.
        try_eventually(PATIENCE, || {
            let _ = ask(stage.other_client(), target);
            stage.proxies.has_tunnelled(target)
        })
        .with_context(|| format!("{} in the mesh", pod.name()))?;
        first.push(ask(&stage.client, target)?);
        next.push(ask(&stage.client, target)?);
        let (pod_outside, target) = stage.ends(Path::Plain, PORT)?;
        plain.push(ask(pod_outside, target)?);
        pod.delete()?;
    }
    Ok(FirstConnections { first: median(first), next: median(next), plain: median(plain) })
}

fn ask(target: SocketAddr) -> Result<Duration> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    tcp::ping(&mut stream, MESSAGE)?;
    Ok(begun.elapsed())
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
}

/// As long as the load generator's messages.
const MESSAGE: &str = "sixty-four bytes, which is what this field's benchmarks all use.";
/// How many new peers there are.
const PEERS: usize = 15;
