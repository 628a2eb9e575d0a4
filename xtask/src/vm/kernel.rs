//! Debian's cloud kernels: downloaded and unpacked into the cache, never installed.

use std::{
    cmp::Ordering,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::Kernel;
use crate::{command, layout};

/// An unpacked kernel.
pub(super) struct Unpacked {
    /// The bootable image.
    pub(super) image: PathBuf,
    /// The folder of its modules.
    pub(super) modules: PathBuf,
}

/// Returns a kernel of the series from the cache, downloading the newest where the cache holds none.
pub(super) fn obtain(kernel: Kernel) -> Result<Unpacked> {
    let folder = layout::cache()?.join("kernels").join(kernel.series());
    if !folder.is_dir() {
        download(kernel, &folder)?;
    }
    let image = only_entry(&folder.join("boot"), "vmlinuz-");
    let modules = only_entry(&folder.join("lib/modules"), "");
    let advice = || format!("{} is incomplete: delete it and try again", folder.display());
    Ok(Unpacked { image: image.with_context(advice)?, modules: modules.with_context(advice)? })
}

fn only_entry(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.filter_map(Result::ok);
    let mut fitting = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    fitting.next().map(|entry| entry.path())
}

/// Downloads and unpacks beside `folder` first, so that an interrupted download leaves nothing that looks whole.
fn download(kernel: Kernel, folder: &Path) -> Result<()> {
    let partial = folder.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| format!("deleting {}", partial.display()))?;
    }
    fs::create_dir_all(&partial).with_context(|| format!("creating {}", partial.display()))?;
    let package = fetch_package(kernel, &partial)?;
    command::run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&partial))?;
    fs::remove_file(&package).with_context(|| format!("deleting {}", package.display()))?;
    fs::rename(&partial, folder).with_context(|| format!("moving the kernel to {}", folder.display()))
}

/// Downloads the package with apt's own lists, or with fresh ones kept in the cache where those are absent or outdated:
/// renewing apt's own would need root.
fn fetch_package(kernel: Kernel, into: &Path) -> Result<PathBuf> {
    let lists = layout::cache()?.join("apt");
    let private = private_lists(&lists);
    for options in [&[] as &[String], &private] {
        if !options.is_empty() {
            println!(
                "vm: apt's lists do not lead to a kernel {kernel}; getting fresh ones into {}",
                lists.display()
            );
            fs::create_dir_all(lists.join("partial")).context("making room for apt's lists")?;
            command::run(Command::new("apt-get").args(options).args(["update", "-qq"]))?;
        }
        let names =
            command::output(Command::new("apt-cache").args(options).args(["pkgnames", "linux-image-"]))?;
        let Some(name) = newest(kernel, &names) else { continue };
        println!("vm: downloading {name} into the cache; this machine's own kernel is not touched");
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
            return only_entry(into, "linux-image-").context("apt-get downloaded nothing");
        }
    }
    ensure!(cfg!(target_arch = "x86_64"), "the virtual machine is for x86_64 alone");
    anyhow::bail!(
        "no package linux-image-{kernel}*-cloud-amd64 can be downloaded; are Debian 12's archives in apt's sources?"
    )
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

/// Picks the newest signed cloud kernel of a series.
fn newest(kernel: Kernel, names: &str) -> Option<&str> {
    let prefix = format!("linux-image-{}.", kernel.series());
    let fitting = names.lines().filter(|name| name.starts_with(&prefix) && name.ends_with("-cloud-amd64"));
    fitting.max_by(|a, b| compare(a, b))
}

/// Orders names by the numbers in them.
fn compare(a: &str, b: &str) -> Ordering {
    let numbers = |name: &str| -> Vec<u64> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
    };
    numbers(a).cmp(&numbers(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_the_newest_of_the_series() {
        let names = "linux-image-6.1.0-9-cloud-amd64\nlinux-image-6.1.0-56-cloud-amd64\n\
                     linux-image-6.1.0-57-cloud-amd64-unsigned\nlinux-image-6.12.9+deb12-cloud-amd64\n\
                     linux-image-6.12.117+deb12-cloud-amd64\nlinux-image-6.12.117+deb12-cloud-amd64-dbg\n\
                     linux-image-6.12-cloud-amd64\nlinux-image-6.1.0-58-amd64";
        assert_eq!(newest(Kernel::V6_1, names), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(newest(Kernel::V6_12, names), Some("linux-image-6.12.117+deb12-cloud-amd64"));
        assert_eq!(newest(Kernel::V6_12, ""), None);
    }
}
