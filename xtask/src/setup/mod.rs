//! `cargo xtask setup`: installs what this machine lacks, saying what and why.
//!
//! Every step first looks whether it is needed, so a second run only looks, which takes a fraction of a second. Only
//! apt's own work is done as root. Nothing is written into the checkout.
//!
//! ```text
//! apt packages ──► the compiler for eBPF, under rustup's name `bpf` ──► bpf-linker, cargo-deny
//!            └───► Go ──► Kubernetes, helm; containerd (in the cache)
//! ```

mod apt;
mod bpf;
mod go;
mod kubernetes;
mod tools;

use anyhow::Result;

use crate::alerts;

/// What the machine is to be able to do; each includes those before it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Purpose {
    /// Build the agent.
    Build,
    /// Run it with real programs, in namespaces.
    Demo,
    /// Run Kubernetes on this machine.
    Cluster,
    /// Check and test it, in virtual machines too.
    Test,
}

/// Installs what is missing for a purpose; prints nothing but one line where nothing is.
pub(crate) fn run(purpose: Purpose) -> Result<()> {
    let compiler = bpf::Compiler::choose();
    let needed = apt::GROUPS.iter().filter(|(needed_for, _)| *needed_for <= purpose);
    let mut wanted: Vec<_> = needed.map(|(_, group)| group).collect();
    if matches!(compiler, bpf::Compiler::Debian) {
        wanted.push(&bpf::DEBIAN_COMPILER);
    }
    if tools::BPF_LINKER.is_missing() {
        wanted.push(&bpf::LINKER_LIBRARIES);
    }
    let mut installed = apt::install_missing(&wanted)?;
    installed |= compiler.link()?;
    installed |= tools::BPF_LINKER.install_if_missing()?;
    if purpose >= Purpose::Cluster {
        installed |= kubernetes::obtain()?;
    }
    if purpose >= Purpose::Test {
        installed |= tools::CARGO_DENY.install_if_missing()?;
        installed |= alerts::obtain()?;
    }
    println!("setup: {}", if installed { "everything is installed now" } else { "nothing is missing" });
    Ok(())
}
