//! On what terms a pod of this node takes connections: its own description and the policies, of one snapshot.
//!
//! `enroll` gives each pod its terms when they change *for that pod*, so that the ten thousand connections of a node do
//! not wake for every snapshot. A connection subscribes before it is first checked, and misses no change.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use crate::mesh::{Connection, Decision, Plaintext, PodPolicies, PolicySet, Snapshot, Workload};

/// What decides on connections to one pod.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The pod.
    pub workload: Arc<Workload>,
    /// The policies of the same snapshot.
    pub policies: Arc<PolicySet>,
    /// Those of them that are for the pod, found when its first connection comes.
    own: Arc<OnceLock<PodPolicies>>,
}

impl Terms {
    /// Takes the policies of the snapshot that the workload is of.
    pub fn new(workload: &Arc<Workload>, snapshot: &Snapshot) -> Self {
        Self::of(Arc::clone(workload), Arc::clone(snapshot.policies()))
    }

    pub(super) fn of(workload: Arc<Workload>, policies: Arc<PolicySet>) -> Self {
        Self { workload, policies, own: Arc::default() }
    }

    /// Takes what was found for `other`, which decides as `self` does.
    pub(super) fn take_after(&mut self, other: &Self) {
        self.own = Arc::clone(&other.own);
    }

    /// Decides on a connection to the pod.
    pub(super) fn authorize(&self, connection: &Connection<'_>) -> Decision {
        let own = self.own.get_or_init(|| self.policies.of_pod(&self.workload));
        self.policies.authorize_with(own, &self.workload, connection)
    }

    /// Returns what the kernel is to do with plaintext that comes to the pod.
    pub fn plaintext(&self) -> Plaintext {
        self.policies.plaintext(&self.workload)
    }

    /// Decides on plaintext that the agent does not carry, from `source` to the pod's own `destination`.
    pub(super) fn authorize_plaintext(&self, source: SocketAddr, destination: SocketAddr) -> Decision {
        self.authorize(&Connection { source: source.ip(), identity: None, destination })
    }

    /// Whether the policies decide under `self` as under `other`. Mostly neither of the two has changed, and where some
    /// policy of the mesh has, it is mostly not one of this pod's.
    pub(super) fn decide_as(&self, other: &Self) -> bool {
        let same_pod = Arc::ptr_eq(&self.workload, &other.workload)
            || self.workload.labels == other.workload.labels
                && self.workload.addresses == other.workload.addresses;
        same_pod && (Arc::ptr_eq(&self.policies, &other.policies) || self.has_policies_of(other))
    }

    /// Whether the pod's own policies are the same. Those that have not changed are not made anew with the set, so that
    /// their places in memory tell.
    fn has_policies_of(&self, other: &Self) -> bool {
        let (now, before) = (&self.policies, &other.policies);
        same(now.applicable(&self.workload), before.applicable(&other.workload))
            && same(now.authenticating(&self.workload), before.authenticating(&other.workload))
    }
}

fn same<'a, P: 'a>(now: impl IntoIterator<Item = &'a P>, before: impl IntoIterator<Item = &'a P>) -> bool {
    let places = |policy: &'a P| std::ptr::from_ref(policy);
    now.into_iter().map(places).eq(before.into_iter().map(places))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        mesh::{PolicySet, fixtures::pod},
        proxy::fixtures::{deny_all, terms},
    };

    #[test]
    fn a_policy_of_other_pods_changes_nothing_for_this_one() {
        let (own, others) = (deny_all("shop"), deny_all("elsewhere"));
        let before = terms(pod("web", &["10.0.0.1"]), vec![own.clone()]);
        let now = |policies| {
            let policies = Arc::new(PolicySet::new(policies, Vec::new(), "root", &[]));
            Terms::of(Arc::clone(&before.workload), policies)
        };
        assert!(now(vec![own, others.clone()]).decide_as(&before));
        assert!(!now(vec![others]).decide_as(&before));
        // Made anew, it may say something else.
        assert!(!now(vec![deny_all("shop")]).decide_as(&before));
    }

    #[test]
    fn another_label_or_address_of_the_pod_may_change_the_verdict() {
        let before = terms(pod("web", &["10.0.0.1"]), Vec::new());
        let with = |change: fn(&mut Workload)| {
            let mut workload = (*before.workload).clone();
            change(&mut workload);
            Terms::of(Arc::new(workload), Arc::clone(&before.policies))
        };
        assert!(with(|pod| pod.receives_hbone = false).decide_as(&before));
        assert!(
            !with(|pod| drop(Arc::make_mut(&mut pod.labels).insert("a".into(), "b".into())))
                .decide_as(&before)
        );
        assert!(!with(|pod| pod.addresses.clear()).decide_as(&before));
    }
}
