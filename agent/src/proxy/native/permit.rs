//! A permit: between whom, and whether what it was given on still holds.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use tokio::{sync::watch, task::spawn_blocking, time::sleep};

use super::{
    super::{admission::Admission, delivery::DeliveryError, local::LocalError, pod::Shared, terms::Terms},
    LOOK_AGAIN,
    segments::Segments,
};
use crate::{
    capture,
    identity::{Pair, SvidStore},
    mesh::Identity,
    shutdown::Shutdown,
};

/// What native connections stand on.
#[derive(Debug)]
pub(in crate::proxy) struct Permit {
    pub(in crate::proxy) source: Arc<Shared>,
    pub(in crate::proxy) destination: Arc<Shared>,
    /// The client's address, with no port that matters.
    client: SocketAddr,
    pub(in crate::proxy) target: SocketAddr,
    /// Whose certificate the source has.
    pub(in crate::proxy) identity: Identity,
    /// Why its connections were ended.
    pub(super) ended: OnceLock<LocalError>,
    /// Those that were, by their cookies.
    cut: Mutex<HashSet<u64>>,
}

impl Permit {
    /// Describes a connection of one pod's own address to another's.
    pub(in crate::proxy) fn between(
        source: Arc<Shared>,
        destination: Arc<Shared>,
        client: SocketAddr,
        target: SocketAddr,
    ) -> Self {
        let identity = source.workload().identity.clone();
        Self { source, destination, client, target, identity, ended: OnceLock::new(), cut: Mutex::default() }
    }

    /// Returns why the agent ended a connection, by its cookie.
    pub(in crate::proxy) fn cut(&self, cookie: u64) -> Option<&LocalError> {
        self.ended.get().filter(|_| self.lock().contains(&cookie))
    }

    /// Returns what a connection of the permit asks of the policies.
    pub(in crate::proxy) fn admission(&self) -> Admission {
        let (client, identity) = (self.client.ip(), self.identity.clone());
        Admission::new(self.destination.subscribe(), client, Some(identity), self.target)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a permit was given on, and may change.
pub(super) struct Changes {
    terms: [watch::Receiver<Terms>; 2],
    leaving: [watch::Receiver<()>; 2],
}

impl Changes {
    pub(super) fn subscribe(permit: &Permit) -> Self {
        let ends = [&permit.source, &permit.destination];
        Self { terms: ends.map(|pod| pod.subscribe()), leaving: ends.map(|pod| pod.permits.subscribe()) }
    }

    /// Returns when the permit is to be given anew, if at all.
    pub(super) async fn any(&mut self, permit: &Permit, shutdown: &Shutdown) {
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
pub(super) async fn give(permit: &Arc<Permit>) -> Result<u64, Option<String>> {
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

/// Returns when one of the two pods has a newer certificate: what stands on the old one ends when that expires.
pub(super) async fn renewed(pair: &Pair, svids: &SvidStore) {
    loop {
        sleep(LOOK_AGAIN).await;
        for svid in pair.certificates() {
            if svids.svid(svid.identity()).await.is_ok_and(|now| now.serial() != svid.serial()) {
                return;
            }
        }
    }
}

/// Returns when one of the two pods is found on a segment that others share.
async fn shared(permit: &Permit, segments: &Segments) -> Arc<capture::Shared> {
    let why = tokio::select! {
        why = segments.shared(&permit.source, permit.client.ip()) => why,
        why = segments.shared(&permit.destination, permit.target.ip()) => why,
    };
    let (source, destination) = (permit.source.workload(), permit.destination.workload());
    tracing::warn!(%source, %destination, %why, "connections between these two pods go through the agent again");
    why
}

/// Returns why the connections may not go on.
pub(super) async fn over(
    permit: &Permit,
    pair: &Pair,
    admission: &mut Admission,
    (segments, shutdown): (&Segments, &Shutdown),
) -> LocalError {
    tokio::select! {
        biased;
        ended = permit.source.ended(shutdown) => ended.into(),
        ended = permit.destination.ended(shutdown) => ended.into(),
        lapsed = pair.lapsed() => LocalError::Lapsed(lapsed),
        refused = admission.revoked() => LocalError::Broken(DeliveryError::Refused(refused)),
        why = shared(permit, segments) => LocalError::Shared(why),
    }
}
