//! The task of one connection: moves its frames, sends its PINGs, and closes it when it has been unused for long.

use std::{
    future::pending,
    pin::pin,
    sync::{Arc, Weak},
};

use bytes::Bytes;
use h2::client::Connection;
use tokio::time::sleep_until;

use super::{PoolKey, Shared, state::Use};
use crate::{
    hbone::{Loss, handshakes::Verdict, keepalive, link::Link, socket::Socket, tls::TlsStream},
    identity::{Lapsed, Observed, Standing, TlsFailure},
};

/// What connections of the pool run over.
pub(super) type Transport = Observed<TlsStream<Socket>>;

/// A connection that was opened, and what is to be known while it is driven.
pub(super) struct Opened {
    pub(super) connection: Connection<Transport, Bytes>,
    pub(super) standing: Standing,
    pub(super) tls: TlsFailure,
    pub(super) verdict: Verdict,
}

/// Starts the task. It ends with the connection, and forgets it in the pool.
pub(super) fn spawn(pool: &Arc<Shared>, (id, key): (u64, Arc<PoolKey>), link: Arc<Link>, opened: Opened) {
    let entry = Entry { pool: Arc::downgrade(pool), id, key };
    pool.tasks.spawn(drive(entry, link, opened));
}

/// A connection's place in the pool, given up on drop.
struct Entry {
    pool: Weak<Shared>,
    id: u64,
    key: Arc<PoolKey>,
}

async fn drive(entry: Entry, link: Arc<Link>, opened: Opened) {
    let Opened { mut connection, standing, tls, verdict } = opened;
    let mut lapsed = pin!(standing.lapsed());
    let mut silent = pin!(keepalive::lost(connection.ping_pong()));
    let mut aborted = pin!(link.aborted());
    let mut unused = pin!(retire_when_unused(&entry, &link));
    let loss = tokio::select! {
        biased;
        () = &mut aborted => link.loss().unwrap_or(Loss::Shutdown),
        ended = &mut connection => ended.as_ref().map_or_else(Loss::of, |()| Loss::Closed),
        () = &mut silent => Loss::Silent,
        lapsed = &mut lapsed => {
            entry.report(&lapsed, link.tunnels());
            Loss::Lapsed(lapsed.lapse)
        }
        () = &mut unused => Loss::Shutdown,
    };
    verdict.is(tls.get());
    // Known before the connection drops: that is when its tunnels are told.
    link.lose(loss);
    drop(connection);
}

/// Retires the connection when it has had no tunnel for a while; h2 then says GOAWAY and closes it. Returns where the
/// pool itself is gone.
async fn retire_when_unused(entry: &Entry, link: &Link) {
    loop {
        link.unused().await;
        let Some(pool) = entry.pool.upgrade() else { return };
        let now = pool.lock().retire_unused(entry.id, pool.config.unused_timeout);
        drop(pool);
        match now {
            Use::Used => {}
            Use::UnusedUntil(until) => sleep_until(until).await,
            Use::Retired => pending().await,
        }
    }
}

impl Entry {
    fn report(&self, lapsed: &Lapsed, tunnels: usize) {
        let PoolKey { source, identity, peer, expect, .. } = &*self.key;
        tracing::warn!(
            pod = %source, %identity, %peer, peer_identity = %expect, peer_serial = lapsed.serial, streams = tunnels,
            error = %lapsed, "a connection to a peer ends"
        );
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.lock().forget(self.id);
        }
    }
}
