//! The meshes and clusters of this process that live, for the interrupt handler.

use std::sync::{Mutex, PoisonError};

use crate::{cluster::Remains, teardown::Traces};

static LIVE: Mutex<Vec<Live>> = Mutex::new(Vec::new());

/// Something that must be removed from the machine before the process ends.
pub(crate) enum Live {
    Mesh(Traces),
    Cluster(Remains),
}

impl Live {
    fn name(&self) -> &str {
        match self {
            Self::Mesh(traces) => traces.name(),
            Self::Cluster(remains) => remains.name(),
        }
    }

    /// Removes all of it.
    pub(crate) fn remove(self) {
        match self {
            Self::Mesh(traces) => traces.remove(),
            Self::Cluster(remains) => remains.remove(),
        }
    }
}

pub(crate) fn add(live: Live) {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner).push(live);
}

/// Forgets a mesh or a cluster; nothing where the interrupt handler took it first.
pub(crate) fn take(name: &str) -> Option<Live> {
    let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    let at = live.iter().position(|live| live.name() == name)?;
    Some(live.swap_remove(at))
}

/// Removes everything. The lock is held all the while, so that a mesh dropped meanwhile waits for its end.
pub(crate) fn remove_all() {
    let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    for one in live.drain(..) {
        one.remove();
    }
}
