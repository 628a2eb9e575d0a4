//! How many connections the agent carries at once, and how they are shared: no client and no pod can take so much that
//! the others get nothing.
//!
//! A fixed bound for each would either waste most of the agent or protect nobody once a few reach theirs. So the bound
//! follows what is free (the dynamic threshold that switches share their buffers by: Choudhury and Hahne, "Dynamic queue
//! length thresholds for shared-memory packet switches", 1998): a client may hold as much as is free, and so half of all
//! while it is alone; a pod seven times as much, and so seven eighths however many its clients are. A client that takes
//! all it can leaves half of what it found, whatever pods it turns to; who holds nothing finds room until nothing is left.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::metrics::Reporter;

/// How much more than what is free a pod may hold: large, since its clients have their own bounds.
const POD_WEIGHT: usize = 7;

/// Room for a number of connections. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Shares(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max: usize,
    used: Mutex<Used>,
}

/// Who holds how much. What holds nothing has no entry, so that this is no larger than what is carried.
#[derive(Debug, Default)]
struct Used {
    total: usize,
    pods: HashMap<Holder, usize>,
    clients: HashMap<(IpAddr, Reporter), usize>,
}

/// A pod of this node, by its UID, in one direction: what its clients do must not cost it its own connections.
pub(super) type Holder = (Arc<str>, Reporter);

/// Room for one connection; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Share {
    shares: Shares,
    holder: Holder,
    client: IpAddr,
}

impl Shares {
    /// Makes room for `max` connections.
    pub(super) fn new(max: usize) -> Self {
        Self(Arc::new(Inner { max, used: Mutex::default() }))
    }

    /// Takes room for a connection of `client` with a pod; `None` where either holds its share already.
    pub(super) fn take(&self, holder: Holder, client: IpAddr) -> Option<Share> {
        let client = client.to_canonical();
        let mut used = self.used();
        let free = self.0.max.saturating_sub(used.total);
        let by_client = used.clients.get(&(client, holder.1)).copied().unwrap_or_default();
        let by_pod = used.pods.get(&holder).copied().unwrap_or_default();
        if by_client >= free || by_pod >= POD_WEIGHT.saturating_mul(free) {
            return None;
        }
        used.total += 1;
        *used.clients.entry((client, holder.1)).or_default() += 1;
        *used.pods.entry(holder.clone()).or_default() += 1;
        Some(Share { shares: self.clone(), holder, client })
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut used = self.shares.used();
        used.total -= 1;
        release(&mut used.clients, &(self.client, self.holder.1));
        release(&mut used.pods, &self.holder);
    }
}

fn release<K: Eq + Hash>(held: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = held.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            held.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(pod: &str) -> Holder {
        (pod.into(), Reporter::Destination)
    }

    fn client(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    fn take_all(shares: &Shares, pod: &str, from: u8) -> Vec<Share> {
        std::iter::from_fn(|| shares.take(holder(pod), client(from))).collect()
    }

    #[test]
    fn one_client_takes_half_whatever_pods_it_turns_to() {
        let shares = Shares::new(100);
        let greedy = [take_all(&shares, "web", 1), take_all(&shares, "db", 1)];
        assert_eq!(greedy.iter().map(Vec::len).collect::<Vec<_>>(), [50, 0]);
        assert!(shares.take(holder("web"), client(2)).is_some(), "another client of the pod");
        assert!(shares.take(holder("db"), client(2)).is_some(), "another client of another pod");
        assert!(shares.take(("web".into(), Reporter::Source), client(1)).is_some(), "the other direction");
    }

    #[test]
    fn the_many_clients_of_one_pod_leave_room_for_others() {
        let shares = Shares::new(80);
        let crowd: Vec<_> = (0..100).filter_map(|n| shares.take(holder("web"), client(n))).collect();
        assert_eq!(crowd.len(), 70);
        assert!(shares.take(holder("db"), client(1)).is_some());
    }

    #[test]
    fn a_few_greedy_clients_leave_room_on_their_own_pod_too() {
        let shares = Shares::new(1000);
        let _held = [take_all(&shares, "web", 1), take_all(&shares, "web", 2)];
        let last = take_all(&shares, "db", 3);
        assert!(last.len() > 100, "{}", last.len());
        assert!(shares.take(holder("web"), client(4)).is_some());
        assert!(shares.take(holder("new"), client(4)).is_some());
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_and_nothing_is_kept() {
        let shares = Shares::new(10);
        let held = take_all(&shares, "web", 1);
        let count = held.len();
        drop(held);
        assert_eq!(take_all(&shares, "web", 1).len(), count);
        let used = shares.used();
        assert!(used.pods.is_empty() && used.clients.is_empty() && used.total == 0);
    }

    #[test]
    fn the_smallest_agent_carries_a_connection() {
        let shares = Shares::new(1);
        let held = shares.take(holder("web"), client(1));
        assert!(held.is_some() && shares.take(holder("db"), client(1)).is_none());
    }
}
