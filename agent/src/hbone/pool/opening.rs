//! One attempt to open a connection, on behalf of everybody who waits for one.

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use tokio::{net::TcpStream, sync::watch, time::timeout};

use super::{
    PoolKey, Shared, driver, overdue,
    state::{Ready, Reserved},
};
use crate::{
    hbone::{ConnectError, Loss, Stage, client, dialect::Dialect, link::Link, socket::Socket, tls},
    identity::{Ground, Observed, Standing, Svid, TlsError, TlsFailure, Usage},
};

/// Where an attempt reports. Dropped without a report, the attempt was given up.
pub(super) type Done = watch::Sender<Outcome>;

/// What became of an attempt.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Unknown,
    Opened,
    Failed(ConnectError),
}

/// The duty to open a connection. Dropped, also by a caller who gives up, it lets another waiter begin.
pub(super) struct Ticket<'a> {
    pool: &'a Arc<Shared>,
    id: u64,
    done: Done,
    opened: bool,
}

impl Outcome {
    pub(super) fn is_known(&self) -> bool {
        !matches!(self, Self::Unknown)
    }
}

impl<'a> Ticket<'a> {
    pub(super) fn new(pool: &'a Arc<Shared>, id: u64, done: Done) -> Self {
        Self { pool, id, done, opened: false }
    }

    /// Opens the connection, enters it in the pool, starts its task, and returns room on it for the caller.
    pub(super) async fn open<D, F>(
        mut self,
        key: &Arc<PoolKey>,
        svid: &Arc<Svid>,
        dial: D,
        link: Arc<Link>,
    ) -> Result<Reserved, ConnectError>
    where
        D: FnOnce() -> F,
        F: Future<Output = io::Result<TcpStream>>,
    {
        let patience = self.pool.config.connect_timeout;
        // Until TCP is connected, nothing that fails is a handshake.
        let connected = AtomicBool::new(false);
        let attempt = async {
            let attempt = timeout(patience, handshakes(key, svid, dial, &connected));
            attempt.await.unwrap_or_else(|_| Err(overdue(key, Stage::Handshake, patience)))
        };
        let opened = tokio::select! {
            biased;
            () = link.aborted() => Err(lost(key, &link)),
            opened = attempt => opened.inspect_err(|error| {
                if connected.load(Relaxed) {
                    self.pool.handshakes.failed(error);
                }
            }),
        };
        let opened = opened.and_then(|Opened { requests, dialect, connection, tls, standing }| {
            let verdict = self.pool.handshakes.verdict();
            let ready = Ready {
                id: self.id,
                requests,
                dialect,
                svid: svid.clone(),
                fresh_until: standing.fresh_until(),
                link: link.clone(),
                tls: tls.clone(),
                verdict: verdict.clone(),
            };
            let reserved = self.pool.lock().establish(ready).ok_or_else(|| lost(key, &link))?;
            Ok((reserved, driver::Opened { connection, standing, tls, verdict }))
        });
        match opened {
            Ok((reserved, opened)) => {
                self.opened = true;
                driver::spawn(self.pool, (self.id, key.clone()), link, opened);
                self.done.send_replace(Outcome::Opened);
                Ok(reserved)
            }
            Err(error) => {
                // Forgotten first: who reads the report and tries again must not meet this attempt.
                self.pool.lock().forget(self.id);
                self.done.send_replace(Outcome::Failed(error.clone()));
                Err(error)
            }
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if !self.opened {
            self.pool.lock().forget(self.id);
        }
    }
}

struct Opened {
    requests: h2::client::SendRequest<bytes::Bytes>,
    dialect: Dialect,
    connection: h2::client::Connection<driver::Transport, bytes::Bytes>,
    tls: TlsFailure,
    standing: Standing,
}

/// TCP, TLS with the expected identity, HTTP/2.
async fn handshakes<D, F>(
    key: &PoolKey,
    svid: &Arc<Svid>,
    dial: D,
    connected: &AtomicBool,
) -> Result<Opened, ConnectError>
where
    D: FnOnce() -> F,
    F: Future<Output = io::Result<TcpStream>>,
{
    let peer = key.peer;
    let tls_error = |source: TlsError| ConnectError::Tls { peer, source: Arc::new(source) };
    let tcp = dial().await.map_err(|source| ConnectError::Dial { peer, source: Arc::new(source) })?;
    connected.store(true, Relaxed);
    let ground = Ground::new(svid, Usage::Server);
    // Not sent (no SNI), and not checked: the identity is.
    let name = peer.ip().into();
    let tls = tls::connect(svid.client_config(&key.expect), name, Socket::new(tcp)).await;
    let tls = tls.map_err(|error| tls_error(TlsError::from_io(&error)))?;
    let Some(dialect) = Dialect::of(tls.session().alpn_protocol()) else {
        let detail = "it did not choose h2 by ALPN".to_owned();
        return Err(ConnectError::Protocol { peer, detail });
    };
    let standing = ground.stand(tls.session());
    let transport = Observed::new(tls);
    let failure = transport.failure();
    let (requests, connection) = client::handshake(transport).await.map_err(|error| match failure.get() {
        Some(source) => tls_error(source.clone()),
        None => ConnectError::Lost { peer, loss: Loss::of(&error) },
    })?;
    Ok(Opened { requests, dialect, connection, tls: failure, standing })
}

fn lost(key: &PoolKey, link: &Link) -> ConnectError {
    ConnectError::Lost { peer: key.peer, loss: link.loss().unwrap_or(Loss::Shutdown) }
}
