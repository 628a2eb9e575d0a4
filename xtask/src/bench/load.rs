//! The kinds of load, and one run of one of them.

use std::{collections::BTreeMap, time::Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    machine,
    stage::{BULK, PORT, Path, Stage},
};
use crate::command;

/// Who closes a connection first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Closer {
    Server,
    Client,
}

/// A kind of load.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Load {
    /// As much as goes over so many streams, by iperf3.
    Bulk(usize),
    /// 64 bytes there and back, over and over, on so many connections.
    PingPong(usize),
    /// Connect, 64 bytes there and back, close; by so many threads.
    Churn(usize, Closer),
}

/// What one run has shown.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// Bits, round trips or connections a second.
    pub(super) rate: f64,
    /// How many gigabytes, round trips or connections went through, in all.
    pub(super) amount: f64,
    /// Median, 99th and 99.9th percentile of what one took, in microseconds; none of bulk.
    pub(super) micros: Option<[f64; 3]>,
    /// What failed, how often.
    pub(super) errors: BTreeMap<String, u64>,
    /// Processor time of the whole machine, the load itself included, in seconds.
    pub(super) machine_cpu: f64,
    /// Of the proxy of the client's node and of the other.
    pub(super) proxy_cpu: [f64; 2],
    /// The rates of each ten seconds.
    pub(super) windows: Vec<f64>,
}

impl Load {
    pub(super) const ALL: [Self; 8] = [
        Self::Bulk(1),
        Self::Bulk(8),
        Self::PingPong(1),
        Self::PingPong(16),
        Self::Churn(1, Closer::Server),
        Self::Churn(16, Closer::Server),
        Self::Churn(1, Closer::Client),
        Self::Churn(16, Closer::Client),
    ];

    pub(super) fn name(self) -> String {
        match self {
            Self::Bulk(1) => "bulk, 1 stream".to_owned(),
            Self::Bulk(streams) => format!("bulk, {streams} streams"),
            Self::PingPong(1) => "ping-pong, 1 connection".to_owned(),
            Self::PingPong(connections) => format!("ping-pong, {connections} connections"),
            Self::Churn(threads, closer) => {
                let threads = if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") };
                let closer = if closer == Closer::Server { "server" } else { "client" };
                format!("connect-request-close, {threads}, {closer} closes")
            }
        }
    }

    /// What [`Sample::rate`] and [`Sample::amount`] count.
    pub(super) fn units(self) -> [&'static str; 2] {
        match self {
            Self::Bulk(_) => ["bit/s", "GB"],
            Self::PingPong(_) => ["round trips/s", "round trip"],
            Self::Churn(..) => ["connections/s", "connection"],
        }
    }

    /// Runs it once.
    pub(super) fn run(self, stage: &Stage, path: Path, seconds: f64) -> Result<Sample> {
        let (busy, proxies, begun) = (machine::busy()?, stage.cpu(path), Instant::now());
        let said = self.start(stage, path, seconds)?;
        let proxy_cpu = stage.cpu(path);
        let proxy_cpu = [0, 1].map(|at: usize| proxy_cpu[at].saturating_sub(proxies[at]).as_secs_f64());
        let machine_cpu = machine::busy()? - busy;
        let sample = match self {
            Self::Bulk(_) => bulk(&said)?,
            Self::PingPong(_) | Self::Churn(..) => messages(&said)?,
        };
        // What does not count in the result has used the processor too.
        let share = if matches!(self, Self::Bulk(_)) { 1.0 } else { seconds / begun.elapsed().as_secs_f64() };
        Ok(Sample { machine_cpu: machine_cpu * share, proxy_cpu: proxy_cpu.map(|cpu| cpu * share), ..sample })
    }

    fn start(self, stage: &Stage, path: Path, seconds: f64) -> Result<Value> {
        let (source, target) = stage.ends(path, PORT)?;
        let target = target.to_string();
        let seconds_text = seconds.to_string();
        let mut command = match self {
            Self::Bulk(streams) => {
                let (_, target) = stage.ends(path, BULK)?;
                // Whole seconds only.
                let seconds = seconds.ceil().max(1.0).to_string();
                let mut iperf = source.command("iperf3");
                iperf.args(["--client", &target.ip().to_string(), "--port", &target.port().to_string()]);
                iperf.args(["--time", &seconds, "--parallel", &streams.to_string(), "--json"]);
                iperf
            }
            Self::PingPong(connections) => {
                let mut load = source.command(stage.load()?);
                load.args(["ping-pong", &target, "--seconds", &seconds_text]);
                load.args(["--connections", &connections.to_string()]);
                load
            }
            Self::Churn(threads, closer) => {
                let mut load = source.command(stage.load()?);
                load.args(["churn", &target, "--seconds", &seconds_text, "--threads", &threads.to_string()]);
                load.args(["--closer", if closer == Closer::Server { "server" } else { "client" }]);
                load
            }
        };
        let said = command::output(&mut command)?;
        serde_json::from_str(&said).with_context(|| format!("reading the result of {}", self.name()))
    }
}

fn bulk(said: &Value) -> Result<Sample> {
    let received = &said["end"]["sum_received"];
    let (bytes, rate) = (number(&received["bytes"])?, number(&received["bits_per_second"])?);
    ensure!(bytes > 0.0, "nothing was received");
    Ok(Sample { rate, amount: bytes / 1e9, ..nothing() })
}

fn messages(said: &Value) -> Result<Sample> {
    let micros = &said["micros"];
    let micros = [number(&micros["p50"])?, number(&micros["p99"])?, number(&micros["p999"])?];
    let errors = said["errors"].as_object().context("no errors")?;
    let errors = errors.iter().map(|(error, count)| (error.clone(), count.as_u64().unwrap_or(0))).collect();
    let windows = said["windows_per_second"].as_array().into_iter().flatten();
    Ok(Sample {
        rate: number(&said["per_second"])?,
        amount: number(&said["count"])?,
        micros: Some(micros),
        errors,
        windows: windows.filter_map(Value::as_f64).collect(),
        ..nothing()
    })
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().context("a number is missing in the result")
}

fn nothing() -> Sample {
    Sample {
        rate: 0.0,
        amount: 0.0,
        micros: None,
        errors: BTreeMap::new(),
        machine_cpu: 0.0,
        proxy_cpu: [0.0; 2],
        windows: Vec::new(),
    }
}
