//! Connections between two pods of this node that go past the agent (`--native`).
//!
//! ```text
//! local: one connection carried ──► offer ──► permit in the kernel ──► the next ones go from socket to socket
//!                                               │ terms change, a new certificate, a pod leaves, drain: no new ones
//!                                               │ policy refuses, a certificate lapses, a pod goes, a shared segment, abort: all end
//!                                               ▼
//!                                            withdrawn
//! ```
//!
//! A permit stands for one pod's connections to one port of another, by one pair of certificates. Whatever changes of what it
//! was given on ends it; the next connection goes through the agent again, and may bring a new one. A task holds each permit for as
//! long as there are connections that came of it, and holds these to policy and to the certificates as those that the agent carries.

mod ends;
mod permit;
mod segments;
mod sockets;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};

use super::{context::Context, pod::Shared};
use crate::{
    capture::MAX_PERMITS,
    identity::{Pair, SvidStore},
    shutdown::Shutdown,
};
use permit::{Changes, Permit, give, over, renewed};
use segments::Segments;
use sockets::{end, unused};

pub use ends::follow as follow_native_ends;
pub(super) use sockets::end_orphans;

/// The permits of the node. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Native {
    enabled: bool,
    heritage: Duration,
    /// The main runtime: what carries connections has others.
    runtime: Handle,
    segments: Segments,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    /// What is permitted or being looked at, or was found not to be possible at a time.
    pairs: HashMap<Key, Option<Instant>>,
    /// The permits with connections, or that may have some.
    held: HashMap<u64, Arc<Permit>>,
    /// How many of them are from each pod, by its namespace.
    of_pod: HashMap<u64, usize>,
}

/// The namespace that connects, and where it connects to.
type Key = (u64, SocketAddr);

impl Native {
    /// Prepares to give permits where it is wanted. Must be called within a Tokio runtime.
    pub(super) fn new(enabled: bool, heritage: Duration) -> Self {
        Self {
            enabled,
            heritage,
            runtime: Handle::current(),
            segments: Segments::default(),
            table: Arc::default(),
        }
    }

    /// Has the next connections of the kind go past the agent: from `client`'s address, an own one of the source's, to `target`, an
    /// own one of the destination's. The agent is carrying one of them. Costs a look where that was done before.
    pub(super) fn offer(
        &self,
        context: &Context,
        (source, destination): (&Arc<Shared>, &Arc<Shared>),
        pair: &Arc<Pair>,
        (client, target): (SocketAddr, SocketAddr),
    ) {
        let shutdown = &context.shutdown;
        if !self.enabled || shutdown.drain().is_cancelled() || shutdown.succeeded().is_cancelled() {
            return;
        }
        let key = (source.capture.netns().cookie(), target);
        if key.0 == destination.capture.netns().cookie() || !self.lock().begin(key) {
            return;
        }
        let mut permit = Permit::between(Arc::clone(source), Arc::clone(destination), client, target);
        permit.identity = pair.certificates()[0].identity().clone();
        let (native, pair, context) =
            (self.clone(), Arc::clone(pair), (context.svids.clone(), shutdown.clone()));
        let tasks = shutdown.tasks().clone();
        tasks.spawn_on(native.hold(key, Arc::new(permit), pair, context), &self.runtime);
    }

    /// Returns the permit of a generation.
    pub(super) fn permit(&self, generation: u64) -> Option<Arc<Permit>> {
        self.lock().held.get(&generation).cloned()
    }

    /// Gives the permit, and holds its connections to what it was given on, to the last one's end.
    async fn hold(
        self,
        key: Key,
        permit: Arc<Permit>,
        pair: Arc<Pair>,
        (svids, shutdown): (SvidStore, Shutdown),
    ) {
        let Permit { source, destination, target, .. } = &*permit;
        let mut changes = Changes::subscribe(&permit);
        let mut admission = permit.admission();
        let given = if admission.is_permitted() { give(&permit).await } else { Err(None) };
        let generation = match given {
            Ok(generation) => generation,
            Err(why) => {
                if let Some(why) = why {
                    let (source, destination) = (source.workload(), destination.workload());
                    tracing::info!(%source, %destination, why, "connections between these two pods go through the agent");
                }
                self.lock().refuse(key);
                return;
            }
        };
        self.lock().hold(generation, &permit);
        let standing = tokio::select! {
            biased;
            ended = over(&permit, &pair, &mut admission, (&self.segments, &shutdown)) => Err(ended),
            () = changes.any(&permit, &shutdown) => Ok(()),
            () = renewed(&pair, &svids) => Ok(()),
        };
        if let Err(error) = source.capture.withdraw(*target, generation) {
            tracing::error!(source = %source.workload(), %target, %error, "a permit for native connections was not taken back");
        }
        self.lock().pairs.remove(&key);
        let ended = match standing {
            Err(ended) => Some(ended),
            Ok(()) => tokio::select! {
                biased;
                ended = over(&permit, &pair, &mut admission, (&self.segments, &shutdown)) => Some(ended),
                () = unused(&permit, generation, &shutdown) => None,
            },
        };
        if let Some(ended) = ended {
            let _ = permit.ended.set(ended);
            for pause in AGAIN {
                end(&permit, generation).await;
                sleep(pause).await;
            }
        }
        self.lock().release(key, generation);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Whether somebody is to look at it now.
    fn begin(&mut self, key: Key) -> bool {
        match self.pairs.get(&key) {
            Some(None) => return false,
            Some(Some(refused)) if refused.elapsed() < PATIENCE => return false,
            _ => {}
        }
        if self.pairs.len() >= MAX_PERMITS {
            self.pairs.retain(|_, refused| refused.is_none_or(|refused| refused.elapsed() < PATIENCE));
        }
        let held = self.of_pod.get(&key.0).copied().unwrap_or_default();
        let room = held < MAX_OF_POD && self.held.len() < MAX_PERMITS && self.pairs.len() < MAX_PERMITS;
        if room {
            *self.of_pod.entry(key.0).or_default() += 1;
            self.pairs.insert(key, None);
        }
        room
    }

    fn refuse(&mut self, key: Key) {
        self.pairs.insert(key, Some(Instant::now()));
        self.leave(key);
    }

    fn hold(&mut self, generation: u64, permit: &Arc<Permit>) {
        self.held.insert(generation, Arc::clone(permit));
    }

    fn release(&mut self, key: Key, generation: u64) {
        self.held.remove(&generation);
        self.leave(key);
    }

    fn leave(&mut self, (netns, _): Key) {
        if let Some(count) = self.of_pod.get_mut(&netns) {
            *count -= 1;
            if *count == 0 {
                self.of_pod.remove(&netns);
            }
        }
    }
}

/// How long a pair of pods is left alone that cannot have a permit.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many permits one pod can have, so that it leaves room for others.
const MAX_OF_POD: usize = 256;

/// When a withdrawn permit's connections are looked for again, for what was just being made.
const AGAIN: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(1500)];

/// How often the pods' interfaces are looked at, and connections whose permit was taken back.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
