//! The compiler for `bpfel-unknown-none`, linked under rustup's toolchain name `bpf`, which `agent/build.rs` asks for.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::apt::Group;
use crate::command;

/// Debian's compiler with a prebuilt `core` for eBPF: needs no nightly.
pub(super) const DEBIAN_COMPILER: Group = Group {
    why: "a compiler for eBPF (Rust, with a prebuilt `core` for bpfel-unknown-none)",
    packages: &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf", "rust-web-clippy"],
};

/// What `bpf-linker` is built from.
pub(super) const LINKER_LIBRARIES: Group = Group {
    why: "LLVM, which bpf-linker is built from",
    packages: &["llvm-22-dev", "libpolly-22-dev", "libzstd-dev"],
};

/// Where Debian's compiler lives.
const DEBIAN: &str = "/usr";

/// The LLVM of [`LINKER_LIBRARIES`]; it reads what compilers with an LLVM up to its own version write.
const LLVM: u32 = 22;

/// Where the compiler for eBPF comes from.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Compiler {
    /// rustup's toolchain `bpf` exists and compiles `core` from source; somebody chose it.
    Linked,
    /// A nightly of rustup with `rust-src`, at this path.
    Nightly(PathBuf),
    /// [`DEBIAN_COMPILER`].
    Debian,
}

impl Compiler {
    /// Picks what is already here before anything that must be installed.
    pub(super) fn choose() -> Self {
        match linked() {
            Some(root) if root == Path::new(DEBIAN) => return Self::Debian,
            Some(root) if has_source(&root) => return Self::Linked,
            _ => {}
        }
        let nightly = sysroot(&["run", "nightly", "rustc"]).filter(|root| has_source(root));
        match nightly.filter(|_| nightly_llvm().is_some_and(|version| version <= LLVM)) {
            Some(root) => Self::Nightly(root),
            None => Self::Debian,
        }
    }

    /// Links the compiler under the name `bpf`. Returns whether there was anything to do.
    pub(super) fn link(&self) -> Result<bool> {
        let root = match self {
            Self::Linked => return Ok(false),
            Self::Nightly(root) => root,
            Self::Debian => {
                let root = Path::new(DEBIAN);
                ensure!(
                    has_prebuilt_core(root),
                    "no `core` for bpfel-unknown-none in /usr/lib/rustlib: is Debian's security archive in apt's sources?"
                );
                if linked().as_deref() == Some(root) {
                    return Ok(false);
                }
                root
            }
        };
        println!(
            "setup: linking rustup's toolchain `bpf` to {}, to compile the eBPF programs",
            root.display()
        );
        command::run(Command::new("rustup").args(["toolchain", "link", "bpf"]).arg(root))
            .context("linking the eBPF compiler; is rustup installed?")?;
        Ok(true)
    }
}

/// Returns where the compiler lives that is linked under the name `bpf`.
fn linked() -> Option<PathBuf> {
    sysroot(&["run", "bpf", "rustc"])
}

/// Asks the compiler that `rustup` runs with these arguments where it lives.
fn sysroot(rustup: &[&str]) -> Option<PathBuf> {
    command::probe(Command::new("rustup").args(rustup).args(["--print", "sysroot"])).map(PathBuf::from)
}

fn has_prebuilt_core(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/bpfel-unknown-none/lib").is_dir()
}

fn has_source(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core").is_dir()
}

/// Returns the major version of the LLVM inside nightly.
fn nightly_llvm() -> Option<u32> {
    let version = command::probe(Command::new("rustup").args(["run", "nightly", "rustc", "-vV"]))?;
    llvm_major(&version)
}

fn llvm_major(version: &str) -> Option<u32> {
    version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_version_of_llvm_from_the_compilers_own_words() {
        let version = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nrelease: 1.97.0\nLLVM version: 22.1.4";
        assert_eq!(llvm_major(version), Some(22));
        assert_eq!(llvm_major("rustc 1.97.0"), None);
    }
}
