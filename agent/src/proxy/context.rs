//! What every connection's task shares.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    access_log::{AccessLog, AccessLogFormat},
    bypass::SWEEPS,
    metrics::Metrics,
    native::Native,
    pods::{Pods, Unenforced},
    shares::Shares,
    workers::Workers,
};
use crate::{
    identity::{MutualTrust, Svid, SvidError, SvidStore},
    mesh::{Identity, Snapshot, Workload},
    shutdown::Shutdown,
};

/// How the proxy behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// How access-log lines look.
    pub access_log: AccessLogFormat,
    /// How many connections the agent carries at once; each costs a descriptor.
    pub max_connections: usize,
    /// Whether addresses that nobody knows are waited for: there are configured pod ranges.
    pub hold_unknown: bool,
    /// Whether connections between two pods of the node may go past the agent.
    pub native: bool,
    /// How long native connections may go on that an agent before this one has permitted: as long as it may take to end.
    pub native_heritage: Duration,
}

/// What every connection's task shares.
#[derive(Debug)]
pub struct Context {
    pub(super) mesh: watch::Receiver<Arc<Snapshot>>,
    pub(super) svids: SvidStore,
    /// What connections between two pods of this node stand on.
    pub(super) mutual: MutualTrust,
    pub(super) workers: Workers,
    pub(super) metrics: Metrics,
    pub(super) access_log: AccessLog,
    pub(super) shutdown: Shutdown,
    pub(super) shares: Shares,
    /// Tunnels whose client has not shown yet who it is.
    pub(super) handshakes: Shares,
    pub(super) hold_unknown: bool,
    pub(super) native: Native,
    pub(super) pods: Pods,
    /// Turns to look at the connections of one pod that bypass the agent.
    pub(super) sweeps: Semaphore,
}

impl Context {
    /// Puts the parts together and starts the access log's thread.
    ///
    /// Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// Where the thread cannot be started.
    pub fn new(
        config: &Config,
        mesh: watch::Receiver<Arc<Snapshot>>,
        (svids, workers): (SvidStore, Workers),
        metrics: Metrics,
        shutdown: Shutdown,
    ) -> std::io::Result<Arc<Self>> {
        let access_log = AccessLog::start(config.access_log, metrics.log_dropped.clone())?;
        Ok(Arc::new(Self {
            mesh,
            svids,
            mutual: MutualTrust::default(),
            workers,
            metrics,
            access_log,
            shutdown,
            shares: Shares::new(config.max_connections),
            handshakes: Shares::new(MAX_HANDSHAKES),
            hold_unknown: config.hold_unknown,
            native: Native::new(config.native, config.native_heritage),
            pods: Pods::default(),
            sweeps: Semaphore::new(SWEEPS),
        }))
    }

    /// Returns the token that is cancelled when the agent takes nothing new.
    pub fn drain(&self) -> &CancellationToken {
        self.shutdown.drain()
    }

    /// Returns when every connection has ended.
    pub async fn finished(&self) {
        self.shutdown.tasks().wait().await;
    }

    /// Returns the connections that policy does not permit and that could not be ended.
    pub fn unenforced(&self) -> Vec<Unenforced> {
        self.pods.unenforced()
    }

    /// Returns the certificate of a pod of this node, which a connection waits for no longer than [`CERTIFICATE_LIMIT`].
    pub(super) async fn certificate(&self, identity: &Identity) -> Result<Arc<Svid>, CertificateError> {
        match timeout(CERTIFICATE_LIMIT, self.svids.svid(identity)).await {
            Ok(svid) => Ok(svid?),
            Err(_) => Err(CertificateError::Timeout(identity.clone())),
        }
    }

    /// Returns the workload that has an address. Who else may send from it is another question.
    pub(super) fn workload_at(&self, address: IpAddr) -> Option<Arc<Workload>> {
        self.mesh.borrow().workload(address).cloned()
    }

    /// Waits until the access log's lines are written. Blocks; for the agent's end.
    pub fn flush_log(&self) {
        self.access_log.flush();
    }

    /// Ends the tunnels of a pod that left.
    pub fn forget_source(&self, uid: &str) {
        self.workers.drop_source(uid);
    }

    /// Ends the tunnels to addresses that another pod has now, or nobody, and to pods of another identity now: a pod from
    /// a manifest without a uid may be made anew under its name.
    pub fn forget_peers(&self, snapshot: &Snapshot) {
        self.workers.retain_peers(|key| {
            snapshot
                .workload(key.peer.ip())
                .is_some_and(|workload| workload.uid == key.peer_workload && workload.identity == key.expect)
        });
    }
}

/// Why a connection has no certificate; each end calls that `no_certificate`.
#[derive(Debug, thiserror::Error)]
pub(super) enum CertificateError {
    #[error("no certificate for {0} within {CERTIFICATE_LIMIT:?}: see the log for what its authority says")]
    Timeout(Identity),
    #[error(transparent)]
    Failed(#[from] SvidError),
}

/// How long an application or a destination outside the mesh may take to answer a SYN. A pod answers or refuses within
/// a round trip; what takes longer is gone, and its client is to hear of it.
///
/// Below the ten seconds that a peer waits for the answer to CONNECT, so that it hears 503 and not nothing.
pub(super) const DIAL_LIMIT: Duration = Duration::from_secs(8);

/// How many clients may be in their TLS handshake at once: each may take seconds over it and costs memory meanwhile,
/// and anybody who reaches the port can begin one.
const MAX_HANDSHAKES: usize = 4096;

/// How long to wait for a certificate before a connection fails.
const CERTIFICATE_LIMIT: Duration = Duration::from_secs(5);

/// How long an address inside the pod ranges that nobody knows is waited for.
pub(super) const HOLD_LIMIT: Duration = Duration::from_secs(2);
