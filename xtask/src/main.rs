//! Culvert's development tasks: `cargo xtask --help`.
//!
//! One file a task. This crate depends on neither `culvert` nor `agent-ebpf`, so that it also runs where those do not
//! compile yet: on a bare machine it is what installs the tools to build them.

mod alerts;
mod bench;
mod build;
mod chart;
mod cluster;
mod command;
mod debian;
mod demo;
mod image;
mod layout;
mod lint;
mod report;
mod setup;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Culvert's development tasks")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing on this machine to build and test Culvert, saying what and why
    Setup,
    /// Build the agent and its eBPF programs
    Build(build::Options),
    /// Make a container image of the agent
    Image(image::Options),
    /// Render the Helm chart into deploy/culvert.yaml, or check that it is rendered
    Chart(chart::Options),
    /// Show the mesh at work: two nodes, six pods, real programs, and what it costs
    Demo(demo::Options),
    /// A Kubernetes cluster of two nodes on this machine: bring it up, look into it, take it down
    Cluster(cluster::Options),
    /// Measure what the mesh costs beside plain TCP
    Bench(bench::Options),
    /// Check the rules of the house: imports, module headers, leftovers
    Tidy,
    /// Check formatting, clippy, the alerts, dependencies' licences and advisories, and `tidy`
    Lint,
    /// Run everything that a change must pass; `.ci/run` is this and nothing else
    Test(test::Options),
    /// Boot a stock Debian kernel in a virtual machine and run the eBPF suite in it
    Vm(vm::Options),
}

fn main() -> ExitCode {
    if vm::guest::is_init() {
        return vm::guest::main();
    }
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Setup => setup::run(setup::Purpose::Test),
        Task::Build(options) => build::run(&options),
        Task::Image(options) => image::run(&options),
        Task::Chart(options) => chart::run(&options),
        Task::Demo(options) => demo::run(&options),
        Task::Cluster(options) => cluster::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Tidy => tidy::run(),
        Task::Lint => lint::run(),
        Task::Test(options) => test::run(&options),
        Task::Vm(options) => vm::run(&options),
    }
}
