//! What the enroller says of itself, for readiness and for `config_dump`.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use tokio::sync::watch;

use crate::{
    mesh::{Plaintext, PlaintextAction, PolicySet, Workload},
    proxy::Terms,
    sandbox::Inode,
};

/// The node's pods as they are now. Cheap to clone.
///
/// A pod is `enrolled` here as soon as its listeners exist, and `leaving` before its traffic is let alone.
#[derive(Clone, Debug, Default)]
pub struct Status(watch::Sender<Arc<Vec<PodStatus>>>);

/// One pod of this node that is, was or ought to be enrolled.
#[derive(Clone, Debug)]
pub struct PodStatus {
    /// The pod, and the policies that it is held to.
    pub terms: Terms,
    /// `enrolled`, `leaving`, or why it is not.
    pub state: String,
    /// What the kernel does with plaintext that comes to it; none where it could not be told.
    pub plaintext: Option<Plaintext>,
    /// The network namespace that it is enrolled with.
    pub netns: Option<Inode>,
}

/// A pod as the dump shows it.
#[derive(Debug, serde::Serialize)]
struct Shown<'a> {
    namespace: &'a str,
    name: &'a str,
    identity: String,
    addresses: &'a [IpAddr],
    state: &'a str,
    policy: Posture,
}

/// What policy makes of a pod.
#[derive(Debug, serde::Serialize)]
struct Posture {
    /// Whether the pod is held to the newest policies.
    current: bool,
    /// The mode at every port that has none of its own.
    mode: &'static str,
    /// The policies that are for the pod, those on trial marked `(dry run)`.
    policies: Vec<String>,
    /// What the kernel does with plaintext: `pass`, `inspect` (the agent asks the policies) or `refuse`.
    #[serde(skip_serializing_if = "Option::is_none")]
    plaintext: Option<Rules>,
}

#[derive(Debug, serde::Serialize)]
struct Rules {
    /// At every port that is not listed.
    otherwise: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    ports: BTreeMap<u16, &'static str>,
}

impl Status {
    /// Returns the pods as they are now.
    pub fn pods(&self) -> Vec<PodStatus> {
        self.0.borrow().to_vec()
    }

    /// Returns a receiver of the pods as they come to be.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Vec<PodStatus>>> {
        self.0.subscribe()
    }

    pub(super) fn publish(&self, mut pods: Vec<PodStatus>) {
        let name = |pod: &PodStatus| {
            let workload = &pod.terms.workload;
            (Arc::clone(&workload.namespace), Arc::clone(&workload.name))
        };
        pods.sort_by_cached_key(name);
        self.0.send_replace(Arc::new(pods));
    }
}

impl PodStatus {
    /// Returns the pod.
    pub fn workload(&self) -> &Workload {
        &self.terms.workload
    }

    /// Returns the pod as the dump shows it; `newest` are the policies of the newest snapshot.
    pub fn show(&self, newest: &Arc<PolicySet>) -> impl serde::Serialize {
        let Self { terms: Terms { workload, policies, .. }, state, plaintext, netns: _ } = self;
        Shown {
            namespace: &workload.namespace,
            name: &workload.name,
            identity: workload.identity.to_string(),
            addresses: &workload.addresses,
            state,
            policy: Posture {
                current: plaintext.is_some() && Arc::ptr_eq(policies, newest),
                mode: policies.mode(workload, NO_PORT).as_str(),
                policies: names(policies, workload),
                plaintext: plaintext.as_ref().map(Rules::from),
            },
        }
    }
}

/// A port that no policy can name.
const NO_PORT: u16 = 0;

fn names(policies: &PolicySet, workload: &Workload) -> Vec<String> {
    let authorization = policies.applicable(workload).into_iter();
    let authorization = authorization.map(|policy| match policy.dry_run {
        true => format!("{} (dry run)", policy.name),
        false => policy.name.to_string(),
    });
    authorization.chain(policies.authenticating(workload).map(|policy| policy.name.to_string())).collect()
}

impl From<&Plaintext> for Rules {
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
