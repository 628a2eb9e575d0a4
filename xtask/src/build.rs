//! `cargo xtask build`: the agent, with its eBPF programs inside, linked as it is shipped.
//!
//! It is one file that needs no library of the machine that it runs on. The agent copies itself onto the host as the CNI
//! plugin, and a host has whatever libc it has, or none. `cargo build` links against this machine's libraries instead.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::{command, layout, setup};

/// What to build.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Optimize, as for a release
    #[arg(long)]
    release: bool,
}

/// Builds the agent and says where it is.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::run(setup::Purpose::Build)?;
    println!("built {}", agent(options.release)?.display());
    Ok(())
}

/// Builds the agent and returns where it is.
///
/// # Errors
/// Where it does not build, or would need a library where it runs.
pub(crate) fn agent(release: bool) -> Result<PathBuf> {
    let mut cargo = command::cargo();
    cargo.args(["rustc", "--package", "culvert", "--bin", "culvert"]);
    if release {
        cargo.arg("--release");
    }
    // For the last step alone, which links: as a flag for all of cargo's work it would keep procedural macros from being built, and
    // have every crate compiled anew.
    command::run(cargo.args(["--", "-C", "target-feature=+crt-static"]))?;
    let program = layout::target()?.join(if release { "release" } else { "debug" }).join("culvert");
    ensure!(lab::image::is_static(&program)?, "{} needs libraries where it runs", program.display());
    Ok(program)
}
