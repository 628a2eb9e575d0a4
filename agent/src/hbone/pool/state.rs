//! What the pool knows, and its decisions. Nothing here waits.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use h2::client::SendRequest;
use hashbrown::HashMap;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    PoolConfig, PoolKey, PoolStats,
    opening::{Done, Outcome},
};
use crate::{
    hbone::{
        Loss, STREAMS_PER_CONNECTION,
        dialect::Dialect,
        handshakes::Verdict,
        link::{Lease, Link},
    },
    identity::{Svid, TlsFailure},
};

/// Every connection, by what may use it and by number.
#[derive(Default)]
pub(super) struct State {
    /// Where new tunnels go. A key without connections and attempts has no entry.
    slots: HashMap<Arc<PoolKey>, Slot>,
    /// All connections: being opened, taking tunnels, or only finishing those they have.
    live: HashMap<u64, Live>,
    next_id: u64,
    draining: bool,
    closed: bool,
    /// Told when the last of `live` goes.
    pub(super) emptied: Arc<Notify>,
}

#[derive(Default)]
struct Slot {
    /// In the order in which they were opened; the first with room is taken, so that the last fall idle.
    ready: Vec<Ready>,
    /// The one attempt to open another, and where it reports.
    opening: Option<(u64, watch::Receiver<Outcome>)>,
}

/// A connection that takes tunnels. Dropping this retires it: h2 closes a connection once nobody can open a stream on
/// it and the last stream has ended.
pub(super) struct Ready {
    pub(super) id: u64,
    pub(super) requests: SendRequest<Bytes>,
    pub(super) dialect: Dialect,
    pub(super) svid: Arc<Svid>,
    /// Until when it takes tunnels, for the sake of both ends' certificates.
    pub(super) fresh_until: SystemTime,
    pub(super) link: Arc<Link>,
    pub(super) tls: TlsFailure,
    pub(super) verdict: Verdict,
}

struct Live {
    key: Arc<PoolKey>,
    link: Arc<Link>,
    established: bool,
}

/// Room for one tunnel.
pub(super) struct Reserved {
    pub(super) id: u64,
    pub(super) requests: SendRequest<Bytes>,
    pub(super) dialect: Dialect,
    pub(super) lease: Lease,
    pub(super) link: Arc<Link>,
    pub(super) tls: TlsFailure,
    pub(super) verdict: Verdict,
}

/// Where a tunnel finds room.
pub(super) enum Place {
    /// Here.
    Ready(Reserved),
    /// On the connection that somebody is opening.
    Wait(watch::Receiver<Outcome>),
    /// On a connection that the caller is to open.
    Open { id: u64, link: Arc<Link>, done: Done },
    /// On a connection that would have to be opened, if the caller could.
    NoDial,
    /// Nowhere: so many connections are open already.
    Full(usize),
    /// Nowhere, any more.
    Closed(Loss),
}

/// Whether a connection is needed.
pub(super) enum Use {
    /// It has tunnels.
    Used,
    /// It may stay until then, should nobody use it.
    UnusedUntil(Instant),
    /// It takes no tunnels any more, and closes by itself.
    Retired,
}

impl State {
    /// Decides where a tunnel goes, and retires connections that may no longer be used.
    pub(super) fn place(
        &mut self,
        key: &Arc<PoolKey>,
        svid: &Arc<Svid>,
        config: &PoolConfig,
        can_dial: bool,
    ) -> Place {
        if self.closed {
            return Place::Closed(Loss::Shutdown);
        }
        let mut used = 0;
        if let Some(slot) = self.slots.get_mut(key) {
            // Only those that it may go to: after a busy hour there are many.
            while let Some(index) = slot.ready.iter().position(Ready::has_room) {
                let connection = &mut slot.ready[index];
                if connection.is_usable(svid) {
                    return Place::Ready(connection.reserve());
                }
                slot.ready.remove(index);
            }
            slot.ready.retain_mut(|connection| connection.is_usable(svid));
            if let Some((_, outcome)) = &slot.opening {
                return Place::Wait(outcome.clone());
            }
            used = slot.ready.len();
        }
        if !can_dial {
            return Place::NoDial;
        }
        if used >= config.max_connections_per_key {
            return Place::Full(config.max_connections_per_key);
        }
        if self.live.len() >= config.max_connections && !self.evict() {
            return Place::Full(config.max_connections);
        }
        self.open(key)
    }

    /// Enters a connection that has been opened, and gives its opener room on it.
    pub(super) fn establish(&mut self, connection: Ready) -> Option<Reserved> {
        // None where the attempt was aborted after its last wait.
        let live = self.live.get_mut(&connection.id).filter(|live| live.link.loss().is_none())?;
        live.established = true;
        let reserved = connection.reserve();
        let slot = self.slots.entry(live.key.clone()).or_default();
        slot.opening.take_if(|(id, _)| *id == connection.id);
        slot.ready.push(connection);
        Some(reserved)
    }

    /// Takes no new tunnels on a connection; those it has go on.
    pub(super) fn retire(&mut self, id: u64) {
        let Some(key) = self.live.get(&id).map(|live| live.key.clone()) else { return };
        self.edit(&key, |slot| slot.ready.retain(|connection| connection.id != id));
    }

    /// Retires a connection that has been without tunnels for `limit`, or at all while the pool drains.
    pub(super) fn retire_unused(&mut self, id: u64, limit: Duration) -> Use {
        let Some(live) = self.live.get(&id) else { return Use::Retired };
        let limit = if self.draining { Duration::ZERO } else { limit };
        let until = live.link.unused_since() + limit;
        if live.link.tunnels() > 0 {
            return Use::Used;
        }
        if until > Instant::now() {
            return Use::UnusedUntil(until);
        }
        self.retire(id);
        Use::Retired
    }

    /// Forgets a connection, or an attempt, that has ended.
    pub(super) fn forget(&mut self, id: u64) {
        let Some(live) = self.live.remove(&id) else { return };
        self.edit(&live.key, |slot| {
            slot.ready.retain(|connection| connection.id != id);
            slot.opening.take_if(|(opening, _)| *opening == id);
        });
        if self.live.is_empty() {
            self.emptied.notify_waiters();
        }
    }

    /// Whether there is neither a connection nor an attempt.
    pub(super) fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Ends the connections and attempts that `doomed` says.
    pub(super) fn abort(&mut self, loss: Loss, doomed: impl Fn(&PoolKey) -> bool) {
        for live in self.live.values().filter(|live| doomed(&live.key)) {
            live.link.abort(loss);
        }
        // Whoever comes next must not meet what is ending.
        self.slots.retain(|key, _| !doomed(key));
    }

    /// Retires what has no tunnels, now and from now on.
    pub(super) fn drain(&mut self) {
        self.draining = true;
        self.slots.retain(|_, slot| {
            slot.ready.retain(|connection| connection.link.tunnels() > 0);
            !slot.is_empty()
        });
    }

    /// Ends everything, for good.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.abort(Loss::Shutdown, |_| true);
    }

    /// Counts what there is; tasks are counted elsewhere.
    pub(super) fn stats(&self) -> PoolStats {
        let connections = self.live.values().filter(|live| live.established).count();
        PoolStats {
            opening: self.live.len() - connections,
            connections,
            streams: self.live.values().map(|live| live.link.tunnels()).sum(),
            tasks: 0,
        }
    }

    fn open(&mut self, key: &Arc<PoolKey>) -> Place {
        let id = self.next_id;
        self.next_id += 1;
        let link = Link::new();
        let (done, outcome) = watch::channel(Outcome::Unknown);
        self.live.insert(id, Live { key: key.clone(), link: link.clone(), established: false });
        self.slots.entry(key.clone()).or_default().opening = Some((id, outcome));
        Place::Open { id, link, done }
    }

    /// Ends the connection that has been without tunnels for longest.
    fn evict(&mut self) -> bool {
        let ready = self.slots.values().flat_map(|slot| &slot.ready);
        let unused = ready.filter(|connection| connection.link.tunnels() == 0);
        let Some(connection) = unused.min_by_key(|connection| connection.link.unused_since()) else {
            return false;
        };
        connection.link.abort(Loss::Evicted);
        let id = connection.id;
        self.forget(id);
        true
    }

    fn edit(&mut self, key: &Arc<PoolKey>, change: impl FnOnce(&mut Slot)) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        change(slot);
        if slot.is_empty() {
            self.slots.remove(key);
        }
    }
}

impl Slot {
    fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.opening.is_none()
    }
}

impl Ready {
    /// Whether new tunnels may go here: not after GOAWAY or the end of the connection, only with the certificate that is
    /// current, and not so late that a certificate's end might cut them short.
    fn is_usable(&mut self, current: &Arc<Svid>) -> bool {
        // h2 answers with an error here once there was a GOAWAY; it registers no waker for a handle that has no request
        // pending.
        let over =
            matches!(self.requests.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_)));
        let over = over || self.link.loss().is_some();
        !over && !is_superseded(&self.svid, current) && SystemTime::now() < self.fresh_until
    }

    fn has_room(&self) -> bool {
        let tunnels = self.link.tunnels();
        tunnels < STREAMS_PER_CONNECTION as usize && tunnels < self.requests.current_max_send_streams()
    }

    fn reserve(&self) -> Reserved {
        Reserved {
            id: self.id,
            requests: self.requests.clone(),
            dialect: self.dialect,
            lease: self.link.lease(),
            link: self.link.clone(),
            tls: self.tls.clone(),
            verdict: self.verdict.clone(),
        }
    }
}

/// Whether `current` replaces the certificate of a connection. A caller that still holds the older one uses the
/// connection of the newer rather than closing it.
fn is_superseded(ours: &Arc<Svid>, current: &Arc<Svid>) -> bool {
    let age = |svid: &Svid| (svid.not_after(), svid.not_before());
    !Arc::ptr_eq(ours, current) && age(current) >= age(ours)
}
