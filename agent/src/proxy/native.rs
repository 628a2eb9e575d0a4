//! Connections between two pods of this node that go past the agent (`--native`).
//!
//! ```text
//! local: one connection carried ──► offer ──► permit in the kernel ──► the next ones go from socket to socket
//!                                               │ terms change, a pod leaves, drain: no new ones
//!                                               │ policy refuses, a certificate lapses, a pod goes, a shared segment, abort: all end
//!                                               ▼
//!                                            withdrawn
//! ```
//!
//! A permit stands for one pod's connections to one port of another, by one pair of certificates. Whatever changes of what it
//! was given on ends it; the next connection goes through the agent again, and may bring a new one. A task holds each permit for as
//! long as there are connections that came of it, and holds these to policy and to the certificates as those that the agent carries.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    task::spawn_blocking,
    time::{Instant, sleep},
};

use super::{
    admission::Admission,
    context::Context,
    delivery::DeliveryError,
    local::LocalError,
    pod::{Ended, Shared},
};
use crate::{
    capture::{self, MAX_PERMITS},
    identity::Pair,
    mesh::Identity,
    shutdown::Shutdown,
};

/// The permits of the node. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Native {
    enabled: bool,
    heritage: Duration,
    /// The main runtime: what carries connections has others.
    runtime: Handle,
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

/// What native connections stand on.
#[derive(Debug)]
pub(super) struct Permit {
    pub(super) source: Arc<Shared>,
    pub(super) destination: Arc<Shared>,
    /// The client's address, with no port that matters.
    client: SocketAddr,
    pub(super) target: SocketAddr,
    /// Whose certificate the source has.
    pub(super) identity: Identity,
    /// Why its connections were ended.
    ended: OnceLock<LocalError>,
    /// Those that were, by their cookies.
    cut: Mutex<HashSet<u64>>,
}

impl Native {
    /// Prepares to give permits where it is wanted. Must be called within a Tokio runtime.
    pub(super) fn new(enabled: bool, heritage: Duration) -> Self {
        Self { enabled, heritage, runtime: Handle::current(), table: Arc::default() }
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
        let permit = Permit {
            identity: pair.client().clone(),
            ..Permit::between(Arc::clone(source), Arc::clone(destination), client, target)
        };
        let (native, pair, shutdown) = (self.clone(), Arc::clone(pair), shutdown.clone());
        let tasks = shutdown.tasks().clone();
        tasks.spawn_on(native.hold(key, Arc::new(permit), pair, shutdown), &self.runtime);
    }

    /// Returns the permit of a generation.
    pub(super) fn permit(&self, generation: u64) -> Option<Arc<Permit>> {
        self.lock().held.get(&generation).cloned()
    }

    /// Gives the permit, and holds its connections to what it was given on, to the last one's end.
    async fn hold(self, key: Key, permit: Arc<Permit>, pair: Arc<Pair>, shutdown: Shutdown) {
        let Permit { source, destination, client, target, .. } = &*permit;
        let mut changes = Changes::subscribe(&permit);
        let mut admission =
            Admission::new(destination.subscribe(), client.ip(), Some(permit.identity.clone()), *target);
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
            ended = over(&permit, &pair, &mut admission, &shutdown) => Err(ended),
            () = changes.any(&permit, &shutdown) => Ok(()),
        };
        if let Err(error) = source.capture.withdraw(*target, generation) {
            tracing::error!(source = %source.workload(), %target, %error, "a permit for native connections was not taken back");
        }
        self.lock().pairs.remove(&key);
        let ended = match standing {
            Err(ended) => Some(ended),
            Ok(()) => tokio::select! {
                biased;
                ended = over(&permit, &pair, &mut admission, &shutdown) => Some(ended),
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

impl Permit {
    /// Describes a connection of one pod's own address to another's.
    pub(super) fn between(
        source: Arc<Shared>,
        destination: Arc<Shared>,
        client: SocketAddr,
        target: SocketAddr,
    ) -> Self {
        let identity = source.workload().identity.clone();
        Self { source, destination, client, target, identity, ended: OnceLock::new(), cut: Mutex::default() }
    }

    /// Returns why the agent ended a connection, by its cookie.
    pub(super) fn cut(&self, cookie: u64) -> Option<&LocalError> {
        self.ended.get().filter(|_| self.lock().contains(&cookie))
    }

    /// Returns what a connection of the permit asks of the policies.
    pub(super) fn admission(&self) -> Admission {
        let (client, identity) = (self.client.ip(), self.identity.clone());
        Admission::new(self.destination.subscribe(), client, Some(identity), self.target)
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a permit was given on, and may change.
struct Changes {
    terms: [tokio::sync::watch::Receiver<super::terms::Terms>; 2],
    leaving: [tokio::sync::watch::Receiver<()>; 2],
}

impl Changes {
    fn subscribe(permit: &Permit) -> Self {
        let ends = [&permit.source, &permit.destination];
        Self { terms: ends.map(|pod| pod.subscribe()), leaving: ends.map(|pod| pod.permits.subscribe()) }
    }

    /// Returns when the permit is to be given anew, if at all.
    async fn any(&mut self, permit: &Permit, shutdown: &Shutdown) {
        let [source, destination] = &mut self.terms;
        let [source_leaves, destination_leaves] = &mut self.leaving;
        tokio::select! {
            _ = source.changed() => {}
            _ = destination.changed() => {}
            _ = source_leaves.changed() => {}
            _ = destination_leaves.changed() => {}
            () = permit.source.closing.cancelled() => {}
            () = permit.destination.closing.cancelled() => {}
            () = permit.source.left.cancelled() => {}
            () = permit.destination.left.cancelled() => {}
            () = shutdown.drain().cancelled() => {}
            () = shutdown.succeeded().cancelled() => {}
        }
    }
}

/// Returns the permit's generation; where there can be none, why, if anybody is to hear of it.
async fn give(permit: &Arc<Permit>) -> Result<u64, Option<String>> {
    let looking = Arc::clone(permit);
    let given = spawn_blocking(move || {
        let Permit { source, destination, client, target, .. } = &*looking;
        source.capture.permit(&destination.capture, client.ip(), *target)
    });
    match given.await {
        Ok(given) => given.map_err(|error| Some(error.to_string())),
        Err(_) => Err(None),
    }
}

/// Returns when one of the two pods is found on a segment that others share.
async fn shared(permit: &Arc<Permit>) -> capture::Shared {
    loop {
        sleep(LOOK_AGAIN).await;
        let looking = Arc::clone(permit);
        let looked = spawn_blocking(move || {
            looking.source.capture.check_segment(looking.client.ip())?;
            looking.destination.capture.check_segment(looking.target.ip())
        });
        if let Ok(Err(why)) = looked.await {
            let (source, destination) = (permit.source.workload(), permit.destination.workload());
            tracing::warn!(%source, %destination, %why, "connections between these two pods go through the agent again");
            return why;
        }
    }
}

/// Returns why the connections may not go on.
async fn over(
    permit: &Arc<Permit>,
    pair: &Pair,
    admission: &mut Admission,
    shutdown: &Shutdown,
) -> LocalError {
    tokio::select! {
        biased;
        () = shutdown.abort().cancelled() => Ended::Shutdown.into(),
        () = permit.source.gone.cancelled() => Ended::Gone.into(),
        () = permit.destination.gone.cancelled() => Ended::Gone.into(),
        lapsed = pair.lapsed() => LocalError::Lapsed(lapsed),
        refused = admission.revoked() => LocalError::Broken(DeliveryError::Refused(refused)),
        why = shared(permit) => LocalError::Shared(why),
    }
}

/// Returns when a permit that has been taken back has no connections any more.
async fn unused(permit: &Arc<Permit>, generation: u64, shutdown: &Shutdown) {
    let mut looks_without = 0;
    // What was let through just before is on its way.
    while looks_without < 2 {
        sleep(if shutdown.drain().is_cancelled() { DRAINING } else { LOOK_AGAIN }).await;
        let looking = Arc::clone(permit);
        let any = spawn_blocking(move || {
            let of = |pod: &Shared| pod.capture.native_sockets().unwrap_or_default();
            of(&looking.source).iter().any(|socket| socket.generation == generation)
        });
        looks_without = if any.await.unwrap_or(true) { 0 } else { looks_without + 1 };
    }
}

/// Ends the connections of a permit that has been taken back, at both ends: what the source sends last need not arrive.
async fn end(permit: &Arc<Permit>, generation: u64) {
    let looking = Arc::clone(permit);
    let ended = spawn_blocking(move || {
        for pod in [&looking.source, &looking.destination] {
            let of_permit = |socket: &capture::NativeSocket| socket.generation == generation;
            let note = |socket: &capture::NativeSocket| {
                if socket.is_source {
                    looking.lock().insert(socket.cookie);
                }
            };
            destroy(pod, of_permit, note);
        }
    });
    if let Err(error) = ended.await {
        tracing::error!(%error, "ending native connections failed");
    }
}

/// Ends those of a pod's native sockets that are wanted, and returns how many. Blocks.
fn destroy(
    pod: &Shared,
    wanted: impl Fn(&capture::NativeSocket) -> bool,
    note: impl Fn(&capture::NativeSocket),
) -> usize {
    let sockets = match pod.capture.native_sockets() {
        Ok(sockets) => sockets,
        Err(error) => {
            tracing::error!(pod = %pod.workload(), %error, "native connections that are to end cannot be listed");
            return 0;
        }
    };
    let mut ended = 0;
    for socket in sockets.iter().filter(|socket| wanted(socket)) {
        note(socket);
        match pod.capture.destroy_native(socket) {
            Ok(()) => ended += 1,
            Err(error) => {
                tracing::error!(pod = %pod.workload(), %error, "a native connection cannot be ended");
            }
        }
    }
    ended
}

/// Ends a pod's native connections that an agent before this one permitted, once that has ended: nobody holds them to policy
/// any more.
pub(super) fn end_orphans(context: &Arc<Context>, pod: &Arc<Shared>) {
    if !pod.capture.is_adopted() {
        return;
    }
    let (pod, heritage, runtime) = (Arc::clone(pod), context.native.heritage, &context.native.runtime);
    let ending = async move {
        let closing = pod.closing.clone();
        closing.run_until_cancelled_owned(sleep(heritage)).await;
        let looked = spawn_blocking(move || {
            let ended = destroy(&pod, |socket| !pod.capture.is_own_permit(socket.generation), |_| ());
            if ended > 0 {
                tracing::info!(pod = %pod.workload(), sockets = ended, "native connections that an agent before this one permitted have been ended");
            }
        });
        let _ = looked.await;
    };
    runtime.spawn(ending);
}

/// When a withdrawn permit's connections are looked for again, for what was just being made.
const AGAIN: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(1500)];

/// How often the pods' interfaces are looked at, and connections whose permit was taken back.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The same while the agent drains, and waits for it.
const DRAINING: Duration = Duration::from_millis(250);

/// How long a pair of pods is left alone that cannot have a permit.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many permits one pod can have, so that it leaves room for others.
const MAX_OF_POD: usize = 256;
