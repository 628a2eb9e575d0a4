//! What the programs tell as it happens, by a ring buffer.

use std::{future::pending, io, marker::PhantomData};

use agent_ebpf::from_bytes;
use aya::maps::{MapData, RingBuf};
use tokio::io::{Interest, unix::AsyncFd};

/// The one reader of a map of `T`s. What comes faster than it is read is lost; the programs count it.
pub(super) struct Ring<T> {
    map: AsyncFd<RingBuf<MapData>>,
    of: PhantomData<fn() -> T>,
}

impl<T: aya::Pod> Ring<T> {
    /// Must be called within a Tokio runtime.
    pub(super) fn new(map: RingBuf<MapData>) -> io::Result<Self> {
        #[expect(unsafe_code, reason = "the runtime wants the promise that the descriptor stays what it is")]
        // SAFETY: the descriptor is the map's, which the ring buffer owns and never closes or replaces.
        let map = unsafe { AsyncFd::register_with_interest(map, Interest::READABLE) };
        Ok(Self { map: map?, of: PhantomData })
    }

    /// Takes the next one, if there is one already.
    pub(super) fn take(&mut self) -> Option<T> {
        self.map.get_mut().next().and_then(|item| from_bytes(&item))
    }

    /// Waits until there may be more than was there when [`Self::take`] found nothing.
    pub(super) async fn more(&mut self) {
        match self.map.readable_mut().await {
            Ok(mut ready) => ready.clear_ready(),
            // The runtime is shutting down, and this task with it.
            Err(_) => pending().await,
        }
    }

    /// Waits for the next one. Cancel safe: one is taken only where it is returned.
    pub(super) async fn next(&mut self) -> T {
        loop {
            if let Some(item) = self.take() {
                return item;
            }
            self.more().await;
        }
    }
}
