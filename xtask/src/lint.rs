//! `cargo xtask lint`: what is checked without running Culvert.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, bail};

use crate::{alerts, chart, command, layout, setup, tidy};

/// A check and its name.
type Check = (&'static str, fn() -> Result<()>);

const CHECKS: &[Check] = &[
    ("format", format),
    ("tidy", tidy::run),
    ("clippy", clippy),
    ("clippy for eBPF", clippy_ebpf),
    ("alerts", alerts::check),
    ("chart", chart::check),
    ("dependencies", dependencies),
    ("advisories", advisories),
];

/// Runs every check, also after one has failed, and names those that did.
pub(crate) fn run() -> Result<()> {
    setup::run(setup::Purpose::Test)?;
    let failed = failures();
    if !failed.is_empty() {
        bail!("lint: {} failed", failed.join(", "));
    }
    println!("lint: all is well");
    Ok(())
}

/// Runs every check and returns the names of those that failed.
pub(crate) fn failures() -> Vec<&'static str> {
    let run = |(name, check): &Check| {
        println!("lint: {name}");
        check().inspect_err(|error| eprintln!("error: {error:#}")).is_err().then_some(*name)
    };
    CHECKS.iter().filter_map(run).collect()
}

/// Returns how many checks there are.
pub(crate) const fn count() -> usize {
    CHECKS.len()
}

fn format() -> Result<()> {
    command::run(command::cargo().args(["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    let mut cargo = command::cargo();
    command::run(cargo.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "--deny",
        "warnings",
    ]))
}

/// Checks the half of `agent-ebpf` that the host's compiler never sees. Where the eBPF compiler brings no clippy (a
/// nightly may lack it), its own warnings are denied.
fn clippy_ebpf() -> Result<()> {
    let has_clippy = command::probe(bpf().args(["cargo-clippy", "--version"])).is_some();
    let has_prebuilt_core = command::probe(bpf().args(["rustc", "--print", "target-libdir", TARGET]))
        .is_some_and(|folder| PathBuf::from(folder).is_dir());
    let mut cargo = bpf();
    cargo.args(["cargo", if has_clippy { "clippy" } else { "build" }]);
    cargo.args(["--package", "agent-ebpf", "--bins", "--quiet", "--release", TARGET]);
    if !has_prebuilt_core {
        cargo.arg("-Zbuild-std=core");
    }
    // Apart from the host's, as `aya-build` also keeps it: the two compilers would undo each other's work.
    cargo.arg("--target-dir").arg(layout::target()?.join("lint-ebpf"));
    cargo.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    if has_clippy {
        // aya's macros hand the context to an entry point by value.
        cargo.args(["--", "--allow", "clippy::needless_pass_by_value"]);
    }
    command::run(&mut cargo)
}

/// Returns the beginning of a command of the eBPF compiler's.
fn bpf() -> Command {
    let mut rustup = Command::new("rustup");
    rustup.current_dir(layout::root()).args(["run", "bpf"]);
    // What the running cargo set for its own compiler.
    for name in ["RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTUP_TOOLCHAIN", "CARGO"] {
        rustup.env_remove(name);
    }
    rustup
}

const TARGET: &str = "--target=bpfel-unknown-none";

/// What `aya-build` passes, and that a warning is an error.
const FLAGS: &[&str] =
    &["--cfg=bpf_target_arch=\"x86_64\"", "-Cdebuginfo=2", "-Clink-arg=--btf", "--deny=warnings"];

fn dependencies() -> Result<()> {
    let mut deny = deny();
    command::run(deny.args(["--log-level", "error", "check", "--hide-inclusion-graph"]).args(OFFLINE_CHECKS))
}

/// What cargo-deny checks with what is in the checkout alone.
const OFFLINE_CHECKS: &[&str] = &["bans", "licenses", "sources"];

/// Checks the dependencies for published vulnerabilities, where the list of them can be had.
fn advisories() -> Result<()> {
    let mut fetch = Command::new("timeout");
    fetch.args([FETCH_LIMIT, "cargo-deny", "--log-level", "off", "fetch", "db"]).current_dir(layout::root());
    // Never ask for a password: an unreachable server is not one that wants to know who we are.
    fetch.env("GIT_TERMINAL_PROMPT", "0");
    let fetched = command::probe(&mut fetch).is_some();
    if fetched {
        return command::run(deny().args(["--log-level", "error", "check", "--disable-fetch", "advisories"]));
    }
    eprintln!(
        "\n\
         ****************************************************************************\n\
         ** THE DEPENDENCIES WERE NOT CHECKED FOR KNOWN VULNERABILITIES.           **\n\
         ** The advisory database could not be fetched: no network, or no answer.  **\n\
         ** Run `cargo xtask lint` again where github.com can be reached.          **\n\
         ****************************************************************************\n"
    );
    Ok(())
}

fn deny() -> Command {
    let mut deny = Command::new("cargo-deny");
    deny.current_dir(layout::root());
    deny
}

/// Seconds to wait for the advisory database; it takes some five where it can be had at all.
const FETCH_LIMIT: &str = "60";
