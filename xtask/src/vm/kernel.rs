//! Debian's cloud kernels: downloaded and unpacked into the cache, never installed.

use std::{cmp::Ordering, path::PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::Kernel;
use crate::{
    debian::{Wanted, only_entry},
    layout,
};

/// An unpacked kernel.
pub(super) struct Unpacked {
    /// The bootable image.
    pub(super) image: PathBuf,
    /// The folder of its modules.
    pub(super) modules: PathBuf,
}

/// Returns a kernel of the series from the cache, downloading the newest where the cache holds none.
pub(super) fn obtain(kernel: Kernel) -> Result<Unpacked> {
    ensure!(cfg!(target_arch = "x86_64"), "the virtual machine is for x86_64 alone");
    let folder = layout::cache()?.join("kernels").join(kernel.series());
    let wanted = Wanted {
        task: "vm",
        what: format!("kernel {kernel}"),
        prefix: "linux-image-",
        pick: &|names| newest(kernel, names),
    };
    wanted.unpack_into(&folder)?;
    let image = only_entry(&folder.join("boot"), "vmlinuz-");
    let modules = only_entry(&folder.join("lib/modules"), "");
    let advice = || format!("{} is incomplete: delete it and try again", folder.display());
    Ok(Unpacked { image: image.with_context(advice)?, modules: modules.with_context(advice)? })
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
