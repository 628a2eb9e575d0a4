//! What a cluster's things are called, and where they are: all of it follows from the cluster's name, so that whoever
//! comes next finds what a killed process has left.

use std::{
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::netns;

/// Where clusters are kept, a directory each. Each is a file system of its own in memory.
const CLUSTERS: &str = "/run/culvert-cluster";

/// Longer ones would make the names of a node's sockets longer than `sun_path`.
const LONGEST_NAME: usize = 20;

/// The names of one cluster.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    name: String,
}

impl Place {
    /// # Errors
    /// Where the name is not of lower-case letters and digits. A hyphen ends the cluster's part of a node's name; with one
    /// inside, two clusters could have things of the same name.
    pub(crate) fn new(name: &str) -> Result<Self> {
        let fits = name.starts_with(|first: char| first.is_ascii_lowercase())
            && name.len() <= LONGEST_NAME
            && name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit());
        ensure!(
            fits,
            "a cluster's name is of at most {LONGEST_NAME} lower-case letters and digits, beginning with a letter, \
             unlike {name:?}"
        );
        Ok(Self { name: name.to_owned() })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The name of one of its namespaces, and of a node in Kubernetes, which no other cluster on this machine has: agents
    /// keep their pins by it.
    pub(crate) fn unique(&self, what: &str) -> String {
        format!("{}-{what}", self.name)
    }

    /// What the names of all its namespaces, nodes and cgroups begin with.
    pub(crate) fn prefix(&self) -> String {
        self.unique("")
    }

    pub(crate) fn netns(&self, what: &str) -> PathBuf {
        Path::new(netns::DIRECTORY).join(self.unique(what))
    }

    pub(crate) fn directory(&self) -> PathBuf {
        Path::new(CLUSTERS).join(&self.name)
    }

    /// The logs of everything that runs outside pods.
    pub(crate) fn logs(&self) -> PathBuf {
        self.directory().join("logs")
    }

    /// Who runs as what: a file for each daemon.
    pub(crate) fn daemons(&self) -> PathBuf {
        self.directory().join("daemons")
    }

    /// Keys, certificates, tokens and kubeconfigs.
    pub(crate) fn credentials(&self) -> PathBuf {
        self.directory().join("credentials")
    }

    /// What a node has in place of the machine's own directories.
    pub(crate) fn node(&self, node: &str) -> PathBuf {
        self.directory().join(node)
    }

    /// The names of the nodes; exists once the cluster has come up.
    pub(crate) fn ready(&self) -> PathBuf {
        self.directory().join("ready")
    }

    /// The names of all clusters that have left a directory.
    pub(crate) fn all() -> Vec<String> {
        let entries = std::fs::read_dir(CLUSTERS).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Removes the directory that holds those of all clusters, where this was the last.
    pub(crate) fn remove_empty_parent() {
        // An error means that there is another cluster.
        let _ = std::fs::remove_dir(CLUSTERS);
    }

    /// Makes this process the only one that changes the cluster, until the claim is dropped or the process ends.
    pub(crate) fn claim(&self) -> Result<Claim> {
        // An abstract name: it vanishes with its process, and leaves no file.
        let address = SocketAddr::from_abstract_name(format!("culvert-cluster/{}", self.name))
            .context("a name for the claim")?;
        let listener = UnixListener::bind_addr(&address).with_context(|| {
            format!(
                "another process is at work on the cluster {0} (`ss -xlp | grep culvert-cluster/{0}` says which)",
                self.name
            )
        })?;
        Ok(Claim { _listener: listener })
    }
}

/// Held while a cluster is made, used by tests, or removed.
#[derive(Debug)]
pub(crate) struct Claim {
    _listener: UnixListener,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_hyphen_is_refused() {
        for wrong in ["", "a-b", "A", "1a", "a/b", "abcdefghijklmnopqrstuvwxyz"] {
            assert!(Place::new(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Place::new("a1").unwrap().unique("node-a"), "a1-node-a");
    }

    #[test]
    fn a_cluster_that_is_claimed_cannot_be_claimed_again() {
        let place = Place::new("claimtest").unwrap();
        let claim = place.claim().unwrap();
        assert!(place.claim().is_err());
        drop(claim);
        place.claim().unwrap();
    }
}
