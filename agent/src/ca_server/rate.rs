//! How often a node may ask: a token bucket for each.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The buckets of the nodes that asked of late.
#[derive(Debug)]
pub(super) struct Rates {
    per_second: f64,
    burst: f64,
    max_nodes: usize,
    buckets: Mutex<HashMap<Arc<str>, Bucket>>,
}

/// What a node has left, as of a moment.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Rates {
    /// Lets each node ask so often a second, and [`BURST`] times as often at once: a node that starts has all its
    /// pods' certificates to ask for.
    pub(super) fn new(per_second: NonZeroU32) -> Self {
        let per_second = f64::from(per_second.get());
        Self { per_second, burst: per_second * BURST, max_nodes: MAX_NODES, buckets: Mutex::default() }
    }

    /// Takes one request of `node` at `now` from its bucket.
    ///
    /// # Errors
    /// Returns how long it takes until there is one, where there is none.
    pub(super) fn take(&self, node: &Arc<str>, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if !buckets.contains_key(node) && buckets.len() >= self.max_nodes {
            self.make_room(&mut buckets, now);
        }
        let bucket = buckets.entry(Arc::clone(node)).or_insert(Bucket { left: self.burst, at: now });
        *bucket = Bucket { left: self.left(*bucket, now), at: now.max(bucket.at) };
        if bucket.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.left) / self.per_second));
        }
        bucket.left -= 1.0;
        Ok(())
    }

    fn left(&self, bucket: Bucket, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(bucket.at).as_secs_f64();
        (bucket.left + elapsed * self.per_second).min(self.burst)
    }

    /// Forgets the nodes whose bucket is full again, which is as if they had never asked; where there is none, the one
    /// that did not ask for longest.
    fn make_room(&self, buckets: &mut HashMap<Arc<str>, Bucket>, now: Instant) {
        buckets.retain(|_, bucket| self.left(*bucket, now) < self.burst);
        if buckets.len() >= self.max_nodes
            && let Some(oldest) =
                buckets.iter().min_by_key(|(_, bucket)| bucket.at).map(|(node, _)| Arc::clone(node))
        {
            buckets.remove(&oldest);
        }
    }
}

/// How many seconds' worth of requests a node may make at once.
const BURST: f64 = 20.0;
/// How many nodes are remembered: three times as many as Kubernetes is tested with.
const MAX_NODES: usize = 15_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn rates() -> Rates {
        Rates { max_nodes: 3, ..Rates::new(NonZeroU32::new(2).unwrap()) }
    }

    fn drain(rates: &Rates, node: &str, now: Instant) -> usize {
        let node = node.into();
        (0..1000).take_while(|_| rates.take(&node, now).is_ok()).count()
    }

    #[test]
    fn a_node_has_its_burst_and_then_its_rate_and_others_have_theirs() {
        let (rates, now) = (rates(), Instant::now());
        assert_eq!(drain(&rates, "a", now), 40);
        assert_eq!(drain(&rates, "b", now), 40);
        let wait = rates.take(&"a".into(), now).unwrap_err();
        assert_eq!(wait, Duration::from_millis(500));
        assert_eq!(drain(&rates, "a", now + wait), 1);
        assert_eq!(drain(&rates, "a", now + Duration::from_secs(5)), 9);
        assert_eq!(drain(&rates, "a", now + Duration::from_secs(500)), 40);
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing() {
        let (rates, before) = (rates(), Instant::now());
        let now = before + Duration::from_secs(10);
        drain(&rates, "a", now);
        assert_eq!(drain(&rates, "a", before), 0);
        assert_eq!(drain(&rates, "a", now), 0);
    }

    #[test]
    fn the_table_is_bounded_and_forgets_who_owes_nothing_first() {
        let (rates, now) = (rates(), Instant::now());
        assert!(rates.take(&"idle".into(), now).is_ok());
        let later = now + Duration::from_secs(60);
        drain(&rates, "busy", later);
        drain(&rates, "busier", later);
        drain(&rates, "new", later);
        assert_eq!(rates.buckets.lock().unwrap().len(), 3);
        assert_eq!(drain(&rates, "busy", later), 0, "remembered");
        drain(&rates, "newer", later + Duration::from_secs(1));
        assert_eq!(rates.buckets.lock().unwrap().len(), 3);
    }
}
