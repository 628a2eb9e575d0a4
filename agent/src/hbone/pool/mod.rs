//! The pool of connections to other agents: which one carries a tunnel, when another is opened, when one is closed.
//!
//! Tunnels share a connection only where everything that the peer could tell apart is the same ([`PoolKey`]): two pods
//! of one identity never do. A connection takes no new tunnels, while those it has go on, once it is full, its
//! certificate was renewed, half of what both ends' certificates left it is over, or the peer said GOAWAY; it closes
//! when it has been unused for a while. It ends, and its tunnels with it, when one of the certificates does.
//! One task drives each connection, and all of them are counted.

mod driver;
mod opening;
mod state;

use std::{
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    ops::Add,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::task::TaskTracker;

use self::{
    opening::{Outcome, Ticket},
    state::{Place, Reserved, State},
};
use super::{
    ConnectError, ConnectRequest, FirstBytes, Handshakes, Loss, Stage, Tunnel, TunnelError, client,
    client::RequestError, dialect::Dialect,
};
use crate::{identity::Svid, mesh::Identity};

/// Everything that must be the same for two tunnels to share a connection.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct PoolKey {
    /// The source pod's uid.
    pub source_workload: Arc<str>,
    /// The source pod's address, which the connection is made from.
    pub source: IpAddr,
    /// The source pod's identity.
    pub identity: Identity,
    /// The destination's agent: the pod's own address, port 15008.
    pub peer: SocketAddr,
    /// The destination pod's uid: an address that another pod has now is another key.
    pub peer_workload: Arc<str>,
    /// The only identity that is accepted from the peer.
    pub expect: Identity,
}

/// The pool's deadlines and bounds.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// For TCP, TLS and the beginning of HTTP/2, together.
    pub connect_timeout: Duration,
    /// For the answer to CONNECT.
    pub reply_timeout: Duration,
    /// A connection without tunnels is closed after this time (hbone.md: what ztunnel does).
    pub unused_timeout: Duration,
    /// Connections that take new tunnels, for one key.
    pub max_connections_per_key: usize,
    /// All connections: those that are being opened and those that only finish their tunnels included.
    pub max_connections: usize,
}

/// The connections to all peers. Cheap to clone; all clones are the same pool.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

/// What the pool holds at one moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PoolStats {
    /// Connections that are being opened.
    pub opening: usize,
    /// Connections, those included that only finish their tunnels.
    pub connections: usize,
    /// Tunnels, those included whose CONNECT is not yet answered.
    pub streams: usize,
    /// Tasks that drive connections.
    pub tasks: usize,
}

impl Add for PoolStats {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            opening: self.opening + other.opening,
            connections: self.connections + other.connections,
            streams: self.streams + other.streams,
            tasks: self.tasks + other.tasks,
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.stats()).finish()
    }
}

struct Shared {
    config: PoolConfig,
    tasks: TaskTracker,
    handshakes: Handshakes,
    state: Mutex<State>,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            reply_timeout: Duration::from_secs(10),
            unused_timeout: Duration::from_secs(300),
            // 12,800 tunnels between one pod and another: near the number of ephemeral ports of the one.
            max_connections_per_key: 128,
            // A descriptor each, beside those of the applications' connections.
            max_connections: 8192,
        }
    }
}

impl Pool {
    /// Makes an empty pool that counts its handshakes into totals that others may count into, too.
    pub fn new(config: PoolConfig, handshakes: Handshakes) -> Self {
        let tasks = TaskTracker::new();
        // Closed only says that waiting may end when there is none; more can be spawned.
        tasks.close();
        Self(Arc::new(Shared { config, tasks, handshakes, state: Mutex::default() }))
    }

    /// Opens a tunnel: reuses a connection that has room or opens one, sends CONNECT, and waits for the 200. Where the peer
    /// takes them together with it, it is sent the bytes that are to go `first`: [`Tunnel::early`] says how many.
    ///
    /// `dial` is called where a TCP connection is needed, at most once. Callers of one key who need a connection at the
    /// same time share one attempt, its failure included; where the attempt is cancelled another of them goes on. A
    /// CONNECT that the peer has provably not processed is sent once more on another connection.
    ///
    /// # Errors
    /// Where there is no tunnel within the pool's deadlines; see [`ConnectError`].
    pub async fn connect<D, F>(
        &self,
        key: PoolKey,
        svid: Arc<Svid>,
        dial: D,
        (request, first): (ConnectRequest, &mut impl FirstBytes),
    ) -> Result<Tunnel, ConnectError>
    where
        D: FnOnce() -> F,
        F: Future<Output = io::Result<TcpStream>>,
    {
        let key = Arc::new(key);
        let mut dial = Some(dial);
        let mut refused = None;
        loop {
            let reserved = match self.reserve(&key, &svid, &mut dial).await {
                // The connection that would not take it was the one that `dial` made.
                Err(Unplaced::NoDial) => return Err(refused.unwrap_or_else(|| overload(&key, 0))),
                Err(Unplaced::Failed(error)) => return Err(error),
                Ok(reserved) => reserved,
            };
            match self.request(&key, reserved, (&request, &mut *first)).await {
                Err((id, Retry::Elsewhere, error)) if refused.is_none() => {
                    self.0.lock().retire(id);
                    refused = Some(error);
                }
                Err((_, _, error)) => return Err(error),
                Ok(tunnel) => return Ok(tunnel),
            }
        }
    }

    /// Ends all connections of a pod that left the mesh, and their tunnels with them.
    pub fn drop_source(&self, uid: &str) {
        self.0.lock().abort(Loss::PodGone, |key| &*key.source_workload == uid);
    }

    /// Ends all connections to peers that are not to be kept: their address has changed hands.
    pub fn retain_peers(&self, keep: impl Fn(&PoolKey) -> bool) {
        self.0.lock().abort(Loss::PeerGone, |key| !keep(key));
    }

    /// Closes each connection as soon as it has no tunnel, and waits until there is no connection any more.
    ///
    /// New tunnels are still opened meanwhile, for connections that the agent has accepted before. The caller sets the
    /// deadline, and then calls [`Self::abort`].
    pub async fn drain(&self) {
        let emptied = {
            let mut state = self.0.lock();
            state.drain();
            state.emptied.clone()
        };
        loop {
            // Before the look, so that an end in between is not missed.
            let notified = emptied.notified();
            if self.0.lock().is_empty() {
                break;
            }
            notified.await;
        }
        self.0.tasks.wait().await;
    }

    /// Ends all connections and their tunnels, and opens no more.
    pub fn abort(&self) {
        self.0.lock().close();
    }

    /// Returns the totals of handshakes; who serves connections counts those too.
    pub fn handshakes(&self) -> &Handshakes {
        &self.0.handshakes
    }

    /// Counts what there is.
    pub fn stats(&self) -> PoolStats {
        PoolStats { tasks: self.0.tasks.len(), ..self.0.lock().stats() }
    }

    /// Finds or makes room for one tunnel.
    async fn reserve<D, F>(
        &self,
        key: &Arc<PoolKey>,
        svid: &Arc<Svid>,
        dial: &mut Option<D>,
    ) -> Result<Reserved, Unplaced>
    where
        D: FnOnce() -> F,
        F: Future<Output = io::Result<TcpStream>>,
    {
        let patience = self.0.config.connect_timeout;
        let deadline = Instant::now() + patience;
        loop {
            let place = self.0.lock().place(key, svid, &self.0.config, dial.is_some());
            match place {
                Place::Ready(reserved) => return Ok(reserved),
                Place::Open { id, link, done } => {
                    let ticket = Ticket::new(&self.0, id, done);
                    let dial = dial.take().ok_or(Unplaced::NoDial)?;
                    // Apart from the caller's future, which lives as long as its tunnel: this is far larger, and most need it never.
                    return Ok(Box::pin(ticket.open(key, svid, dial, link)).await?);
                }
                Place::Wait(mut done) => {
                    let outcome = timeout_at(deadline, done.wait_for(Outcome::is_known)).await;
                    match outcome.map(|known| known.map(|outcome| outcome.clone())) {
                        Ok(Ok(Outcome::Failed(error))) => return Err(error.into()),
                        // Opened, or given up by who had begun: see what there is now.
                        Ok(_) => {}
                        Err(_) => return Err(overdue(key, Stage::Turn, patience).into()),
                    }
                }
                Place::NoDial => return Err(Unplaced::NoDial),
                Place::Full(limit) => return Err(overload(key, limit).into()),
                Place::Closed(loss) => return Err(ConnectError::Lost { peer: key.peer, loss }.into()),
            }
        }
    }

    async fn request(
        &self,
        key: &PoolKey,
        reserved: Reserved,
        (request, first): (&ConnectRequest, &mut impl FirstBytes),
    ) -> Result<Tunnel, (u64, Retry, ConnectError)> {
        let peer = key.peer;
        let patience = self.0.config.reply_timeout;
        let Reserved { id, requests, dialect, lease, link, tls, verdict } = reserved;
        let first = (dialect == Dialect::Early).then_some(first);
        let error = match timeout(patience, client::request(requests, lease, (request, first))).await {
            Ok(Ok(tunnel)) => {
                verdict.is(None);
                return Ok(tunnel);
            }
            Ok(Err(error)) => error,
            Err(_) => return Err((id, Retry::Never, overdue(key, Stage::Reply, patience))),
        };
        // The server judges our certificate after our handshake has ended: its alert comes now.
        if let Some(source) = tls.get() {
            verdict.is(Some(source));
            return Err((id, Retry::Never, ConnectError::Tls { peer, source: Arc::new(source.clone()) }));
        }
        let (retry, error) = match error {
            RequestError::Unprocessed(error) if link.loss().is_none_or(is_its_own) => {
                (Retry::Elsewhere, error)
            }
            RequestError::Unprocessed(error) | RequestError::Failed(error) => (Retry::Never, error),
            RequestError::Refused(status) => {
                return Err((id, Retry::Never, ConnectError::Refused { peer, status }));
            }
            RequestError::Malformed(error) => {
                let detail = format!("the request cannot be written: {error}");
                return Err((id, Retry::Never, ConnectError::Protocol { peer, detail }));
            }
        };
        let error = match TunnelError::of(&error, link.loss()) {
            TunnelError::Reset(code) => ConnectError::Reset { peer, code },
            TunnelError::Lost(Loss::Protocol(_)) => {
                ConnectError::Protocol { peer, detail: error.to_string() }
            }
            TunnelError::Lost(loss) => ConnectError::Lost { peer, loss },
        };
        Err((id, retry, error))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why there is no room for a tunnel.
enum Unplaced {
    Failed(ConnectError),
    /// A connection would have to be opened, and `dial` was used up.
    NoDial,
}

/// Whether a CONNECT may be sent again.
enum Retry {
    Elsewhere,
    Never,
}

impl From<ConnectError> for Unplaced {
    fn from(error: ConnectError) -> Self {
        Self::Failed(error)
    }
}

/// Whether a connection ended for a reason that another one need not have.
fn is_its_own(loss: Loss) -> bool {
    match loss {
        Loss::Silent | Loss::Protocol(_) | Loss::Io(_) | Loss::Closed | Loss::Evicted | Loss::Lapsed(_) => {
            true
        }
        Loss::PodGone | Loss::PeerGone | Loss::Shutdown => false,
    }
}

fn overdue(key: &PoolKey, stage: Stage, after: Duration) -> ConnectError {
    ConnectError::Timeout { peer: key.peer, stage, after }
}

fn overload(key: &PoolKey, limit: usize) -> ConnectError {
    ConnectError::Overload { peer: key.peer, limit }
}
