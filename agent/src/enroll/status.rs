//! What the enroller says of itself, for readiness and for `config_dump`.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
};

use crate::mesh::{Plaintext, PlaintextAction, Workload};

/// The node's pods as they are now. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Status(Arc<RwLock<Vec<PodStatus>>>);

/// One pod of this node that is, was or ought to be enrolled.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PodStatus {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// Its identity.
    pub identity: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// `enrolled`, `leaving`, or why it is not.
    pub state: String,
    /// What the kernel does with plaintext that comes to it; none where the kernel does not know it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plaintext: Option<PlaintextStatus>,
}

/// What the kernel does with plaintext from outside a pod: `pass`, `inspect` (the agent asks the policies) or `refuse`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PlaintextStatus {
    /// At every port that is not listed.
    pub otherwise: &'static str,
    /// By port.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<u16, &'static str>,
}

impl Status {
    /// Returns the pods as they are now.
    pub fn pods(&self) -> Vec<PodStatus> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn publish(&self, mut pods: Vec<PodStatus>) {
        pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = pods;
    }
}

impl PodStatus {
    pub(super) fn new(workload: &Workload, state: String, plaintext: Option<&Plaintext>) -> Self {
        Self {
            namespace: workload.namespace.to_string(),
            name: workload.name.to_string(),
            identity: workload.identity.to_string(),
            addresses: workload.addresses.clone(),
            state,
            plaintext: plaintext.map(PlaintextStatus::from),
        }
    }
}

impl From<&Plaintext> for PlaintextStatus {
    fn from(plaintext: &Plaintext) -> Self {
        let name = |action: &PlaintextAction| match action {
            PlaintextAction::Pass => "pass",
            PlaintextAction::Inspect => "inspect",
            PlaintextAction::Refuse => "refuse",
        };
        Self {
            otherwise: name(&plaintext.otherwise),
            ports: plaintext.ports.iter().map(|(port, action)| (*port, name(action))).collect(),
        }
    }
}
