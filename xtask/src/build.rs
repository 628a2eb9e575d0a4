//! `cargo xtask build`: the agent, with its eBPF programs inside.

use anyhow::Result;

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
    let mut cargo = command::cargo();
    cargo.args(["build", "--package", "culvert", "--bin", "culvert"]);
    if options.release {
        cargo.arg("--release");
    }
    command::run(&mut cargo)?;
    let profile = if options.release { "release" } else { "debug" };
    println!("built {}", layout::target()?.join(profile).join("culvert").display());
    Ok(())
}
