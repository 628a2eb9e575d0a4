//! Connections that come and go.

use std::{
    collections::BTreeMap,
    io::{self, Read as _},
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use serde_json::{Value, json};

use crate::{
    WARM_UP,
    message::{CHURN_OFFSET, CHURN_PORTS, CLIENT_CLOSES, Closer, SERVER_CLOSES, ask, at, connect},
    times::Times,
};

/// What one thread has done.
struct Done {
    times: Times,
    /// Connections in each [`WINDOW`].
    windows: Vec<u64>,
    errors: BTreeMap<String, u64>,
}

/// Measures how many connections there are, and how long each takes.
pub(crate) fn measure(
    target: SocketAddr,
    (threads, closer): (usize, Closer),
    duration: Duration,
) -> Result<Value> {
    let begin = Instant::now() + WARM_UP;
    let running: Vec<_> = (0..threads)
        .map(|number| thread::spawn(move || one(target, closer, (number, threads), (begin, duration))))
        .collect();
    let mut all = Done { times: Times::new()?, windows: Vec::new(), errors: BTreeMap::new() };
    for thread in running {
        let done = thread.join().map_err(|_| anyhow!("a thread has panicked"))??;
        all.times.add(&done.times)?;
        all.windows.resize(all.windows.len().max(done.windows.len()), 0);
        all.windows.iter_mut().zip(done.windows).for_each(|(sum, more)| *sum += more);
        for (error, count) in done.errors {
            *all.errors.entry(error).or_default() += count;
        }
    }
    let rate = all.times.count() as f64 / duration.as_secs_f64();
    // The last one may be cut short.
    let whole = (duration.as_nanos() / WINDOW.as_nanos()) as usize;
    let rates: Vec<f64> =
        all.windows.iter().take(whole).map(|count| *count as f64 / WINDOW.as_secs_f64()).collect();
    Ok(json!({"count": all.times.count(), "per_second": rate, "errors": all.errors,
        "micros": all.times.percentiles(), "windows_per_second": rates}))
}

fn one(
    target: SocketAddr,
    closer: Closer,
    (number, threads): (usize, usize),
    (begin, duration): (Instant, Duration),
) -> Result<Done> {
    let mut done = Done { times: Times::new()?, windows: Vec::new(), errors: BTreeMap::new() };
    let end = begin + duration;
    for turn in (number..).step_by(threads) {
        let port = (turn % usize::from(CHURN_PORTS)) as u16;
        let opened = Instant::now();
        if opened >= end {
            break;
        }
        let outcome = visit(at(target, CHURN_OFFSET + port), closer);
        let Some(since) = opened.checked_duration_since(begin) else { continue };
        match outcome {
            Ok(()) => {
                done.times.note(opened.elapsed());
                let window = (since.as_nanos() / WINDOW.as_nanos()) as usize;
                done.windows.resize(done.windows.len().max(window + 1), 0);
                done.windows[window] += 1;
            }
            Err(error) => {
                *done.errors.entry(error.kind().to_string()).or_default() += 1;
                // What fails at once would otherwise take the processor from what does not.
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
    Ok(done)
}

/// One connection, from its first packet to the end of this side.
fn visit(target: SocketAddr, closer: Closer) -> io::Result<()> {
    let mut stream = connect(target)?;
    match closer {
        Closer::Client => ask(&mut stream, CLIENT_CLOSES),
        Closer::Server => {
            ask(&mut stream, SERVER_CLOSES)?;
            match stream.read(&mut [0])? {
                0 => Ok(()),
                _ => Err(io::Error::new(io::ErrorKind::InvalidData, "more than the answer")),
            }
        }
    }
}

/// What is looked at on its own: a rate that falls as ports are used up falls over time.
const WINDOW: Duration = Duration::from_secs(10);
