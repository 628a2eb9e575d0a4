//! Whether each pod with permits still has a link of its own: one look at a pod for all of its permits.

use std::{
    collections::HashMap,
    future::pending,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::watch, task::spawn_blocking, time::sleep};

use super::{super::pod, LOOK_AGAIN};
use crate::capture;

/// The pods that are looked at. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Segments {
    watched: Arc<Mutex<HashMap<Key, watch::Sender<Found>>>>,
}

/// A pod's namespace, and the address whose interface is looked at.
type Key = (u64, IpAddr);

/// What was wrong at the last look.
type Found = Option<Arc<capture::Shared>>;

impl Segments {
    /// Returns when the interface of `pod` that holds `address` is found to be one that others may see or send to, at most
    /// [`LOOK_AGAIN`] after that.
    pub(super) async fn shared(&self, pod: &Arc<pod::Shared>, address: IpAddr) -> Arc<capture::Shared> {
        let looking = Arc::clone(pod);
        let key = (pod.capture.netns().cookie(), address);
        self.watch(key, move || looking.capture.check_segment(address)).await
    }

    /// Does so for whatever `look` says; of those who wait for one key the first one's is asked, off the runtime's threads.
    async fn watch<F>(&self, key: Key, look: F) -> Arc<capture::Shared>
    where
        F: Fn() -> Result<(), capture::Shared> + Send + Sync + 'static,
    {
        let mut found = {
            let mut watched = self.lock();
            let sender = watched.entry(key).or_insert_with(|| {
                tokio::spawn(self.clone().look_again(key, Arc::new(look)));
                watch::Sender::default()
            });
            sender.subscribe()
        };
        // The sender goes only once it has said what it found, or nobody waits.
        let found = found.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
        match found {
            Some(why) => why,
            None => pending().await,
        }
    }

    /// Looks until something is found, or nobody wants to know any more.
    async fn look_again<F>(self, key: Key, look: Arc<F>)
    where
        F: Fn() -> Result<(), capture::Shared> + Send + Sync + 'static,
    {
        loop {
            sleep(LOOK_AGAIN).await;
            if !self.is_wanted(key) {
                return;
            }
            let looking = Arc::clone(&look);
            if let Ok(Err(why)) = spawn_blocking(move || looking()).await {
                // Who asks from now on has the next one look: it may be mended.
                if let Some(sender) = self.lock().remove(&key) {
                    sender.send_replace(Some(Arc::new(why)));
                }
                return;
            }
        }
    }

    /// Whether somebody waits; else it is forgotten.
    fn is_wanted(&self, key: Key) -> bool {
        let mut watched = self.lock();
        let wanted = watched.get(&key).is_some_and(|sender| sender.receiver_count() > 0);
        if !wanted {
            watched.remove(&key);
        }
        wanted
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, watch::Sender<Found>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::Ipv4Addr,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use tokio::task::yield_now;

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// Counts looks, the last of which finds something.
    fn counting(looks: &Arc<AtomicUsize>, last: usize) -> impl Fn() -> Result<(), capture::Shared> + use<> {
        let looks = Arc::clone(looks);
        move || {
            if looks.fetch_add(1, Ordering::SeqCst) + 1 < last {
                return Ok(());
            }
            Err(capture::Shared::Interface { address: ADDRESS, why: "is a port".to_owned() })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_permits_of_a_pod_hear_of_one_look() {
        let segments = Segments::default();
        let looks = Arc::new(AtomicUsize::new(0));
        let waiting = || segments.watch((1, ADDRESS), counting(&looks, 3));
        let (one, other) = tokio::join!(waiting(), waiting());
        assert!(Arc::ptr_eq(&one, &other));
        assert_eq!(looks.load(Ordering::SeqCst), 3);
        assert!(segments.lock().is_empty(), "the next permit has it looked at anew");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_looks_where_nobody_waits() {
        let segments = Segments::default();
        let looks = Arc::new(AtomicUsize::new(0));
        let waiting = tokio::spawn({
            let (segments, look) = (segments.clone(), counting(&looks, 99));
            async move { segments.watch((1, ADDRESS), look).await }
        });
        sleep(LOOK_AGAIN * 5 / 2).await;
        assert_eq!(looks.load(Ordering::SeqCst), 2);
        waiting.abort();
        sleep(LOOK_AGAIN * 5).await;
        yield_now().await;
        assert_eq!(looks.load(Ordering::SeqCst), 2);
        assert!(segments.lock().is_empty());
    }
}
