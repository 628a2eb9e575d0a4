//! `cargo xtask vm`: a stock Debian kernel in a virtual machine, with the eBPF suite or a shell inside.
//!
//! ```text
//! kernel (apt-get download) ──┐
//! its modules, unpacked ──────┼─► initramfs (a cpio) ──► qemu ──► guest: this very program as /init ──► exit status
//! the suite, the agent, tools ┘
//! ```
//!
//! The programs are the ones that run natively, copied with the libraries that they load: nothing is built twice.

pub(crate) mod guest;
mod initramfs;
mod kernel;
mod modules;
mod qemu;

use std::{fmt, path::PathBuf};

use anyhow::Result;
use clap::ValueEnum;

use crate::{setup, test};

/// What to boot, and what for.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The series of the kernel
    #[arg(long)]
    kernel: Kernel,
    /// Give a prompt inside, with two pods and the mesh running, instead of running the suite
    #[arg(long)]
    shell: bool,
    /// Run only tests whose names contain this
    #[arg(conflicts_with = "shell")]
    filter: Option<String>,
}

/// A series of kernels that Culvert supports and Debian 12 ships.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Kernel {
    /// Debian 12's own
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13's, as Debian 12 ships it
    #[value(name = "6.12")]
    V6_12,
}

impl Kernel {
    /// Every kernel that `cargo xtask test` runs.
    pub(crate) const ALL: [Self; 2] = [Self::V6_1, Self::V6_12];

    fn series(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.series())
    }
}

/// What runs inside.
#[derive(Debug)]
pub(crate) struct Programs {
    /// This program, which also knows how to be the guest's first.
    pub(crate) init: PathBuf,
    pub(crate) suite: PathBuf,
    pub(crate) agent: PathBuf,
}

/// Boots a kernel for the suite or the shell.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::run(setup::Purpose::Test)?;
    let programs = test::vm_programs()?;
    if options.shell {
        let machine = machine(options.kernel, &programs)?;
        return machine.shell();
    }
    run_suite(options.kernel, &programs, options.filter.as_deref(), |_| ())
}

/// Runs the suite on a kernel, handing every line that the machine prints to `line`.
pub(crate) fn run_suite(
    kernel: Kernel,
    programs: &Programs,
    filter: Option<&str>,
    line: impl FnMut(&str),
) -> Result<()> {
    machine(kernel, programs)?.suite(filter, line)
}

fn machine(kernel: Kernel, programs: &Programs) -> Result<qemu::Machine> {
    let unpacked = kernel::obtain(kernel)?;
    let modules = modules::load_order(&unpacked.modules, MODULES)?;
    let initramfs = initramfs::build(programs, &modules)?;
    Ok(qemu::Machine { kernel: unpacked.image, initramfs })
}

/// What the suite and the shell use that Debian does not build into its kernels.
const MODULES: &[&str] = &["veth", "bridge", "dummy", "af_packet", "inet_diag", "tcp_diag", "tls"];
