//! What a cluster could leave on the machine, looked at from outside: by names and by the kernel's own lists.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
};

/// What there is, a line each.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Machine(pub(crate) BTreeSet<String>);

/// Folders of the machine in which Kubernetes usually writes.
const FOLDERS: [&str; 9] = [
    "/var/lib/kubelet",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/log/pods",
    "/var/log/containers",
    "/etc/cni",
    "/opt/cni",
    "/run/containerd",
    "/usr/libexec/kubernetes",
];

/// Values of the machine's one kernel that a kubelet sets.
const SYSCTLS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

impl Machine {
    /// Looks for all of a cluster: what has its name, and processes in `namespaces`.
    pub(crate) fn look(cluster: &str, namespaces: &HashSet<u64>) -> Self {
        let mut found = BTreeSet::new();
        let prefix = format!("{cluster}-");
        for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                found.insert(format!("namespace {:?}", entry.file_name()));
            }
        }
        for line in fs::read_to_string("/proc/self/mounts").unwrap().lines() {
            if line.contains(&prefix) || line.contains(&format!("/{cluster} ")) {
                found.insert(format!("mount {line}"));
            }
        }
        found.extend(processes(&prefix, namespaces).into_iter().map(|process| format!("process {process}")));
        for root in cgroups() {
            for entry in fs::read_dir(root).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with(&prefix) {
                    found.insert(format!("cgroup {}", entry.path().display()));
                }
            }
        }
        for entry in fs::read_dir("/sys/class/net").unwrap().flatten() {
            found.insert(format!("link {:?}", entry.file_name()));
        }
        for folder in FOLDERS {
            if fs::exists(folder).unwrap() {
                found.insert(format!("folder {folder}"));
            }
        }
        let own = format!("/run/culvert-cluster/{cluster}");
        if fs::exists(&own).unwrap() {
            found.insert(format!("folder {own}"));
        }
        for name in SYSCTLS {
            let value = fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap_or_default();
            found.insert(format!("sysctl {name} = {}", value.trim()));
        }
        Self(found)
    }

    /// How many of its lines begin so.
    pub(crate) fn count(&self, kind: &str) -> usize {
        self.0.iter().filter(|line| line.starts_with(kind)).count()
    }
}

/// The namespaces of a cluster, and those of the pods in its cgroups, by their inodes.
pub(crate) fn namespaces(cluster: &str) -> HashSet<u64> {
    let prefix = format!("{cluster}-");
    let named = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let named = named.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    let mut found: HashSet<u64> =
        named.filter_map(|entry| Some(fs::metadata(entry.path()).ok()?.ino())).collect();
    found.extend(processes(&prefix, &HashSet::new()).iter().filter_map(|process| {
        let pid = process.split(' ').next()?;
        Some(fs::metadata(format!("/proc/{pid}/ns/net")).ok()?.ino())
    }));
    found
}

/// Processes in a cgroup whose name begins so, or in one of the namespaces.
fn processes(prefix: &str, namespaces: &HashSet<u64>) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let inode = fs::metadata(entry.path().join("ns/net")).map(|file| file.ino());
        if groups.contains(&format!(":/{prefix}")) || inode.is_ok_and(|inode| namespaces.contains(&inode)) {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            found.push(format!("{pid} {}", name.trim()));
        }
    }
    found
}

/// Where hierarchies are mounted.
fn cgroups() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let cgroups = mounts.lines().filter(|line| matches!(line.split(' ').nth(2), Some("cgroup" | "cgroup2")));
    cgroups.filter_map(|line| Some(line.split(' ').nth(1)?.to_owned())).collect()
}
