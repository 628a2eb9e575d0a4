//! `cargo xtask demo`: the mesh at work on real programs, shown in one page; with `--cluster`, in Kubernetes ([`kubernetes`]).
//!
//! The user's part installs what is missing and builds; it then replaces itself, by `sudo` where it is not root, with
//! the part that needs root: namespaces, agents with eBPF programs, a capture. That part writes to `/run` and to the
//! temporary directory only, so that nothing in the checkout or in the cache ever belongs to root.
//!
//! ```text
//! setup ──► cargo build ──► (sudo) stage: nodes, pods, programs ──► traffic, cost ──► report
//! ```

mod connections;
mod cost;
mod explore;
mod kubernetes;
mod stage;
mod traffic;
mod wire;

use std::{path::Path, time::Instant};

use anyhow::{Result, ensure};
use lab::{Mesh, cluster::tools};

use self::stage::Stage;
use crate::{build, command, layout, report::Report, setup};

/// What to show.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Leave everything running afterwards, and print commands to explore it with, until Ctrl-C
    #[arg(long)]
    keep: bool,

    /// In a Kubernetes cluster of two nodes on this machine: the chart, a label, policies
    #[arg(long)]
    cluster: bool,

    /// Everything is installed and built: only show it, as root
    #[arg(long, hide = true)]
    built: bool,
}

/// Shows the mesh at work. An error where something that is claimed about it does not hold.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.built {
        return if options.cluster { kubernetes::show(options.keep) } else { show(options.keep) };
    }
    setup::run(if options.cluster { setup::Purpose::Cluster } else { setup::Purpose::Demo })?;
    // As it is deployed: the costs that are shown are those of optimized code.
    become_root(options, &build::agent(true)?)
}

fn become_root(options: &Options, culvert: &Path) -> Result<()> {
    let purpose = if options.cluster {
        "a cluster's network namespaces, containers and eBPF programs"
    } else {
        "making network namespaces in which agents load eBPF programs"
    };
    let variables = [
        ("CULVERT_BIN", culvert.as_os_str().to_owned()),
        // The namespaces' names begin so; demos and tests on one machine leave each other alone.
        ("LAB_PREFIX", "demo".into()),
        (tools::CACHE_VARIABLE, layout::cache()?.into_os_string()),
    ];
    command::go_on_as_root(purpose, "--built", &variables)
}

fn show(keep: bool) -> Result<()> {
    let mut report = Report::new();
    for name in Mesh::remove_leftovers()? {
        report.note(&format!("removed what an earlier demo ({name}) had left behind"));
    }
    let start = Instant::now();
    let stage = Stage::set()?;
    report
        .title("Culvert: a mesh of two nodes and six pods in network namespaces, with real programs in them");
    stage.describe(&mut report);

    let marker = marker();
    let plain = wire::without_mesh(&stage, &marker)?;
    let plain_cost = cost::measure(&stage)?;
    let agents = stage.start_agents(&report)?;
    let mesh_cost = cost::measure(&stage)?;
    let seen = traffic::send(&stage, &agents, &marker)?;

    traffic::who_spoke_to_whom(&mut report, &seen);
    wire::compare(&mut report, &plain, &seen);
    traffic::what_servers_saw(&mut report, &stage, &seen);
    cost::compare(&mut report, &plain_cost, &mesh_cost, &agents);
    report.note(&format!("all of this took {:.1} s", start.elapsed().as_secs_f64()));

    if keep {
        explore::commands(&mut report, &stage, &agents);
        lab::wait_for_interrupt()?;
        report.note("removing namespaces, agents and pins");
    } else {
        explore::hint(&mut report);
    }
    let failed = report.failures();
    ensure!(failed == 0, "{failed} of the checks above failed");
    Ok(())
}

/// Bytes that occur nowhere else, in a form that survives HTTP and redis.
fn marker() -> String {
    let random = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    format!("marker-{}", random.trim())
}
