//! What a cluster consists of: Kubernetes, built from `tests/kubernetes`; helm and cnitool; containerd, runc and the CNI
//! plugins, which are Debian's and unpacked only: installed, containerd would start a service, and drive out Docker's own.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result};
use lab::cluster::tools::{GO_PROGRAMS, KUBERNETES, PACKAGES, Tools};

use super::go::Go;
use crate::{command, debian::Wanted, layout};

/// Brings what is missing. Returns whether anything was.
pub(super) fn obtain() -> Result<bool> {
    let tools = Tools::of(&layout::cache()?);
    let mut obtained = false;
    for package in PACKAGES {
        let wanted = Wanted {
            task: "cluster",
            what: package.to_owned(),
            prefix: package,
            pick: &|names| names.lines().find(|name| *name == package),
        };
        obtained |= wanted.unpack_into(&tools.package(package))?;
    }
    let kubernetes = tools.kubernetes_folder();
    if !kubernetes.is_dir() {
        build_kubernetes(&Go::obtain()?, &tools)?;
        obtained = true;
    }
    for (name, module, version) in GO_PROGRAMS {
        let folder = tools.go_program_folder(name);
        if !folder.is_dir() {
            install(&Go::obtain()?, &format!("{module}@{version}"), &folder)?;
            obtained = true;
        }
    }
    Ok(obtained)
}

/// Builds the one program, and gives it its names.
fn build_kubernetes(go: &Go, tools: &Tools) -> Result<()> {
    println!("cluster: building Kubernetes (tests/kubernetes) with Go; from nothing that takes some minutes");
    let start = Instant::now();
    let folder = tools.kubernetes_folder();
    let partial = fresh(&folder)?;
    let program = partial.join("kubernetes");
    let mut build = go.command();
    build.current_dir(layout::root().join("tests/kubernetes"));
    build.args(["build", "-trimpath", "-mod=readonly", "-buildvcs=false", "-ldflags"]);
    build.arg(tools.kubernetes_link_flags()).arg("-o").arg(&program).arg(".");
    command::run(&mut build)?;
    for name in KUBERNETES {
        symlink("kubernetes", partial.join(name)).with_context(|| format!("a link for {name}"))?;
    }
    finish(&partial, &folder, start)
}

/// Builds a program of a Go module.
fn install(go: &Go, module: &str, folder: &Path) -> Result<()> {
    println!("cluster: building {module} with Go");
    let start = Instant::now();
    let partial = fresh(folder)?;
    let mut install = go.command();
    install.current_dir(&partial).env("GOBIN", &partial);
    install.args(["install", "-trimpath", "-ldflags=-s -w", module]);
    command::run(&mut install)?;
    finish(&partial, folder, start)
}

/// Makes an empty folder beside `folder`, so that what is interrupted leaves nothing that looks whole.
fn fresh(folder: &Path) -> Result<PathBuf> {
    let mut name = folder.file_name().context("a folder without a name")?.to_owned();
    name.push(".partial");
    let partial = folder.with_file_name(name);
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("deleting {}", partial.display()))?;
    }
    fs::create_dir_all(&partial).with_context(|| format!("creating {}", partial.display()))?;
    Ok(partial)
}

fn finish(partial: &Path, folder: &Path, start: Instant) -> Result<()> {
    fs::rename(partial, folder).with_context(|| format!("moving what was built to {}", folder.display()))?;
    println!("cluster: built in {} s: {}", start.elapsed().as_secs(), folder.display());
    Ok(())
}
