//! What the tunnels of one HTTP/2 connection share: how many there are, and why the connection ended.

use std::sync::{
    Arc, Mutex, OnceLock, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use super::Loss;

/// The state of one HTTP/2 connection that outlives the task that drives it.
#[derive(Debug)]
pub(super) struct Link {
    loss: OnceLock<Loss>,
    abort: CancellationToken,
    tunnels: AtomicUsize,
    /// When the last tunnel ended; only read while there is none.
    unused_since: Mutex<Instant>,
    unused: Notify,
}

/// One tunnel's share of a connection. The connection counts as used until it drops.
#[derive(Debug)]
pub(super) struct Lease(Arc<Link>);

impl Link {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            loss: OnceLock::new(),
            abort: CancellationToken::new(),
            tunnels: AtomicUsize::new(0),
            unused_since: Mutex::new(Instant::now()),
            unused: Notify::new(),
        })
    }

    /// Counts one more tunnel.
    pub(super) fn lease(self: &Arc<Self>) -> Lease {
        self.tunnels.fetch_add(1, Ordering::AcqRel);
        Lease(self.clone())
    }

    /// Returns the number of tunnels, those included whose answer is still awaited.
    pub(super) fn tunnels(&self) -> usize {
        self.tunnels.load(Ordering::Acquire)
    }

    /// Returns when the last tunnel ended, or when the connection began.
    pub(super) fn unused_since(&self) -> Instant {
        *self.unused_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is no tunnel.
    pub(super) async fn unused(&self) {
        while self.tunnels() > 0 {
            // The permit of an end that nobody waited for only makes this look once more.
            self.unused.notified().await;
        }
    }

    /// Records why the connection ends; the first to say so is right.
    pub(super) fn lose(&self, loss: Loss) {
        // A second cause is only the consequence of the first.
        let _ = self.loss.set(loss);
    }

    /// Returns why the connection ended, where that is known.
    pub(super) fn loss(&self) -> Option<Loss> {
        self.loss.get().copied()
    }

    /// Makes the task that drives the connection end at once, and with it all tunnels.
    pub(super) fn abort(&self, loss: Loss) {
        self.lose(loss);
        self.abort.cancel();
    }

    /// Waits for [`Self::abort`].
    pub(super) fn aborted(&self) -> WaitForCancellationFuture<'_> {
        self.abort.cancelled()
    }
}

impl Lease {
    /// Returns the connection that this is a share of.
    pub(super) fn link(&self) -> &Link {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Stamped before the count says so: who sees no tunnel sees a time that is not stale.
        *self.0.unused_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        if self.0.tunnels.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.unused.notify_one();
        }
    }
}
