//! What the kernel refuses of plaintext, as it happens.

use std::{fmt, io, net::SocketAddr};

use agent_ebpf::Tuple;
use aya::maps::{MapData, RingBuf};

use super::ring::Ring;

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

/// The refusals, one after another. What comes faster than it is read is lost, and counted
/// ([`Stats`](super::Stats)). The kernel refuses packets: what belongs to no connection any more, such as the last packets
/// of one that was ended, is refused like an attempt.
pub struct Refusals(Ring<Tuple>);

impl Refusals {
    pub(super) fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        Ring::new(ring).map(Self)
    }

    /// Waits for the next refusal. Cancel safe: a refusal is taken only where it is returned.
    pub async fn next(&mut self) -> Refusal {
        Refusal::from(self.0.next().await)
    }
}

impl From<Tuple> for Refusal {
    fn from(tuple: Tuple) -> Self {
        Self {
            netns: tuple.netns,
            source: SocketAddr::new(tuple.local.into(), tuple.local_port),
            destination: SocketAddr::new(tuple.remote.into(), tuple.remote_port),
        }
    }
}

impl fmt::Debug for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // aya's ring buffer cannot be printed.
        f.debug_struct("Refusals").finish_non_exhaustive()
    }
}
