//! The enrolled pods of this node, for those who know no more of one than its network namespace.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use super::pod::Shared;

/// The enrolled pods, by their namespaces' cookies. A pod that has gone is found by nobody.
#[derive(Debug, Default)]
pub(super) struct Pods(Mutex<HashMap<u64, Weak<Shared>>>);

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
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pods.retain(|_, pod| pod.strong_count() > 0);
        pods.insert(pod.capture.netns().cookie(), Arc::downgrade(pod));
    }

    /// Returns the pod of a namespace.
    pub(super) fn of(&self, netns: u64) -> Option<Arc<Shared>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&netns)?.upgrade()
    }

    /// Returns what policy does not permit and goes on nevertheless.
    pub(super) fn unenforced(&self) -> Vec<Unenforced> {
        let pods: Vec<_> = {
            let pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            pods.values().filter_map(Weak::upgrade).collect()
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
