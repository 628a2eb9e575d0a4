//! Round trips on open connections.

use std::{
    net::SocketAddr,
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use serde_json::{Value, json};

use crate::{
    WARM_UP,
    message::{CLIENT_CLOSES, ask, connect},
    times::Times,
};

/// Measures how many round trips there are on so many connections, and how long each takes.
pub(crate) fn measure(target: SocketAddr, connections: usize, duration: Duration) -> Result<Value> {
    let together = Arc::new(Barrier::new(connections));
    let threads: Vec<_> = (0..connections)
        .map(|_| {
            let together = Arc::clone(&together);
            thread::spawn(move || one(target, &together, duration))
        })
        .collect();
    let mut times = Times::new()?;
    for thread in threads {
        times.add(&thread.join().map_err(|_| anyhow!("a thread has panicked"))??)?;
    }
    let rate = times.count() as f64 / duration.as_secs_f64();
    Ok(json!({"count": times.count(), "per_second": rate, "errors": {}, "micros": times.percentiles()}))
}

fn one(target: SocketAddr, together: &Barrier, duration: Duration) -> Result<Times> {
    let opened = connect(target).with_context(|| format!("connecting to {target}"));
    // Also those that failed, or the others would wait for ever.
    together.wait();
    let mut stream = opened?;
    let mut times = Times::new()?;
    let begin = Instant::now() + WARM_UP;
    let end = begin + duration;
    loop {
        let sent = Instant::now();
        ask(&mut stream, CLIENT_CLOSES).context("a round trip")?;
        if sent >= end {
            return Ok(times);
        }
        if sent >= begin {
            times.note(sent.elapsed());
        }
    }
}
