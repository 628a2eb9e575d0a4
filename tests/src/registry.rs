//! The meshes of this process that live, for the interrupt handler.

use std::sync::{Mutex, PoisonError};

use crate::teardown::Traces;

static LIVE: Mutex<Vec<Traces>> = Mutex::new(Vec::new());

pub(crate) fn add(traces: Traces) {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner).push(traces);
}

/// Forgets a mesh; false where the interrupt handler took it first.
pub(crate) fn take(name: &str) -> Option<Traces> {
    let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    let at = live.iter().position(|traces| traces.name() == name)?;
    Some(live.swap_remove(at))
}

/// Removes every live mesh. The lock is held all the while, so that a mesh dropped meanwhile waits for its end.
pub(crate) fn remove_all() {
    let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    for traces in live.drain(..) {
        traces.remove();
    }
}
