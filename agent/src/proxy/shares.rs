//! How many connections the agent carries at once, and how they are shared: no pod and no client can take so much that
//! the others get nothing.
//!
//! A fixed bound for each pod would either waste most of the agent or protect nobody once a few pods reach theirs. So
//! the bound follows what is free (the dynamic threshold that switches share their buffers by: Choudhury and Hahne,
//! "Dynamic queue length thresholds for shared-memory packet switches", 1998): a connection is taken as long as what its
//! pod holds and what its client holds of that are, on average, less than what is free. A pod or a client alone gets
//! half; of `n` pods that take all they can, each gets one share of `n + 1`; of `n` clients of one pod, each gets two
//! shares of `3n + 1`. Whoever holds nothing yet always finds room.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::metrics::Reporter;

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
    pods: HashMap<Holder, PodUse>,
}

#[derive(Debug, Default)]
struct PodUse {
    total: usize,
    clients: HashMap<IpAddr, usize>,
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

    /// Takes room for a connection of `client` with a pod; `None` where they hold their share already.
    pub(super) fn take(&self, holder: Holder, client: IpAddr) -> Option<Share> {
        let client = client.to_canonical();
        let mut used = self.used();
        let (by_pod, by_client) = used
            .pods
            .get(&holder)
            .map_or((0, 0), |pod| (pod.total, pod.clients.get(&client).copied().unwrap_or_default()));
        if by_pod + by_client >= 2 * self.0.max.saturating_sub(used.total) {
            return None;
        }
        used.total += 1;
        let pod = used.pods.entry(holder.clone()).or_default();
        pod.total += 1;
        *pod.clients.entry(client).or_default() += 1;
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
        let Some(pod) = used.pods.get_mut(&self.holder) else { return };
        pod.total -= 1;
        if let Some(held) = pod.clients.get_mut(&self.client) {
            *held -= 1;
            if *held == 0 {
                pod.clients.remove(&self.client);
            }
        }
        if pod.total == 0 {
            used.pods.remove(&self.holder);
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
    fn one_client_takes_half_and_the_others_still_find_room() {
        let shares = Shares::new(100);
        let greedy = take_all(&shares, "web", 1);
        assert_eq!(greedy.len(), 50);
        assert!(shares.take(holder("web"), client(2)).is_some(), "another client of the pod");
        assert!(shares.take(holder("db"), client(1)).is_some(), "another pod");
        assert!(shares.take(("web".into(), Reporter::Source), client(1)).is_some(), "the other direction");
    }

    #[test]
    fn many_greedy_clients_and_pods_leave_room() {
        let shares = Shares::new(1000);
        let mut held = Vec::new();
        for number in 0..8 {
            held.extend(take_all(&shares, "web", number));
            held.extend(take_all(&shares, &format!("pod-{number}"), 1));
            assert!(shares.take(holder("web"), client(200)).is_some(), "after {number}");
            assert!(shares.take(holder("new"), client(200)).is_some(), "after {number}");
        }
        assert!(held.len() < 1000);
    }

    #[test]
    fn what_is_given_back_can_be_taken_again_and_nothing_is_kept() {
        let shares = Shares::new(10);
        let held = take_all(&shares, "web", 1);
        let count = held.len();
        drop(held);
        assert_eq!(take_all(&shares, "web", 1).len(), count);
        assert!(shares.used().pods.is_empty());
        assert_eq!(shares.used().total, 0);
    }

    #[test]
    fn the_smallest_agent_carries_a_connection() {
        let shares = Shares::new(1);
        let held = shares.take(holder("web"), client(1));
        assert!(held.is_some() && shares.take(holder("db"), client(1)).is_none());
    }
}
