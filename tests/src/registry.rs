//! The meshes and clusters of this process that live, for the interrupt handler.

use std::{
    panic::catch_unwind,
    sync::{Mutex, Once, PoisonError},
};

use anyhow::{Result, ensure};

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

/// Has everything removed that is still there when the process ends by itself: what tests share, nobody drops.
pub(crate) fn remove_at_exit() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut outcome = 0;
    ONCE.call_once(|| {
        #[expect(unsafe_code, reason = "there is no safe way to run something when the process ends")]
        // SAFETY: the function takes nothing and does not unwind: what panics in it is caught.
        unsafe {
            outcome = nix::libc::atexit(at_exit);
        }
    });
    ensure!(outcome == 0, "the C library takes no more functions to run at the end of the process");
    Ok(())
}

extern "C" fn at_exit() {
    // A panic must not cross into C; it has been reported already.
    let _ = catch_unwind(remove_all);
}

/// Removes everything. The lock is held all the while, so that a mesh dropped meanwhile waits for its end.
pub(crate) fn remove_all() {
    let mut live = LIVE.lock().unwrap_or_else(PoisonError::into_inner);
    for one in live.drain(..) {
        one.remove();
    }
}
