//! Programs that cargo installs: into its own folder, where every checkout finds them.

use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command;

/// A program that cargo installs.
pub(super) struct Tool {
    name: &'static str,
    version: &'static str,
    /// The oldest version that will do where one is installed already: major, minor.
    oldest: (u32, u32),
    why: &'static str,
    /// Arguments of `cargo install`.
    arguments: &'static [&'static str],
    /// What the build needs in its environment.
    environment: &'static [(&'static str, &'static str)],
}

/// Links eBPF programs and emits their BTF.
pub(super) const BPF_LINKER: Tool = Tool {
    name: "bpf-linker",
    version: "0.13.0",
    oldest: (0, 13),
    why: "the linker for eBPF",
    arguments: &["--no-default-features", "--features", "llvm-22"],
    environment: &[("LLVM_PREFIX", "/usr/lib/llvm-22")],
};

/// Checks licences, sources, duplicates and advisories of the dependencies.
pub(super) const CARGO_DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
    oldest: (0, 20),
    why: "`cargo xtask lint`: licences, sources and advisories of the dependencies",
    arguments: &[],
    // Its own release profile optimizes the whole program at once, for minutes; here it runs for a second.
    environment: &[
        ("CARGO_PROFILE_RELEASE_LTO", "off"),
        ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
        ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
    ],
};

impl Tool {
    /// Returns whether no version that will do answers.
    pub(super) fn is_missing(&self) -> bool {
        let found = command::probe(Command::new(self.name).arg("--version"));
        found.as_deref().and_then(major_minor).is_none_or(|version| version < self.oldest)
    }

    /// Installs the tool where it is missing. Returns whether it was.
    pub(super) fn install_if_missing(&self) -> Result<bool> {
        if !self.is_missing() {
            return Ok(false);
        }
        println!("setup: installing {} {} with cargo, for {}", self.name, self.version, self.why);
        let mut cargo = command::cargo();
        cargo.args(["install", self.name, "--version", self.version, "--locked", "--quiet"]);
        cargo.args(self.arguments).envs(self.environment.iter().copied());
        command::run(&mut cargo).with_context(|| format!("installing {}", self.name))?;
        anyhow::ensure!(
            !self.is_missing(),
            "{} was installed, but is not found: put cargo's bin folder (~/.cargo/bin) into PATH",
            self.name
        );
        Ok(true)
    }
}

/// Reads `name 1.2.3` as (1, 2).
fn major_minor(answer: &str) -> Option<(u32, u32)> {
    let mut numbers = answer.split_whitespace().nth(1)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_programs_version() {
        assert_eq!(major_minor("bpf-linker 0.13.0"), Some((0, 13)));
        assert_eq!(major_minor("cargo-deny 0.20.2-dev"), Some((0, 20)));
        assert_eq!(major_minor("bpf-linker"), None);
    }
}
