//! Where maps and links are pinned: `<bpffs>/culvert/<node>/layout-<version>/`.
//!
//! The version is of the maps' layout ([`agent_ebpf::LAYOUT`]): an agent adopts the pins of its own version. Those of
//! another keep failing closed beside them, since nobody listens for them any more, until every pod is enrolled anew
//! and they are removed.

use std::{
    fs::{self, DirBuilder},
    io,
    os::{fd::AsFd as _, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::{Error, sys};

/// The directory of all nodes.
const ROOT: &str = "culvert";

/// The paths of one node's pins.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    node: PathBuf,
    layout: PathBuf,
}

impl Pins {
    /// Makes the directories, and mounts the BPF file system where it is not.
    pub(super) fn create(bpffs: &Path, node: &str) -> Result<Self, Error> {
        mount_bpffs(bpffs)?;
        let node = node_directory(bpffs, node)?;
        let layout = node.join(format!("layout-{}", agent_ebpf::LAYOUT));
        let pins = Self { node, layout };
        DirBuilder::new()
            .recursive(true)
            // What is pinned here steers every pod's traffic.
            .mode(0o700)
            .create(&pins.layout)
            .map_err(Error::pin(&pins.layout, "cannot make the directory for pins"))?;
        Ok(pins)
    }

    /// Returns where a map is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.layout.join(name)
    }

    /// Returns where the link of a program is pinned that serves the whole node.
    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.layout.join(format!("link-{program}"))
    }

    /// Returns where the `sk_lookup` link of a pod is pinned.
    pub(super) fn pod_link(&self, netns: u64) -> PathBuf {
        self.layout.join(format!("pod-{netns}"))
    }

    /// Returns where the map of the handshakes of a pod is pinned, which its copies of the program have in common: one that
    /// takes the place of another finds what is under way.
    pub(super) fn pod_handshakes(&self, netns: u64) -> PathBuf {
        self.layout.join(format!("handshakes-{netns}"))
    }

    /// Removes what is pinned for pods whose enrolment an earlier agent did not live to finish.
    pub(super) fn remove_pods_except(&self, enrolled: &[u64]) -> Result<(), Error> {
        for path in entries(&self.layout)? {
            let netns = path.file_name().and_then(|name| {
                let name = name.to_str()?;
                name.strip_prefix("pod-").or_else(|| name.strip_prefix("handshakes-"))?.parse().ok()
            });
            if netns.is_some_and(|netns| !enrolled.contains(&netns)) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Removes what agents of another layout left.
    pub(super) fn remove_other_layouts(&self) -> Result<(), Error> {
        for path in entries(&self.node)? {
            if path != self.layout {
                remove_tree(&path)?;
            }
        }
        Ok(())
    }
}

/// Returns the directory of a node's pins. The BPF file system takes no name with a dot; a node's name, a DNS subdomain,
/// has no underscore.
pub(super) fn node_directory(bpffs: &Path, node: &str) -> Result<PathBuf, Error> {
    let valid = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    if node.is_empty() || node.len() > 253 || !node.bytes().all(valid) {
        let what = "not a node's name: letters, digits, '-' and '.' only, at most 253";
        return Err(Error::pin(node, what)(io::ErrorKind::InvalidInput.into()));
    }
    Ok(bpffs.join(ROOT).join(node.replace('.', "_")))
}

/// Returns the names of the nodes that have pins.
pub(super) fn nodes(bpffs: &Path) -> Result<Vec<String>, Error> {
    let name = |path: &PathBuf| Some(path.file_name()?.to_str()?.replace('_', "."));
    Ok(entries(&bpffs.join(ROOT))?.iter().filter_map(name).collect())
}

/// Removes the directory of all nodes where it is empty.
pub(super) fn remove_root(bpffs: &Path) {
    // Another node's pins keep it.
    let _ = fs::remove_dir(bpffs.join(ROOT));
}

/// Detaches what is pinned at a path, if it is a link, and unpins it. That nothing is there is no error.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    if let Ok(pinned) = sys::open_pin(path) {
        // Maps and programs are no links, and a link whose namespace has gone is detached already.
        let _ = sys::link_detach(pinned.as_fd());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::pin(path, "cannot unpin")(error)),
        _ => Ok(()),
    }
}

/// Removes all pins below a directory and the directory; returns the pins. Links go first, so that no program runs with
/// a part of its maps' entries.
pub(super) fn remove_tree(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut removed = Vec::new();
    let mut found = entries(directory)?;
    found.sort_by_key(|path| !is_link(path));
    for path in found {
        if path.is_dir() {
            removed.extend(remove_tree(&path)?);
        } else {
            remove(&path)?;
            removed.push(path);
        }
    }
    fs::remove_dir(directory).map_err(Error::pin(directory, "cannot remove the directory"))?;
    Ok(removed)
}

/// Returns what is in a directory; nothing where there is none.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let paths = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing.and_then(|listing| listing.map(|entry| Ok(entry?.path())).collect()),
    };
    paths.map_err(Error::pin(directory, "cannot list the pins"))
}

fn is_link(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.starts_with("link-") || name.starts_with("pod-"))
}

fn mount_bpffs(path: &Path) -> Result<(), Error> {
    let kind = statfs(path)
        .map_err(|errno| Error::pin(path, "no such directory for the BPF file system")(errno.into()))?;
    if kind.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    mount(
        Some("bpf"),
        path,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        None::<&str>,
    )
    .map_err(|errno| Error::pin(path, "cannot mount the BPF file system")(errno.into()))
}
