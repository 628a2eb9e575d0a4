//! On what terms a pod of this node takes connections: its own description and the policies, of one snapshot.
//!
//! `enroll` gives each pod its terms when they change *for that pod*, so that the ten thousand connections of a node do
//! not wake for every snapshot. A connection subscribes before it is first checked, and misses no change.

use std::sync::Arc;

use crate::mesh::{PolicySet, Snapshot, Workload};

/// What decides on connections to one pod.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The pod.
    pub workload: Arc<Workload>,
    /// The policies of the same snapshot.
    pub policies: Arc<PolicySet>,
}

impl Terms {
    /// Takes the policies of the snapshot that the workload is of.
    pub fn new(workload: &Arc<Workload>, snapshot: &Snapshot) -> Self {
        Self { workload: Arc::clone(workload), policies: Arc::clone(snapshot.policies()) }
    }

    /// Whether the policies may decide otherwise under `self` than under `other`. Compares pointers first: mostly neither
    /// has changed.
    pub(super) fn decide_as(&self, other: &Self) -> bool {
        let same_pod = Arc::ptr_eq(&self.workload, &other.workload)
            || self.workload.labels == other.workload.labels
                && self.workload.addresses == other.workload.addresses;
        Arc::ptr_eq(&self.policies, &other.policies) && same_pod
    }
}
