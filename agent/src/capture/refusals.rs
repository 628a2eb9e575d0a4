//! What the kernel refuses of plaintext, as it happens.

use std::{fmt, io, net::SocketAddr};

use agent_ebpf::{Tuple, from_bytes};
use aya::maps::{MapData, RingBuf};
use tokio::io::{Interest, unix::AsyncFd};

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
pub struct Refusals {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Refusals {
    pub(super) fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        #[expect(unsafe_code, reason = "the runtime wants the promise that the descriptor stays what it is")]
        // SAFETY: the descriptor is the map's, which the ring buffer owns and never closes or replaces.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
        Ok(Self { ring: ring? })
    }

    /// Waits for the next refusal. Cancel safe: a refusal is taken only where it is returned.
    pub async fn next(&mut self) -> Refusal {
        loop {
            let Ok(mut ready) = self.ring.readable_mut().await else {
                // The runtime is shutting down, and this task with it.
                return std::future::pending().await;
            };
            match ready.get_inner_mut().next().and_then(|item| from_bytes::<Tuple>(&item)) {
                Some(tuple) => return Refusal::from(tuple),
                None => ready.clear_ready(),
            }
        }
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
