//! `culvert cleanup`: leaves the node as if there had never been an agent.

use std::{collections::BTreeSet, path::Path};

use super::{Error, lock::Lock, pins};
use crate::run_directory;

/// Removes what agents of one node, or of all, have pinned, and their files in `/run/culvert`. Nothing is removed where
/// one of them runs.
pub(super) fn run(node: Option<&str>, bpffs: &Path) -> Result<Vec<String>, Error> {
    let nodes = match node {
        Some(node) => BTreeSet::from([node.to_owned()]),
        None => pins::nodes(bpffs)?.into_iter().chain(run_directory::nodes()).collect(),
    };
    let locked: Vec<_> = nodes
        .iter()
        .map(|node| Ok((pins::node_directory(bpffs, node)?, Lock::acquire(node)?)))
        .collect::<Result<_, Error>>()?;
    let mut removed = Vec::new();
    for (directory, lock) in locked {
        if directory.exists() {
            removed.extend(pins::remove_tree(&directory)?);
        }
        removed.extend(lock.remove());
    }
    pins::remove_root(bpffs);
    Ok(removed.iter().map(|path| path.display().to_string()).collect())
}
