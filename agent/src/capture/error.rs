//! What can go wrong in capture, each with what to do about it.

use std::{io, net::IpAddr, path::PathBuf};

use agent_ebpf::MAX_PLAINTEXT_OF_POD;
use aya::{EbpfError, maps::MapError, programs::ProgramError};

use super::NetNs;
use crate::mesh::Reason;

/// Why capture failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The root of the cgroup v2 hierarchy cannot be had.
    #[error("the root of the cgroup v2 hierarchy is needed to see every pod's connects: {0}")]
    Cgroup(String),
    /// Another process holds the node's lock.
    #[error(
        "another agent of node {node:?} is running (it holds {path}); stop it first, give this one another --node, or have it \
         take over (--take-over)"
    )]
    Busy {
        /// The node's name.
        node: String,
        /// The lock file.
        path: PathBuf,
    },
    /// The node was handed over to a successor that has ended.
    #[error(
        "the agent that this one handed the node over to has ended: start an agent again, which takes over what is there"
    )]
    Orphaned,
    /// A file, directory or mount could not be made or read.
    #[error("{path}: {what}: {source}")]
    Pin {
        /// The path.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The programs could not be read, or their maps not be made.
    #[error(
        "loading the eBPF programs failed (needs CAP_BPF, CAP_PERFMON and a kernel 5.15 or later with BTF): {0}"
    )]
    Load(#[from] EbpfError),
    /// The kernel refuses a program.
    #[error("eBPF program {name} was refused (needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON): {source}")]
    Program {
        /// The program's name.
        name: &'static str,
        /// Why, with the verifier's log.
        source: ProgramError,
    },
    /// The kernel refuses an operation on a map.
    #[error("eBPF map {name}: {source}")]
    Map {
        /// The map's name.
        name: &'static str,
        /// Why.
        source: MapError,
    },
    /// A pod's network namespace cannot be entered, or its sockets not be made.
    #[error(
        "network namespace {netns}: {source}; the pod may have ended, its annotation culvert.dev/netns lead elsewhere, or the \
         agent lack CAP_SYS_ADMIN or CAP_SYS_PTRACE"
    )]
    Netns {
        /// Which namespace.
        netns: String,
        /// Why.
        source: io::Error,
    },
    /// A namespace that cannot be enrolled.
    #[error("network namespace {netns} cannot be enrolled: {why}")]
    Refused {
        /// Which namespace.
        netns: String,
        /// Why.
        why: String,
    },
    /// More ports than there is room for.
    #[error(
        "the pod of network namespace cookie {netns} has {ports} ports with a rule of their own for plaintext, and \
         {MAX_PLAINTEXT_OF_POD} can have: the agent looks at all of the pod's plaintext, which is slower and as safe; name \
         fewer ports in the policies of the pod"
    )]
    TooManyPorts {
        /// The cookie of the pod's network namespace.
        netns: u64,
        /// How many.
        ports: usize,
    },
    /// Native connections cannot be had.
    #[error("--native: {0}")]
    NoNative(&'static str),
    /// A pod shares its layer-2 segment with others.
    #[error(transparent)]
    Shared(#[from] super::Shared),
    /// An accepted connection that did not come through the connect hook.
    #[error("the connection was not captured: a process in the pod made it straight to the agent's listener")]
    NotCaptured,
}

impl Error {
    /// Returns what the log and the metrics call it, where it ends a connection.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotCaptured => Reason::NotCaptured,
            Self::Netns { .. } | Self::Refused { .. } => Reason::PodGone,
            Self::Cgroup(_)
            | Self::Busy { .. }
            | Self::Orphaned
            | Self::Pin { .. }
            | Self::Load(_)
            | Self::Program { .. }
            | Self::Map { .. }
            | Self::NoNative(_)
            | Self::Shared(_)
            | Self::TooManyPorts { .. } => Reason::Overload,
        }
    }

    pub(super) fn refused(netns: &NetNs, why: impl Into<String>) -> Self {
        Self::Refused { netns: netns.to_string(), why: why.into() }
    }

    pub(super) fn missing(netns: &NetNs, address: IpAddr) -> Self {
        Self::refused(
            netns,
            format!(
                "it does not hold the pod's address {address}: it is another's, or the runtime keeps the address out of reach \
                 of the node's sockets (gVisor, a virtual machine); check runtimeClassName, and the annotation \
                 culvert.dev/netns where the pod has one"
            ),
        )
    }

    pub(super) fn netns(netns: &NetNs) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Netns { netns: netns.to_string(), source }
    }

    pub(super) fn map(name: &'static str) -> impl FnOnce(MapError) -> Self {
        move |source| Self::Map { name, source }
    }

    pub(super) fn program(name: &'static str) -> impl FnOnce(ProgramError) -> Self {
        move |source| Self::Program { name, source }
    }

    pub(super) fn pin(path: impl Into<PathBuf>, what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Pin { path: path.into(), what, source }
    }
}

/// That there is nothing to remove is no error.
pub(super) fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}
