//! `cargo xtask image`: the agent as a container image, in an archive that `ctr`, podman and docker read; without a container
//! engine, and the same whoever builds the same program.
//!
//! The image holds the program, the few libraries that it loads (glibc's) and the two files that name its users. How an image is
//! written is [`lab::image`]'s business.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result};
use lab::image::Image;

use crate::{command, layout, setup};

/// What to make an image of.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Optimize the agent, as for a release
    #[arg(long)]
    release: bool,

    /// The image's name and tag
    #[arg(long, default_value = REFERENCE)]
    tag: String,

    /// Where to write the archive; without it into cargo's target folder
    #[arg(long)]
    output: Option<PathBuf>,
}

/// Builds the agent and its image, and says what to do with it.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::run(setup::Purpose::Build)?;
    let mut cargo = command::cargo();
    cargo.args(["build", "--package", "culvert", "--bin", "culvert", "--locked"]);
    if options.release {
        cargo.arg("--release");
    }
    command::run(&mut cargo)?;
    let folder = layout::target()?.join(if options.release { "release" } else { "debug" });
    let output = options.output.clone().unwrap_or_else(|| folder.join("culvert-image.tar"));
    let start = Instant::now();
    let written = image(&options.tag, &folder)?.write(&output)?;
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

/// The image of the agent that lies in this folder.
fn image(reference: &str, folder: &Path) -> Result<Image> {
    let mut image = Image::new(reference);
    image.program("/usr/bin/culvert", &strip(folder)?)?;
    image.file("/etc/passwd", 0o644, PASSWD).file("/etc/group", 0o644, GROUP);
    image.empty_folder("/tmp", 0o1777);
    image.entrypoint(&["/usr/bin/culvert"]);
    image.label("org.opencontainers.image.title", "culvert");
    image.label("org.opencontainers.image.licenses", "Apache-2.0");
    image.label("org.opencontainers.image.version", env!("CARGO_PKG_VERSION"));
    Ok(image)
}

/// Copies the agent without its debug information, which is most of it; a trace still names functions.
fn strip(folder: &Path) -> Result<PathBuf> {
    let stripped = folder.join("image").join("culvert");
    let parent = stripped.parent().unwrap_or(folder);
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    command::run(
        Command::new("strip").arg("--strip-debug").arg("-o").arg(&stripped).arg(folder.join("culvert")),
    )?;
    Ok(stripped)
}

/// The version of this workspace; the domain keeps Kubernetes from taking the name for one of a registry's.
const REFERENCE: &str = concat!("culvert.dev/culvert:", env!("CARGO_PKG_VERSION"));

/// Users by the numbers that distroless images give them: root for the agent, another for the certificate authority.
const PASSWD: &str = "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnonroot:x:65532:\n";
