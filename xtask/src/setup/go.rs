//! Go, which Kubernetes is written in: the one that is here if it is new enough, or else one that is brought into the cache.
//!
//! Go's own client brings it, as it brings any toolchain: by the module `golang.org/toolchain`, whose checksum is in the
//! public log of checksums. Where there is no Go at all, Debian's does that, which is too old for more.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use lab::image::architecture;

use crate::{command, debian::Wanted, layout};

/// The oldest Go that will do, as `tests/kubernetes/go.mod` says: major, minor.
const OLDEST: (u32, u32) = (1, 26);

/// The Go that is brought.
const BROUGHT: &str = "go1.26.0";

/// A Go that is new enough.
#[derive(Clone, Debug)]
pub(super) struct Go {
    program: PathBuf,
}

impl Go {
    /// Finds Go, or brings it.
    pub(super) fn obtain() -> Result<Self> {
        let brought = layout::cache()?.join(BROUGHT);
        let places = [PathBuf::from("go"), "/usr/local/go/bin/go".into(), brought.join("bin/go")];
        if let Some(program) = places.iter().find(|place| version(place).is_some_and(|found| found >= OLDEST))
        {
            return Ok(Self { program: program.clone() });
        }
        bring(&places[..2], &brought)?;
        Ok(Self { program: brought.join("bin/go") })
    }

    /// Returns a command of this Go's: for programs without C, with the least priority.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new("nice");
        command.arg(&self.program).env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "local").env_remove("GOROOT");
        command
    }
}

/// Asks a Go for its version, which may not be there.
fn version(program: &Path) -> Option<(u32, u32)> {
    let mut command = Command::new(program);
    // Another version than its own would be downloaded just to answer.
    command.arg("version").env("GOTOOLCHAIN", "local").current_dir("/");
    major_minor(&command::probe(&mut command)?)
}

/// Reads `go version go1.26.8 linux/amd64` as (1, 26).
fn major_minor(answer: &str) -> Option<(u32, u32)> {
    let mut numbers = answer.split_whitespace().nth(2)?.strip_prefix("go")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Brings Go into `folder`, with an older one that is here or with Debian's.
fn bring(here: &[PathBuf], folder: &Path) -> Result<()> {
    println!("cluster: Go {}.{} or newer is missing; bringing {BROUGHT} into the cache", OLDEST.0, OLDEST.1);
    let scratch = layout::cache()?.join(format!("{BROUGHT}.partial"));
    if scratch.exists() {
        fs::remove_dir_all(&scratch).with_context(|| format!("deleting {}", scratch.display()))?;
    }
    fs::create_dir_all(&scratch).with_context(|| format!("creating {}", scratch.display()))?;
    // A module of no name, since old versions download nothing outside of one.
    fs::write(scratch.join("go.mod"), "module scratch\n").context("writing a go.mod")?;
    let mut go = match here.iter().find(|place| version(place).is_some()) {
        Some(program) => Command::new(program),
        None => debians()?,
    };
    let module = format!("golang.org/toolchain@v0.0.1-{BROUGHT}.linux-{}", architecture());
    let modules = scratch.join("modules");
    go.current_dir(&scratch).args(["mod", "download", &module]);
    go.env("GOTOOLCHAIN", "local").env("GOFLAGS", "-modcacherw").env("GOMODCACHE", &modules);
    command::run(&mut go).with_context(|| format!("downloading {BROUGHT}"))?;
    let unpacked = modules.join(&module);
    make_executable(&unpacked.join("bin"))?;
    make_executable(&unpacked.join(format!("pkg/tool/linux_{}", architecture())))?;
    fs::rename(&unpacked, folder).with_context(|| format!("moving Go to {}", folder.display()))?;
    fs::remove_dir_all(&scratch).with_context(|| format!("deleting {}", scratch.display()))
}

/// Debian's Go, unpacked into the cache.
fn debians() -> Result<Command> {
    let folder = layout::cache()?.join("debian-go");
    let wanted = Wanted {
        task: "cluster",
        what: "Go".to_owned(),
        prefix: "golang-1.",
        pick: &|names| names.lines().find(|name| name.ends_with("-go")),
    };
    wanted.unpack_into(&folder)?;
    let roots = folder.join("usr/lib");
    let root = crate::debian::only_entry(&roots, "go-1.").context("Debian's Go is not where it was")?;
    let mut command = Command::new(root.join("bin/go"));
    command.env("GOROOT", root);
    Ok(command)
}

/// Gives the files of a folder the permission that archives of modules do not keep.
fn make_executable(folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("reading {}", folder.display()))?.path();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("making {} executable", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_version_of_go_from_its_own_words() {
        assert_eq!(major_minor("go version go1.26.8 linux/amd64"), Some((1, 26)));
        assert_eq!(major_minor("go version go1.26rc1 linux/amd64"), None);
    }
}
