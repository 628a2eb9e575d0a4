//! One look at the node's processes: which one is each pod's sandbox.
//!
//! **Which process.** The one that a container runtime started first in the pod's cgroup:
//!
//! - A container's *init* is a process in one of the pod's cgroups for containers whose parent is not: the runtime's shim
//!   or monitor, which is the host's. All else in a container descends from its init, or was started there by `exec`,
//!   after it; a container ends with its init.
//! - The sandbox is the first container of a pod: the others are made only after it runs, and join its namespaces. So the
//!   oldest init of the pod is the sandbox's (`pause`), as long as that lives, and `pause` never unshares anything. Any
//!   other process of the pod, also an `exec`, is younger, and so never taken, whatever namespace it sits in.
//! - Where the sandbox has no process (CRI-O with `drop_infra_ctr`) or has lost it, the oldest init is a container's. It
//!   joined the sandbox's namespace when it started, and may have left it for one of its own since: its namespace counts
//!   only if it holds the pod's addresses, which is for the caller to check, as ever.
//!
//! **What a pod could do about it.** A process that made itself the oldest init, in a namespace of its own with the pod's
//! address, would have that namespace captured instead of the pod's. It gains what any process gains that evades
//! capture: plaintext without an identity (docs/security.md). It cannot pass for another pod: which pod a process belongs to
//! is read from cgroups that only root makes.
//!
//! Pids, parents and cgroups are read through the host's proc file system, never from `cgroup.procs`, which says 0 for
//! every process outside of the reader's process namespace.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{
    cgroups::{PodCgroup, View},
    process::Process,
};

/// The oldest init of each pod, by the pod's uid.
#[derive(Debug, Default)]
pub(super) struct Survey(HashMap<String, Candidate>);

/// What is most likely a pod's sandbox.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Candidate {
    pub(super) pid: u32,
    start: u64,
    name: String,
    cgroup: PodCgroup,
}

/// What the processes are called that carry a virtual machine or a kernel in user space; the kernel cuts names off after
/// 15 bytes. Kata Containers' shim is in the pod's cgroup as well, unlike others.
const MACHINES: &[&str] = &[
    "containerd-shim",
    "qemu-",
    "cloud-hyperviso",
    "firecracker",
    "dragonball",
    "stratovirt",
    "virtiofsd",
    "runsc",
];

impl Survey {
    /// Looks at every process that the host's proc file system shows.
    pub(super) fn take(proc: &Path, cgroups: &View) -> io::Result<Self> {
        Ok(Self::of(&list(proc, cgroups)?))
    }

    /// Returns what is most likely the sandbox of a pod.
    pub(super) fn sandbox(&self, uid: &str) -> Option<&Candidate> {
        self.0.get(uid)
    }

    /// Picks the oldest init of each pod, of all processes in pods' containers with their parents.
    fn of(processes: &HashMap<u32, (Candidate, u32)>) -> Self {
        let mut oldest: HashMap<String, Candidate> = HashMap::new();
        for (candidate, parent) in processes.values() {
            let uid = &candidate.cgroup.uid;
            if processes.get(parent).is_some_and(|(parent, _)| parent.cgroup.uid == *uid) {
                continue;
            }
            let known = oldest.get(uid);
            if known.is_none_or(|known| (candidate.start, candidate.pid) < (known.start, known.pid)) {
                oldest.insert(uid.clone(), candidate.clone());
            }
        }
        Self(oldest)
    }
}

impl Candidate {
    /// Opens its network namespace, and makes sure that the process was still that one, and in the pod's cgroup, when it
    /// was opened.
    pub(super) fn open(&self, proc: &Path, cgroups: &View) -> io::Result<(File, Process)> {
        let process = Process::open(proc, self.pid)?;
        let netns = process.netns()?;
        let stat = process.stat()?;
        let cgroup = PodCgroup::parse(&cgroups.resolve(&process.cgroup()?));
        if stat.start != self.start || stat.zombie || cgroup.as_ref() != Some(&self.cgroup) {
            return Err(io::Error::new(io::ErrorKind::NotFound, "another process has its pid"));
        }
        Ok((netns, process))
    }

    /// Returns what the process is called where it carries a virtual machine.
    pub(super) fn virtual_machine(&self) -> Option<&str> {
        MACHINES.iter().any(|machine| self.name.starts_with(machine)).then_some(&self.name)
    }
}

/// Returns the processes in pods' containers, each with its parent's pid.
fn list(proc: &Path, cgroups: &View) -> io::Result<HashMap<u32, (Candidate, u32)>> {
    let mut found = HashMap::new();
    let mut trusted = HashMap::new();
    for entry in fs::read_dir(proc)? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Processes come and go.
        let Ok(process) = Process::open(proc, pid) else { continue };
        let Some(cgroup) = process.cgroup().ok() else { continue };
        let Some(cgroup) = PodCgroup::parse(&cgroups.resolve(&cgroup)) else { continue };
        if cgroup.container.is_none() || !is_roots(&mut trusted, cgroups.mount(), &cgroup.pod) {
            continue;
        }
        let Ok(stat) = process.stat() else { continue };
        if !stat.zombie {
            found.insert(pid, (Candidate { pid, start: stat.start, name: stat.name, cgroup }, stat.parent));
        }
    }
    Ok(found)
}

/// Whether a pod's cgroup was made by root: a user of the host may have a hierarchy of his own (systemd's `user@.service`),
/// and in it name whatever he likes.
fn is_roots(known: &mut HashMap<PathBuf, bool>, cgroups: &Path, pod: &Path) -> bool {
    if let Some(known) = known.get(pod) {
        return *known;
    }
    let roots = fs::metadata(cgroups.join(pod)).is_ok_and(|metadata| metadata.uid() == 0);
    known.insert(pod.to_owned(), roots);
    roots
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, parent: u32, start: u64, uid: &str) -> (u32, (Candidate, u32)) {
        let cgroup = PodCgroup {
            uid: uid.to_owned(),
            pod: format!("kubepods/pod{uid}").into(),
            container: Some("abc".to_owned()),
        };
        (pid, (Candidate { pid, start, name: "pause".to_owned(), cgroup }, parent))
    }

    fn check(processes: &[(u32, (Candidate, u32))], expected: Option<u32>) {
        let survey = Survey::of(&processes.iter().cloned().collect());
        assert_eq!(survey.sandbox("one").map(|found| found.pid), expected, "{processes:?}");
    }

    #[test]
    fn the_oldest_process_whose_parent_is_outside_of_the_pod_is_the_sandbox() {
        check(&[process(30, 9, 300, "one"), process(20, 9, 200, "one")], Some(20));
        // A pid may be lower and the process younger.
        check(&[process(10, 9, 300, "one"), process(20, 9, 200, "one")], Some(20));
        check(&[process(20, 9, 200, "one"), process(21, 20, 200, "one")], Some(20));
        check(&[process(20, 9, 200, "two")], None);
    }

    #[test]
    fn a_child_of_the_pods_own_is_never_taken_however_old_it_says_it_is() {
        check(&[process(20, 9, 200, "one"), process(5, 20, 1, "one")], Some(20));
    }

    #[test]
    fn a_parent_in_another_pod_is_outside() {
        check(&[process(20, 19, 200, "one"), process(19, 9, 100, "two")], Some(20));
    }
}
