//! `cargo xtask setup`: installs what this machine lacks, saying what and why.
//!
//! Every step first looks whether it is needed, so a second run only looks, which takes a fraction of a second. Only
//! apt's own work is done as root. Nothing is written into the checkout.
//!
//! ```text
//! apt packages ──► the compiler for eBPF, under rustup's name `bpf` ──► bpf-linker, cargo-deny
//! ```

mod apt;
mod bpf;
mod tools;

use anyhow::Result;

/// Installs what is missing; prints nothing but one line where nothing is.
pub(crate) fn run() -> Result<()> {
    let compiler = bpf::Compiler::choose();
    let linker = tools::BPF_LINKER.is_missing();
    let mut wanted = apt::ALWAYS.to_vec();
    if matches!(compiler, bpf::Compiler::Debian) {
        wanted.push(bpf::DEBIAN_COMPILER);
    }
    if linker {
        wanted.push(bpf::LINKER_LIBRARIES);
    }
    let mut installed = apt::install_missing(&wanted)?;
    installed |= compiler.link()?;
    installed |= tools::BPF_LINKER.install_if_missing()?;
    installed |= tools::CARGO_DENY.install_if_missing()?;
    println!("setup: {}", if installed { "everything is installed now" } else { "nothing is missing" });
    Ok(())
}
