//! The enrolled pods of this node, for those who know no more of one than its network namespace or its uid.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use super::pod::Shared;

/// The enrolled pods. One that has gone is found by nobody.
#[derive(Debug, Default)]
pub(super) struct Pods(Mutex<Tables>);

#[derive(Debug, Default)]
struct Tables {
    /// By their namespaces' cookies.
    by_netns: HashMap<u64, Weak<Shared>>,
    by_uid: HashMap<Arc<str>, Weak<Shared>>,
}

/// Connections to a pod that policy does not permit, and that could not be ended.
#[derive(Clone, Debug)]
pub struct Unenforced {
    /// `namespace/name`.
    pub pod: String,
    /// How many there are.
    pub connections: usize,
    /// One of them and why it could not be ended, or why none could be looked for.
    pub why: String,
}

impl Pods {
    /// Adds a pod. One that was enrolled in the same namespace before is forgotten.
    pub(super) fn add(&self, pod: &Arc<Shared>) {
        let mut tables = self.lock();
        let Tables { by_netns, by_uid } = &mut *tables;
        by_netns.retain(|_, pod| pod.strong_count() > 0);
        by_uid.retain(|_, pod| pod.strong_count() > 0);
        by_netns.insert(pod.capture.netns().cookie(), Arc::downgrade(pod));
        by_uid.insert(pod.workload().uid.clone(), Arc::downgrade(pod));
    }

    /// Returns the pod of a namespace.
    pub(super) fn of(&self, netns: u64) -> Option<Arc<Shared>> {
        self.lock().by_netns.get(&netns)?.upgrade()
    }

    /// Returns the pod of a uid where it is held to its terms still: those of one that left the mesh say what was true
    /// then.
    pub(super) fn held(&self, uid: &str) -> Option<Arc<Shared>> {
        let pod = self.lock().by_uid.get(uid)?.upgrade()?;
        (!pod.left.is_cancelled() && !pod.gone.is_cancelled()).then_some(pod)
    }

    /// Returns what policy does not permit and goes on nevertheless.
    pub(super) fn unenforced(&self) -> Vec<Unenforced> {
        let pods: Vec<_> = {
            let tables = self.lock();
            tables.by_netns.values().filter_map(Weak::upgrade).collect()
        };
        let mut found: Vec<_> = pods
            .iter()
            .filter_map(|pod| {
                let (connections, why) = pod.bypass.unenforced()?;
                Some(Unenforced { pod: pod.workload().to_string(), connections, why })
            })
            .collect();
        found.sort_unstable_by(|a, b| a.pod.cmp(&b.pod));
        found
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Unenforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pod, connections, why } = self;
        match connections {
            0 => write!(f, "pod {pod}: policy may not permit all that goes on past the agent: {why}"),
            _ => write!(
                f,
                "pod {pod}: {connections} connections that policy does not permit go on past the agent, such as {why}: restart the pod to end them"
            ),
        }
    }
}
