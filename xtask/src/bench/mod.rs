//! `cargo xtask bench`: what the mesh costs, beside plain TCP in the same run.
//!
//! Two nodes and their pods in network namespaces, as in the demo; real agents, or another proxy in their place. Each
//! kind of load runs over each path for a few seconds, in rounds, and in another order each round; what counts is the
//! ratio to plain TCP in the same round. Plain TCP is measured twice: what differs between the two differs by chance.
//!
//! ```text
//! build ──► (root) stage ──► rounds of load × path ──► ratios ──► table, JSON, chart
//! ```
//!
//! The load generator is `tests/load`; bulk is by iperf3.

mod chart;
mod large;
mod latency;
mod load;
mod machine;
mod memory;
mod native;
mod proxy;
mod results;
mod rounds;
mod stage;
mod statistics;
mod table;
mod targets;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use lab::Mesh;

use self::{results::Results, rounds::Plan, stage::Stage};
use crate::{build, command, layout, setup};

/// What to measure, and where to put it.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// How long each load runs over each path, in seconds
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,

    /// How long connections come and go in the sustained run, in seconds; 0 leaves it out
    #[arg(long, default_value_t = 120.0)]
    sustained: f64,

    /// Only loads whose name contains one of these, such as `bulk` or `16`
    #[arg(long)]
    load: Vec<String>,

    /// Only these paths, and plain TCP, such as `across`
    #[arg(long)]
    path: Vec<String>,

    /// Leave out memory, first connections and large meshes
    #[arg(long)]
    only_rounds: bool,

    /// A script that starts another proxy in place of the agents; see xtask/src/bench/proxy.rs
    #[arg(long, value_name = "SCRIPT")]
    with: Option<PathBuf>,

    /// Write everything that was measured here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Draw the ratios here, as SVG
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,

    /// Everything is installed and built: only measure, as root
    #[arg(long, hide = true)]
    built: bool,
}

/// Measures.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.built {
        return measure(options);
    }
    setup::run(setup::Purpose::Demo)?;
    build::agent(true)?;
    command::run(command::cargo().args(["build", "--release", "--package", "load"]))?;
    // Made by the user, so that they stay the user's.
    for file in [&options.json, &options.chart].into_iter().flatten() {
        fs::write(file, "").with_context(|| format!("writing {}", file.display()))?;
    }
    become_root()
}

fn become_root() -> Result<()> {
    let programs = layout::target()?.join("release");
    let variables = [
        ("CULVERT_BIN", programs.join("culvert").into_os_string()),
        (LOAD, programs.join("load").into_os_string()),
        ("LAB_PREFIX", "bench".into()),
    ];
    let purpose = "making network namespaces in which agents load eBPF programs";
    command::go_on_as_root(purpose, "--built", &variables)
}

fn measure(options: &Options) -> Result<()> {
    Mesh::remove_leftovers()?;
    let machine = machine::describe()?;
    println!("{machine}");
    if let Some(warning) = machine::noise()? {
        println!("warning: {warning}");
    }
    let load = PathBuf::from(std::env::var_os(LOAD).context("--built is for this program itself")?);
    let stage = Stage::set(load, options.with.as_deref())?;
    let plan = Plan::new(options);
    let mut results = Results { machine, ..Results::default() };
    if !options.only_rounds {
        results.memory = memory::measure(&stage)?;
        results.first = Some(latency::first_connections(&stage)?);
    }
    results.rounds = plan.run(&stage)?;
    results.sustained = plan.sustain(&stage)?;
    if !options.only_rounds && options.with.is_none() {
        results.policies = plan.with_policies(&stage)?;
        results.large = plan.in_a_large_mesh(&stage)?;
    }
    table::print(&results);
    if let Some(file) = &options.json {
        write(file, &serde_json::to_string_pretty(&results.json())?)?;
    }
    if let Some(file) = &options.chart {
        write(file, &chart::draw(&results)?)?;
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

/// Where the load generator is.
const LOAD: &str = "BENCH_LOAD";
