//! The root of the cgroup v2 hierarchy.

use std::{fs, fs::File, os::unix::fs::MetadataExt as _, path::PathBuf};

use super::Error;

/// The inode of a kernfs root directory. A cgroup namespace shows another directory as the root, which has another.
const ROOT_INODE: u64 = 1;

/// Opens the root of the cgroup v2 hierarchy, where the programs see every process of the machine.
///
/// On a hybrid host it is the second, "unified" mount; in a child cgroup namespace what looks like the root is not, and
/// an attachment there would cover the agent alone.
///
/// # Errors
/// Where there is no such mount, or none whose directory is the root.
pub(super) fn root() -> Result<File, Error> {
    let mounts = fs::read_to_string("/proc/self/mounts")
        .map_err(|error| Error::Cgroup(format!("cannot read /proc/self/mounts: {error}")))?;
    let mut seen = None;
    for path in cgroup2_mounts(&mounts) {
        let Ok(directory) = File::open(&path) else { continue };
        if directory.metadata().is_ok_and(|metadata| metadata.ino() == ROOT_INODE) {
            return Ok(directory);
        }
        seen = Some(path);
    }
    Err(Error::Cgroup(match seen {
        Some(path) => format!(
            "{} is not the root but a part of it; run the agent in the host's cgroup namespace \
             (a container needs cgroup namespace \"host\" and the host's /sys/fs/cgroup)",
            path.display()
        ),
        None => "no cgroup2 file system is mounted; mount it with `mount -t cgroup2 none /sys/fs/cgroup`"
            .to_owned(),
    }))
}

fn cgroup2_mounts(mounts: &str) -> impl Iterator<Item = PathBuf> {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let path = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(path.replace("\\040", " ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_unified_mount_of_a_hybrid_host() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(cgroup2_mounts(mounts).collect::<Vec<_>>(), [PathBuf::from("/sys/fs/cgroup/unified")]);
    }

    #[test]
    fn a_mount_without_the_hierarchy_is_none() {
        assert_eq!(cgroup2_mounts("cgroup2 /a tmpfs rw 0 0\n\nproc /proc proc rw 0 0\n").count(), 0);
    }
}
