//! `cargo xtask image`: the agent as a container image, in an archive that `ctr`, podman and docker read; without a container
//! engine, and the same whoever builds the same program.
//!
//! Here it is built and named. What is in it is [`images::culvert`]'s business, and how an image is written [`lab::image`]'s.

use std::{path::PathBuf, time::Instant};

use anyhow::Result;
use lab::cluster::images;

use crate::{build, setup};

/// What to make an image of.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Optimize the agent, as for a release
    #[arg(long)]
    release: bool,

    /// The image's name and tag
    #[arg(long, default_value = images::CULVERT)]
    tag: String,

    /// Where to write the archive; without it into cargo's target folder
    #[arg(long)]
    output: Option<PathBuf>,
}

/// Builds the agent and its image, and says what to do with it.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::run(setup::Purpose::Build)?;
    let program = build::agent(options.release)?;
    let output = options.output.clone().unwrap_or_else(|| program.with_file_name("culvert-image.tar"));
    let start = Instant::now();
    let written = images::culvert(&options.tag, &program)?.write(&output)?;
    println!("image: {} with {}", options.tag, written.digest);
    println!(
        "image: {} ({:.0} MB) in {:.1} s",
        output.display(),
        written.size as f64 / 1e6,
        start.elapsed().as_secs_f64()
    );
    println!("image: into a cluster of `cargo xtask cluster`: cargo xtask cluster load {}", output.display());
    println!("image: into containerd: ctr -n k8s.io images import {}", output.display());
    Ok(())
}
