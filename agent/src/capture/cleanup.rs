//! `culvert cleanup`: leaves the node as if there had never been an agent.

use std::path::Path;

use super::{Error, lock::Lock, pins};

/// Removes what agents of one node, or of all, have pinned.
pub(super) fn run(node: Option<&str>, bpffs: &Path) -> Result<Vec<String>, Error> {
    let nodes = match node {
        Some(node) => vec![node.to_owned()],
        None => pins::nodes(bpffs)?,
    };
    let mut removed = Vec::new();
    for node in nodes {
        let directory = pins::node_directory(bpffs, &node)?;
        let lock = Lock::acquire(&node)?;
        if directory.exists() {
            let pins = pins::remove_tree(&directory)?;
            removed.extend(pins.iter().map(|path| path.display().to_string()));
        }
        lock.remove();
    }
    pins::remove_root(bpffs);
    Ok(removed)
}
