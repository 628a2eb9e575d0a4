//! Debian's packages: downloaded and unpacked into the cache, never installed, so that none starts a service or replaces a
//! file of the machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{command, layout};

/// A package that is wanted.
pub(crate) struct Wanted<'a> {
    /// What it is for, at the head of the lines that say what is done.
    pub(crate) task: &'static str,
    /// What it is, for people.
    pub(crate) what: String,
    /// How the package's name begins.
    pub(crate) prefix: &'a str,
    /// Picks one of the names that begin so, a line each.
    pub(crate) pick: &'a dyn Fn(&str) -> Option<&str>,
}

impl Wanted<'_> {
    /// Downloads and unpacks it into `folder`, unless that is there. It is unpacked beside first, so that an interrupted
    /// download leaves nothing that looks whole. Returns whether it had to.
    pub(crate) fn unpack_into(&self, folder: &Path) -> Result<bool> {
        if folder.is_dir() {
            return Ok(false);
        }
        let partial = folder.with_extension("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial).with_context(|| format!("deleting {}", partial.display()))?;
        }
        fs::create_dir_all(&partial).with_context(|| format!("creating {}", partial.display()))?;
        let package = self.download(&partial)?;
        command::run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&partial))?;
        fs::remove_file(&package).with_context(|| format!("deleting {}", package.display()))?;
        fs::rename(&partial, folder)
            .with_context(|| format!("moving the {} to {}", self.what, folder.display()))?;
        Ok(true)
    }

    /// Downloads the package with apt's own lists, or with fresh ones kept in the cache where those are absent or
    /// outdated: renewing apt's own would need root.
    fn download(&self, into: &Path) -> Result<PathBuf> {
        let Self { task, what, prefix, pick } = self;
        let lists = layout::cache()?.join("apt");
        let private = private_lists(&lists);
        for options in [&[] as &[String], &private] {
            if !options.is_empty() {
                println!(
                    "{task}: apt's lists do not lead to a {what}; getting fresh ones into {}",
                    lists.display()
                );
                fs::create_dir_all(lists.join("partial")).context("making room for apt's lists")?;
                command::run(Command::new("apt-get").args(options).args(["update", "-qq"]))?;
            }
            let names = command::output(Command::new("apt-cache").args(options).args(["pkgnames", prefix]))?;
            let Some(name) = pick(&names) else { continue };
            println!("{task}: downloading {name} into the cache; it is not installed on this machine");
            let mut download = Command::new("apt-get");
            // apt warns at length that its sandbox user cannot write here.
            download.current_dir(into).args(options).args([
                "-o",
                "APT::Sandbox::User=root",
                "-qq",
                "download",
                name,
            ]);
            if command::run(&mut download).is_ok() {
                return only_entry(into, prefix).context("apt-get downloaded nothing");
            }
        }
        bail!(
            "no package of a {what} ({prefix}…) can be downloaded; are Debian 12's archives in apt's sources?"
        )
    }
}

/// Returns an entry of a folder whose name begins like this.
pub(crate) fn only_entry(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.filter_map(Result::ok);
    let mut fitting = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    fitting.next().map(|entry| entry.path())
}

/// Returns options for apt to keep its lists in `folder`.
fn private_lists(folder: &Path) -> Vec<String> {
    let setting = |name: &str, path: &Path| ["-o".to_owned(), format!("{name}={}", path.display())];
    [
        setting("Dir::State::Lists", folder),
        setting("Dir::Cache::pkgcache", &folder.join("pkgcache.bin")),
        setting("Dir::Cache::srcpkgcache", &folder.join("srcpkgcache.bin")),
        setting("APT::Sandbox::User", Path::new("root")),
    ]
    .concat()
}
