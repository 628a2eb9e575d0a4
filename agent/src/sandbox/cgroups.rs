//! How the kubelet and the container runtimes name the cgroups of pods and containers.
//!
//! Followed: the kubelet's `pkg/kubelet/cm` (`kubepods`, the QoS classes, `--cgroup-root`, the names that systemd wants),
//! containerd's CRI plugin (`<id>`, `cri-containerd-<id>.scope`) and CRI-O (`crio-<id>`, with the suffix `.scope`
//! under systemd; `crio-conmon-<id>` for the monitor).

use std::{
    fs::{self, DirEntry},
    io,
    path::{Path, PathBuf},
    process,
};

/// How far below the root of the hierarchy the cgroup of all pods may be.
pub const KUBEPODS_LEVELS: usize = 4;

/// Longer than any uid of Kubernetes'.
const MAX_UID: usize = 64;

/// Returns whether the kubelet gives the cgroup of all pods this name, by either of its drivers, with `--cgroup-root` or
/// without.
fn is_kubepods(name: &str) -> bool {
    matches!(name, "kubepods" | "kubepods.slice") || name.ends_with("-kubepods.slice")
}

/// Hands each cgroup of all pods in a hierarchy to `visit`. There is none before the kubelet has started a pod.
///
/// # Errors
/// The first directory that could not be read. Those beside it are visited nevertheless, and one that goes meanwhile is no
/// error.
pub fn each_kubepods(root: &Path, visit: &mut dyn FnMut(&DirEntry)) -> io::Result<()> {
    each_below(root, KUBEPODS_LEVELS, visit)
}

fn each_below(directory: &Path, levels: usize, visit: &mut dyn FnMut(&DirEntry)) -> io::Result<()> {
    let mut outcome = Ok(());
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        if entry.file_name().to_str().is_some_and(is_kubepods) {
            visit(&entry);
        } else if levels > 1 {
            match each_below(&entry.path(), levels - 1, visit) {
                // Cgroups come and go.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {}
                below => outcome = outcome.and(below),
            }
        }
    }
    outcome
}

/// The host's cgroup v2 hierarchy as this process sees it.
///
/// `/proc/PID/cgroup` says where a process is from the root of the *reader's* cgroup namespace, with as many steps up as it
/// takes (cgroup_namespaces(7)); a container usually has such a namespace, and its root is the container's own cgroup.
#[derive(Debug)]
pub(super) struct View {
    /// Where the root of the whole hierarchy is mounted.
    mount: PathBuf,
    /// The root of the own cgroup namespace, below it.
    root: Vec<String>,
}

impl View {
    /// Finds the root of the own namespace: of all cgroups, this process is in one.
    pub(super) fn new(mount: &Path) -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let own = own.trim_end_matches('/');
        let seen = |found: &Path| found.strip_prefix(mount).ok()?.to_str().map(str::to_owned);
        let root = match holds_us(&mount.join(own)) {
            true => String::new(),
            false => {
                let found = search(mount).and_then(|found| seen(&found)).unwrap_or_default();
                found.strip_suffix(own).unwrap_or_default().to_owned()
            }
        };
        let root = root.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Self { mount: mount.to_owned(), root }
    }

    /// Returns where the root of the whole hierarchy is mounted.
    pub(super) fn mount(&self) -> &Path {
        &self.mount
    }

    /// Makes a path from the root of the hierarchy of one from the root of the own namespace.
    pub(super) fn resolve(&self, path: &str) -> String {
        let mut names: Vec<&str> = self.root.iter().map(String::as_str).collect();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            match name {
                ".." => drop(names.pop()),
                name => names.push(name),
            }
        }
        format!("/{}", names.join("/"))
    }
}

/// Looks for the cgroup that this process is in. Others are 0 in the lists, or have pids of their own.
fn search(directory: &Path) -> Option<PathBuf> {
    if holds_us(directory) {
        return Some(directory.to_owned());
    }
    let entries = fs::read_dir(directory).ok()?.flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).find_map(|path| search(&path))
}

fn holds_us(directory: &Path) -> bool {
    let own = process::id().to_string();
    let listed: io::Result<String> = fs::read_to_string(directory.join("cgroup.procs"));
    listed.is_ok_and(|listed| listed.lines().any(|pid| pid == own))
}

/// Where a process is that runs in a pod's cgroup.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct PodCgroup {
    /// The pod's uid.
    pub(super) uid: String,
    /// The pod's cgroup, below the root of the hierarchy.
    pub(super) pod: PathBuf,
    /// The container's cgroup in it; none for what a runtime keeps beside the containers (CRI-O's monitor, a shim).
    pub(super) container: Option<String>,
}

impl PodCgroup {
    /// Reads a path of the hierarchy (`/kubepods/burstable/pod<uid>/<id>/…`). Only its first cgroup of all pods counts: what
    /// a container makes below its own has whatever name it likes.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let names: Vec<_> = path.strip_prefix('/')?.split('/').collect();
        let all_at = names.iter().take(KUBEPODS_LEVELS).position(|name| is_kubepods(name))?;
        let all = names[all_at];
        let pod_at = all_at + if is_qos(names.get(all_at + 1)?, all) { 2 } else { 1 };
        let uid = pod_uid(names.get(pod_at)?, all)?;
        let pod = names[..=pod_at].iter().collect();
        let container = names.get(pod_at + 1).filter(|container| !is_monitor(container));
        let container = container.map(|container| (*container).to_owned());
        Some(Self { uid, pod, container })
    }
}

/// Returns whether the name is that of a QoS class's cgroup in the one of all pods.
pub(super) fn is_qos(name: &str, all: &str) -> bool {
    match all.strip_suffix(".slice") {
        None => matches!(name, "burstable" | "besteffort"),
        Some(stem) => ["burstable", "besteffort"].iter().any(|class| name == format!("{stem}-{class}.slice")),
    }
}

/// Returns the uid in the name of a pod's cgroup.
pub(super) fn pod_uid(name: &str, all: &str) -> Option<String> {
    let uid = match all.strip_suffix(".slice") {
        None => name.strip_prefix("pod")?.to_owned(),
        // systemd takes "-" for a step down, so the kubelet writes the uid's as "_".
        Some(stem) => {
            let rest = name.strip_suffix(".slice")?.strip_prefix(stem)?.strip_prefix('-')?;
            let rest = rest.strip_prefix("burstable-").or(rest.strip_prefix("besteffort-")).unwrap_or(rest);
            rest.strip_prefix("pod")?.replace('_', "-")
        }
    };
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (!uid.is_empty() && uid.len() <= MAX_UID && uid.bytes().all(valid)).then_some(uid)
}

/// CRI-O's monitor of a container may be told to live in the pod's cgroup, and is the host's.
fn is_monitor(name: &str) -> bool {
    name.starts_with("crio-conmon-")
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "3ad2ad9f-0a8c-4d48-a8ac-9c9e0d6a0b1c";

    fn check(path: &str, expected: Option<(&str, Option<&str>)>) {
        let path = path.replace("UID", UID).replace("U_I_D", &UID.replace('-', "_"));
        let found = PodCgroup::parse(&path);
        let expected = expected.map(|(pod, container)| PodCgroup {
            uid: UID.to_owned(),
            pod: pod.replace("UID", UID).replace("U_I_D", &UID.replace('-', "_")).into(),
            container: container.map(str::to_owned),
        });
        assert_eq!(found, expected, "{path}");
    }

    #[test]
    fn a_path_from_another_cgroup_namespace_is_resolved_from_where_its_root_is() {
        let root = ["kubepods", "burstable", "podagent", "abc"].map(str::to_owned).to_vec();
        let view = View { mount: "/sys/fs/cgroup".into(), root };
        for (path, expected) in [
            ("/", "/kubepods/burstable/podagent/abc"),
            ("/../../podone/def", "/kubepods/burstable/podone/def"),
            ("/../../../podtwo/def", "/kubepods/podtwo/def"),
            ("/../../../../system.slice", "/system.slice"),
            ("/../../../../../../elsewhere", "/elsewhere"),
        ] {
            assert_eq!(view.resolve(path), expected);
        }
        let view = View { mount: "/sys/fs/cgroup".into(), root: Vec::new() };
        assert_eq!(view.resolve("/kubepods/podone/def"), "/kubepods/podone/def");
    }

    #[test]
    fn every_layout_is_read() {
        check("/kubepods/podUID/abc", Some(("kubepods/podUID", Some("abc"))));
        check("/kubepods/burstable/podUID/abc", Some(("kubepods/burstable/podUID", Some("abc"))));
        check(
            "/node/kubepods/besteffort/podUID/abc/deep/er",
            Some(("node/kubepods/besteffort/podUID", Some("abc"))),
        );
        check(
            "/kubepods.slice/kubepods-podU_I_D.slice/cri-containerd-abc.scope",
            Some(("kubepods.slice/kubepods-podU_I_D.slice", Some("cri-containerd-abc.scope"))),
        );
        check(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_I_D.slice/crio-abc.scope/container",
            Some((
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_I_D.slice",
                Some("crio-abc.scope"),
            )),
        );
        check(
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podU_I_D.slice/crio-abc.scope",
            Some((
                "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podU_I_D.slice",
                Some("crio-abc.scope"),
            )),
        );
    }

    #[test]
    fn a_runtimes_own_process_in_a_pods_cgroup_is_in_no_container() {
        check("/kubepods/podUID/crio-conmon-abc", Some(("kubepods/podUID", None)));
        check("/kubepods/podUID", Some(("kubepods/podUID", None)));
    }

    #[test]
    fn what_is_no_pods_cgroup_is_none() {
        check("/", None);
        check("/kubepods", None);
        check("/kubepods/burstable", None);
        check("/kubepods/pod", None);
        check("/kubepods/other/podUID/abc", None);
        check("/kubepods.slice/podUID/abc", None);
        check("/kubepods.slice/other-podU_I_D.slice/abc", None);
        check("/a/b/c/d/kubepods/podUID/abc", None);
        check("/system.slice/containerd.service", None);
        check("/../../podUID/abc", None);
    }

    #[test]
    fn what_a_container_makes_below_its_own_cgroup_is_its_own() {
        let path = format!("/kubepods/podmine/abc/kubepods/pod{UID}/def");
        assert_eq!(PodCgroup::parse(&path).unwrap().uid, "mine");
    }
}
