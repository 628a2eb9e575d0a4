//! The root of the cgroup v2 hierarchy, and the cgroups in it that the kubelet keeps pods in.

use std::{
    fs,
    fs::File,
    io,
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use agent_ebpf::MAX_KUBEPODS;

use super::Error;
use crate::sandbox::{self, each_kubepods};

/// The inode of a kernfs root directory. A cgroup namespace shows another directory as the root, which has another.
const ROOT_INODE: u64 = 1;

/// The root of the cgroup v2 hierarchy, where the programs see every process of the machine.
#[derive(Debug)]
pub(super) struct Root {
    directory: File,
    path: PathBuf,
}

/// Where the node's pods are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum PodCgroups {
    /// Below the cgroups with these ids. None where the node has no kubelet, or one that has not started any pod yet.
    Known(Vec<u64>),
    /// They cannot be told, and why.
    Unknown(String),
}

impl Root {
    /// Opens the root.
    ///
    /// On a hybrid host it is the second, "unified" mount; in a child cgroup namespace what looks like the root is not,
    /// and an attachment there would cover the agent alone.
    ///
    /// # Errors
    /// Where there is no such mount, or none whose directory is the root.
    pub(super) fn open() -> Result<Self, Error> {
        let mounts = mounts().map_err(|error| Error::Cgroup(format!("cannot read {MOUNTS}: {error}")))?;
        let mut seen = None;
        for path in mounts_of("cgroup2", &mounts) {
            let Ok(directory) = File::open(&path) else { continue };
            if directory.metadata().is_ok_and(|metadata| metadata.ino() == ROOT_INODE) {
                return Ok(Self { directory, path });
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

    /// Returns where it is mounted.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the directory, to attach programs to.
    pub(super) fn directory(&self) -> &File {
        &self.directory
    }

    /// Looks for the cgroups that the kubelet keeps pods in.
    pub(super) fn pods(&self) -> PodCgroups {
        match kubepods(&self.path) {
            Ok(ids) if ids.is_empty() && has_version_1_pods() => {
                PodCgroups::Unknown("the kubelet uses cgroup v1; let it use v2".to_owned())
            }
            Ok(mut ids) if ids.len() < MAX_KUBEPODS as usize => {
                ids.sort_unstable();
                PodCgroups::Known(ids)
            }
            Ok(ids) => PodCgroups::Unknown(format!("{} cgroups are called kubepods", ids.len())),
            Err(error) => PodCgroups::Unknown(format!("cannot read {}: {error}", self.path.display())),
        }
    }
}

/// On a hybrid host the kubelet's cgroups are in the hierarchies of version 1, of which a program knows nothing.
fn has_version_1_pods() -> bool {
    let Ok(mounts) = mounts() else { return true };
    mounts_of("cgroup", &mounts).any(|path| kubepods(&path).is_ok_and(|ids| !ids.is_empty()))
}

/// Returns the ids of the cgroups that hold pods, which are their directories' inode numbers.
fn kubepods(root: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    each_kubepods(root, &mut |all| found.push(all.ino()))?;
    Ok(found)
}

// The programs look as far up from a process's cgroup.
const _: () = assert!(sandbox::KUBEPODS_LEVELS == agent_ebpf::KUBEPODS_LEVELS as usize);

/// The mounts that the agent sees.
const MOUNTS: &str = "/proc/self/mounts";

fn mounts() -> io::Result<String> {
    fs::read_to_string(MOUNTS)
}

fn mounts_of(kind: &str, mounts: &str) -> impl Iterator<Item = PathBuf> {
    mounts.lines().filter_map(move |line| {
        let mut fields = line.split(' ');
        let path = fields.nth(1)?;
        (fields.next()? == kind).then(|| PathBuf::from(path.replace("\\040", " ")))
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
        assert_eq!(
            mounts_of("cgroup2", mounts).collect::<Vec<_>>(),
            [PathBuf::from("/sys/fs/cgroup/unified")]
        );
    }

    #[test]
    fn a_mount_without_the_hierarchy_is_none() {
        assert_eq!(mounts_of("cgroup2", "cgroup2 /a tmpfs rw 0 0\n\nproc /proc proc rw 0 0\n").count(), 0);
    }

    #[test]
    fn the_kubelets_cgroups_are_found_at_any_level_and_by_any_name() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            fs::create_dir_all(root.path().join(path)).unwrap();
            fs::metadata(root.path().join(path)).unwrap().ino()
        };
        let mut expected = vec![
            make("kubepods"),
            make("kubepods.slice"),
            make("kubelet.slice/kubelet-kubepods.slice"),
            make("system.slice/docker-1.scope/kubelet.slice/kubelet-kubepods.slice"),
        ];
        make("kubepods.slice/kubepods-burstable.slice");
        make("system.slice/notkubepods.slice");
        make("a/b/c/d/kubepods");
        fs::write(root.path().join("cgroup.procs"), "").unwrap();
        let mut found = kubepods(root.path()).unwrap();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected);
    }
}
