//! `/run/culvert`: what the files of a node's agent are called there, and how they are written.
//!
//! They are for root alone. Most outlive the agent, for the next one or for the CNI plugin; `culvert cleanup` removes them all,
//! and a reboot does. What is in each is its writer's business.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Where they are. Not beside the pins: bpffs holds no regular files.
pub const DIRECTORY: &str = "/run/culvert";

/// A file of a node's agent, named `<node><suffix>`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RunFile {
    /// Held by the one agent that has the node.
    Lock,
    /// The socket that `culvert status` asks.
    Socket,
    /// The socket on which the CNI plugin asks the agent.
    PluginSocket,
    /// Which pods are to be in the mesh, for the plugin while no agent answers.
    PluginSaved,
    /// How the plugin reaches the API server while no agent answers.
    PluginKubeconfig,
    /// What the container runtime said of the pods' namespaces.
    Attachments,
}

impl RunFile {
    const ALL: [Self; 6] = [
        Self::Lock,
        Self::Socket,
        Self::PluginSocket,
        Self::PluginSaved,
        Self::PluginKubeconfig,
        Self::Attachments,
    ];

    /// Returns where the node's is.
    pub fn of(self, node: &str) -> PathBuf {
        Path::new(DIRECTORY).join(format!("{node}{}", self.suffix()))
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Lock => ".lock",
            Self::Socket => ".sock",
            Self::PluginSocket => "-cni.sock",
            Self::PluginSaved => "-cni.json",
            Self::PluginKubeconfig => "-kubeconfig",
            Self::Attachments => "-attachments.json",
        }
    }
}

/// Returns the names of the nodes that have a lock file.
pub fn nodes() -> impl Iterator<Item = String> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let node = |name: &str| name.strip_suffix(RunFile::Lock.suffix()).map(str::to_owned);
    entries.filter_map(move |entry| node(entry.file_name().to_str()?))
}

/// Removes every file of a node's agent but the lock, also what was half-written. Returns what there was.
pub fn remove_all_but_lock(node: &str) -> Vec<PathBuf> {
    let files = RunFile::ALL.into_iter().filter(|file| *file != RunFile::Lock).map(|file| file.of(node));
    let paths = files.flat_map(|path| [unfinished(&path), path]);
    paths.filter(|path| fs::remove_file(path).is_ok()).collect()
}

/// Replaces a file's content, whole or not at all, for root alone.
///
/// # Errors
/// Where it cannot be written; it is as it was then.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let unfinished = unfinished(path);
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&unfinished)?;
    file.write_all(content)?;
    fs::rename(&unfinished, path)
}

/// What a killed agent left half-written: the next one overwrites it.
fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn no_two_files_of_a_node_have_one_name() {
        let names: HashSet<_> = RunFile::ALL.iter().map(|file| file.of("node")).collect();
        assert_eq!(names.len(), RunFile::ALL.len());
        assert!(names.contains(Path::new("/run/culvert/node-cni.sock")));
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_is_for_its_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node-cni.json");
        for text in ["longer than the next", "short"] {
            write_private(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(write_private(&directory.path().join("missing/file"), b"").is_err());
    }
}
