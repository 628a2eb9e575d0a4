//! How many certificates are asked of the authority at once, and who comes first.

use tokio::sync::{Notify, Semaphore, SemaphorePermit};

/// A bound on requests to the authority. Two thousand pods of a node that starts are patient; a connection that waits
/// for its certificate is not, and passes them.
#[derive(Debug)]
pub(super) struct Queue {
    all: Semaphore,
    patient: Semaphore,
}

/// The right to ask; given back on drop.
pub(super) struct Turn<'a> {
    _one: Option<SemaphorePermit<'a>>,
    _patient: Option<SemaphorePermit<'a>>,
}

impl Default for Queue {
    fn default() -> Self {
        Self { all: Semaphore::new(AT_ONCE), patient: Semaphore::new(AT_ONCE - RESERVED) }
    }
}

impl Queue {
    /// Waits for a turn: behind everybody else who waits, or, from when `wanted` says so, only behind those who are
    /// wanted too.
    pub(super) async fn turn(&self, wanted: &Notify) -> Turn<'_> {
        let patient = tokio::select! {
            biased;
            () = wanted.notified() => None,
            patient = self.patient.acquire() => patient.ok(),
        };
        // Neither is ever closed.
        Turn { _one: self.all.acquire().await.ok(), _patient: patient }
    }
}

/// Requests at once: at 100 ms each, a node with 2,000 identities has them in under a quarter of a minute, and a
/// thousand nodes that start at once are 16,000 connections for their authority.
pub(super) const AT_ONCE: usize = 16;

/// Of these, what only connections that wait may take.
const RESERVED: usize = 4;
