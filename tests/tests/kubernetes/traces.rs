//! What Culvert leaves on nodes: files, pins, and objects of the kernel's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use lab::{Cluster, ClusterNode};
use serde_json::Value;

static BEFORE: OnceLock<Traces> = OnceLock::new();

/// What Culvert could leave on nodes, by path: files with their content, and pins.
pub(crate) type Traces = BTreeMap<String, Vec<u8>>;

/// Keeps what is on the nodes now: Culvert was not installed yet.
pub(crate) fn look_before(cluster: &Cluster) {
    BEFORE.get_or_init(|| traces(cluster));
}

/// What was on the nodes before Culvert was installed.
pub(crate) fn before() -> &'static Traces {
    BEFORE.get().expect("it is installed")
}

/// What is on the nodes: the CNI's configuration, byte for byte, and its plugins; files of Culvert's own; pins.
pub(crate) fn traces(cluster: &Cluster) -> Traces {
    let mut found = Traces::new();
    for node in cluster.nodes() {
        for folder in [node.cni_conf_dir(), node.cni_bin_dir(), node.path("/run/culvert")] {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                // A socket has no content.
                let content = fs::read(entry.path()).unwrap_or_default();
                found.insert(entry.path().display().to_string(), content);
            }
        }
        let pins = pins(node);
        if pins.exists() {
            found.insert(pins.display().to_string(), Vec::new());
        }
    }
    found
}

/// Where a node's agent pins what it puts into the kernel.
fn pins(node: &ClusterNode) -> PathBuf {
    Path::new("/sys/fs/bpf/culvert").join(node.unique_name())
}

/// What the agents of the cluster have in the kernel and pinned: links, programs and maps, by their ids.
pub(crate) fn kernel_objects(cluster: &Cluster) -> BTreeSet<(&'static str, u64)> {
    let files = |directory: PathBuf| fs::read_dir(directory).into_iter().flatten().flatten();
    let mut pending: Vec<_> = cluster.nodes().iter().map(pins).collect();
    let mut found = BTreeSet::new();
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(files(path).map(|entry| entry.path()));
            continue;
        }
        for kind in KINDS {
            let shown = bpftool(&[kind, "show", "pinned", &path.display().to_string()]);
            found.extend(shown["id"].as_u64().map(|id| (kind, id)));
            found.extend(shown["prog_id"].as_u64().map(|id| ("prog", id)));
        }
    }
    found
}

/// The kinds of objects that the kernel counts.
pub(crate) const KINDS: [&str; 3] = ["link", "prog", "map"];

/// Whether the kernel has an object.
pub(crate) fn is_in_kernel(kind: &str, id: u64) -> bool {
    !bpftool(&[kind, "show", "id", &id.to_string()])["id"].is_null()
}

/// What bpftool prints; null where there is no such object.
fn bpftool(args: &[&str]) -> Value {
    let output = Command::new("bpftool").arg("-j").args(args).output().expect("package bpftool");
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}
