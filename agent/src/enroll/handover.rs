//! How the node passes to a successor: another agent of the same node, in a rolling update.
//!
//! ```text
//! successor: first lists, certificates ──► asks ──► predecessor stops writing, gives the lock back ──► answers
//! successor: takes the lock, replaces programs and listeners one by one ──► is ready
//! predecessor: goes on with what it has, until SIGTERM drains it
//! ```
//!
//! Until the successor has put its listener in a place, what comes there goes to the predecessor: in no moment does nobody
//! listen.

use tokio::sync::{mpsc, oneshot};

/// By which the node is handed over. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handover(mpsc::Sender<Request>);

/// What the enroller hears of it.
pub(super) type Requests = mpsc::Receiver<Request>;

/// One request of a successor.
#[derive(Debug)]
pub(super) struct Request(oneshot::Sender<()>);

/// Why the node is not handed over.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NotHandedOver {
    /// It has been already, or the agent has ended.
    #[error("this agent has no node to hand over: it has done so, or ends")]
    Gone,
}

pub(super) fn channel() -> (Handover, Requests) {
    let (sender, requests) = mpsc::channel(1);
    (Handover(sender), requests)
}

impl Handover {
    /// Hands the node over: when this returns, nothing here writes to the kernel any more and the node's lock is free.
    ///
    /// # Errors
    /// Where it has been handed over already, or the agent has ended.
    pub async fn hand_over(&self) -> Result<(), NotHandedOver> {
        let (grant, granted) = oneshot::channel();
        self.0.try_send(Request(grant)).map_err(|_| NotHandedOver::Gone)?;
        granted.await.map_err(|_| NotHandedOver::Gone)
    }
}

impl Request {
    pub(super) fn grant(self) {
        // A successor that has hung up asks again.
        let _ = self.0.send(());
    }
}
