//! Where a pod's network namespace is, as its annotation or the node says, and whether that has changed.

use std::{io, path::Path};

use crate::{
    capture::{self, NetNs},
    mesh::{NetnsRef, Workload},
    sandbox::{Inode, NotFound, Sandbox, Sandboxes},
};

/// Where a pod's network namespace is.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// Where the annotation says, and which namespace that is; none where it leads nowhere.
    Annotated(NetnsRef, Option<Inode>),
    /// In the pod's sandbox.
    Sandbox(Sandbox),
}

impl Place {
    /// Finds it.
    pub(super) fn find(pod: &Workload, sandboxes: &Sandboxes) -> Result<Self, NotFound> {
        match &pod.netns {
            Some(at) => Ok(Self::Annotated(at.clone(), inode(at).ok())),
            None => sandboxes.find(pod).map(Self::Sandbox),
        }
    }

    /// Opens the namespace, ready for listeners.
    pub(super) fn open(&self) -> Result<NetNs, capture::Error> {
        match self {
            Self::Annotated(at, _) => NetNs::open(at),
            Self::Sandbox(sandbox) => {
                let netns = open(sandbox)?;
                let raised = netns.raise_loopback();
                raised.map_err(|source| capture::Error::Netns { netns: netns.to_string(), source })?;
                Ok(netns)
            }
        }
    }

    /// Returns what the process is called that carries the pod's virtual machine, where that has shown itself.
    pub(super) fn virtual_machine(&self, pod: &Workload, sandboxes: &Sandboxes) -> Option<String> {
        match self {
            Self::Annotated(..) => None,
            Self::Sandbox(_) => sandboxes.virtual_machine(pod),
        }
    }

    /// Returns whether an annotation leads another pod to the same place.
    pub(super) fn is_also_of(&self, other: &Workload) -> bool {
        matches!(self, Self::Annotated(at, _) if other.netns.as_ref() == Some(at))
    }

    /// Returns whether the pod has another namespace now. One whose sandbox is gone, and has no other yet, has not: what it
    /// had stays captured, and fails closed.
    pub(super) fn has_moved(&mut self, pod: &Workload, sandboxes: &Sandboxes) -> bool {
        match (&*self, &pod.netns) {
            // The same name may lead to another namespace: the pod's sandbox was made anew.
            (Self::Annotated(known, was), Some(now)) => {
                known != now || inode(now).is_ok_and(|now| *was != Some(now))
            }
            (Self::Sandbox(known), None) => {
                if sandboxes.is_current(pod, known) {
                    return false;
                }
                let Ok(found) = sandboxes.find(pod) else { return false };
                let moved = found.inode() != known.inode();
                if !moved {
                    *self = Self::Sandbox(found);
                    return false;
                }
                // Without its first process, the pod may be seen by one that sits elsewhere.
                holds(&found, pod)
            }
            (Self::Annotated(..), None) | (Self::Sandbox(_), Some(_)) => true,
        }
    }
}

fn open(sandbox: &Sandbox) -> Result<NetNs, capture::Error> {
    let name = sandbox.name();
    let file = sandbox.netns();
    let file = file.map_err(|source| capture::Error::Netns { netns: name.to_owned(), source })?;
    NetNs::from_file(file, name)
}

fn holds(sandbox: &Sandbox, pod: &Workload) -> bool {
    let held = open(sandbox).ok().and_then(|netns| netns.addresses().ok()).unwrap_or_default();
    !pod.addresses.is_empty() && pod.addresses.iter().all(|address| held.contains(&address.to_canonical()))
}

/// Returns which namespace the annotation leads to now.
fn inode(at: &NetnsRef) -> io::Result<Inode> {
    match at {
        NetnsRef::Path(path) => Inode::at(path),
        NetnsRef::Pid(pid) => Inode::at(Path::new(&format!("/proc/{pid}/ns/net"))),
    }
}
