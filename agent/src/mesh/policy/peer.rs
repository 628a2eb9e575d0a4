//! PeerAuthentication: whether a pod accepts plaintext.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::PolicyName;
use crate::mesh::Labels;

/// A PeerAuthentication. One that cannot be read is STRICT.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerAuthentication {
    /// What it is called.
    pub name: PolicyName,
    /// `metadata.creationTimestamp`, in nanoseconds since 1970: of several at one level the oldest counts. One without is the newest.
    pub created: Option<i128>,
    /// The labels of the pods that it is for; none where it is for its namespace, or for the mesh.
    pub selector: Option<Labels>,
    /// `mtls.mode`.
    pub mode: Mode,
    /// `portLevelMtls`, by the application's port.
    pub ports: BTreeMap<u16, Mode>,
    /// Whether what it says could be read.
    pub is_readable: bool,
}

/// Whether plaintext is accepted.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// What the level above says.
    #[default]
    Unset,
    /// Not from outside the pod.
    Strict,
    /// Yes.
    Permissive,
    /// Yes, and peers are to send it.
    Disable,
}

/// How wide a PeerAuthentication's scope is: the narrowest that says anything counts.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Level {
    /// `portLevelMtls` of the one that selects the pod.
    Port,
    /// The one that selects the pod.
    Workload,
    /// The one for the pod's namespace.
    Namespace,
    /// The one for the mesh.
    Mesh,
}

impl Level {
    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Port => "port",
            Self::Workload => "workload",
            Self::Namespace => "namespace",
            Self::Mesh => "mesh",
        }
    }
}

/// The PeerAuthentications that count for a pod.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Levels<'a> {
    pub(super) workload: Option<&'a PeerAuthentication>,
    pub(super) namespace: Option<&'a PeerAuthentication>,
    pub(super) mesh: Option<&'a PeerAuthentication>,
}

impl PeerAuthentication {
    /// Returns what orders the objects of one level: the first counts.
    pub fn age(&self) -> impl Ord {
        (self.created.is_none(), self.created, self.name.clone())
    }
}

impl Mode {
    /// Returns the mode as policies write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unset => "UNSET",
            Self::Strict => "STRICT",
            Self::Permissive => "PERMISSIVE",
            Self::Disable => "DISABLE",
        }
    }
}

impl<'a> Levels<'a> {
    /// What each level says about a port (none: one that no policy mentions), from the narrowest.
    pub(super) fn at(self, port: Option<u16>) -> impl Iterator<Item = (Level, Mode, &'a PeerAuthentication)> {
        let port_mode = |policy: &'a PeerAuthentication| policy.ports.get(&port?).copied();
        let at_port = self.workload.and_then(|policy| Some((Level::Port, port_mode(policy)?, policy)));
        let whole =
            |level, policy: Option<&'a PeerAuthentication>| policy.map(|policy| (level, policy.mode, policy));
        let rest = [
            whole(Level::Workload, self.workload),
            whole(Level::Namespace, self.namespace),
            whole(Level::Mesh, self.mesh),
        ];
        at_port.into_iter().chain(rest.into_iter().flatten())
    }

    /// The narrowest level that says anything about a port.
    pub(super) fn decision(self, port: Option<u16>) -> Option<(Level, Mode, &'a PeerAuthentication)> {
        self.at(port).find(|(_, mode, _)| *mode != Mode::Unset)
    }

    /// The mode of a port (none: one that no policy mentions), and who says so; PERMISSIVE where nobody does.
    pub(super) fn mode(self, port: Option<u16>) -> (Mode, Option<&'a PeerAuthentication>) {
        self.decision(port).map_or((Mode::Permissive, None), |(_, mode, policy)| (mode, Some(policy)))
    }
}
