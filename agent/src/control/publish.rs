//! Hands snapshots to the rest of the agent, and tells the operator what is wrong in them.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use tokio::sync::watch;

use crate::mesh::{AddressConflict, Snapshot};

/// The sending side of the one channel that everybody reads the mesh from.
#[derive(Debug)]
pub(super) struct Publisher {
    snapshots: watch::Sender<Arc<Snapshot>>,
    /// The conflicts that were reported, so that each is reported once.
    conflicts: HashMap<IpAddr, AddressConflict>,
}

impl Publisher {
    /// Starts without a snapshot.
    pub(super) fn new() -> Self {
        Self { snapshots: watch::Sender::default(), conflicts: HashMap::new() }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.subscribe()
    }

    /// Returns how many pods the last snapshot has.
    pub(super) fn pods(&self) -> usize {
        self.snapshots.borrow().workloads().len()
    }

    pub(super) fn publish(&mut self, snapshot: Snapshot) {
        let conflicts: HashMap<_, _> =
            snapshot.conflicts().into_iter().map(|conflict| (conflict.address, conflict)).collect();
        for conflict in conflicts.values() {
            if !self.conflicts.get(&conflict.address).is_some_and(|known| is_same(known, conflict)) {
                tracing::warn!(
                    address = %conflict.address, first = %conflict.first, second = %conflict.second,
                    "two live pods claim one address: traffic to it is refused until one of them is deleted",
                );
            }
        }
        for address in self.conflicts.keys().filter(|address| !conflicts.contains_key(address)) {
            tracing::info!(%address, "the address is claimed by two live pods no longer");
        }
        self.conflicts = conflicts;
        self.snapshots.send_replace(Arc::new(snapshot));
    }
}

fn is_same(known: &AddressConflict, conflict: &AddressConflict) -> bool {
    known.first.uid == conflict.first.uid && known.second.uid == conflict.second.uid
}
