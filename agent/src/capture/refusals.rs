//! What the kernel refused of plaintext, as it happens.

use std::net::SocketAddr;

/// A plaintext connection to an enrolled pod that the kernel refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// The cookie of the pod's network namespace.
    pub netns: u64,
    /// Whence it came.
    pub source: SocketAddr,
    /// Where it went to.
    pub destination: SocketAddr,
}

/// The refusals, one after another. What comes faster than it is read is counted and lost.
#[derive(Debug)]
pub struct Refusals {}

impl Refusals {
    /// Waits for the next refusal. Cancel safe: a refusal is taken only where it is returned.
    pub async fn next(&mut self) -> Refusal {
        std::future::pending().await
    }
}
