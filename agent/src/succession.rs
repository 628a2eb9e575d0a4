//! Two agents of one node, during an update: how the new one gets the node, and what the old one does then.
//!
//! What the two say to each other is in `enroll::handover`; here is what else of the node has one owner: the admin address
//! and the agent's socket. The old one closes the address and the new one binds it, so that never both answer there.

use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::net::TcpListener;

use crate::{
    admin,
    capture::{self, Capture},
    cli::{AgentArgs, socket::request},
    enroll::Handover,
    identity::SvidStore,
    mesh::{Enrollment, Snapshot},
    shutdown::Shutdown,
};

/// How long the agent that is to be taken over may take to let go.
const LIMIT: Duration = Duration::from_secs(15);
/// How often it is asked.
const PAUSE: Duration = Duration::from_millis(20);

/// Fetches the certificates of the node's pods, so that their connections do not wait for them afterwards. What takes longer
/// than it may is fetched when it is needed.
pub(crate) async fn fetch_certificates(node: &str, snapshot: &Snapshot, svids: &SvidStore) {
    let pods = snapshot.on_node(node).filter(|pod| pod.enrollment == Enrollment::Enrolled);
    let fetched = futures_util::future::join_all(pods.map(|pod| svids.svid(&pod.identity)));
    let failed = match tokio::time::timeout(LIMIT, fetched).await {
        Ok(outcomes) => outcomes.iter().filter(|outcome| outcome.is_err()).count(),
        Err(_) => {
            tracing::warn!("not all certificates are there; the node is taken over nevertheless");
            return;
        }
    };
    if failed > 0 {
        tracing::warn!(failed, "some pods have no certificate yet; the node is taken over nevertheless");
    }
}

/// Takes the node: at once where no agent has it, else once the one that has it has handed it over, if it is to.
///
/// # Errors
/// As [`Capture::load`]; where another agent has the node and does not hand it over in time, or is not to.
pub(crate) async fn take_node(args: &AgentArgs, socket: &Path) -> Result<Capture, capture::Error> {
    let config = capture::Config {
        node: args.node.clone(),
        bpffs: args.bpffs.clone(),
        pod_ranges: args.pod_ranges.clone(),
    };
    let deadline = Instant::now() + LIMIT;
    loop {
        match Capture::load(&config) {
            Err(capture::Error::Busy { .. }) if args.take_over && Instant::now() < deadline => {}
            outcome => return outcome,
        }
        let socket = socket.to_owned();
        let asked = tokio::task::spawn_blocking(move || request(&socket, "POST", "/handover")).await;
        match asked {
            Ok(Ok((200, _))) => {
                tracing::info!(node = args.node, "the agent of this node has handed it over");
            }
            // It ends, or has only just begun: the lock tells.
            Ok(Ok((_, why))) => {
                tracing::debug!(why = why.trim(), "the agent of this node does not hand it over yet");
                tokio::time::sleep(PAUSE).await;
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "the agent of this node does not answer");
                tokio::time::sleep(PAUSE).await;
            }
            Err(_) => {}
        }
    }
}

/// Binds the admin address, which the agent that was taken over closes.
///
/// # Errors
/// Where it cannot be bound.
pub(crate) async fn bind_admin(args: &AgentArgs) -> io::Result<TcpListener> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match TcpListener::bind(args.admin).await {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && args.take_over
                    && Instant::now() < deadline =>
            {
                tokio::time::sleep(PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

/// Returns what hands the node over, for the agent's socket.
pub(crate) fn hand_over(handover: Handover, shutdown: &Shutdown) -> admin::HandOver {
    let shared = Arc::new((handover, shutdown.clone()));
    Box::new(move || {
        let shared = Arc::clone(&shared);
        Box::pin(async move {
            let (handover, shutdown) = &*shared;
            handover.hand_over().await.map_err(|error| error.to_string())?;
            tracing::info!("the node has been handed over to another agent; what this one carries goes on");
            shutdown.succeeded().cancel();
            Ok(())
        })
    })
}

/// Runs something of which a node has only one, until the node is handed over.
pub(crate) async fn until_handed_over(shutdown: Shutdown, run: impl Future<Output = ()>) {
    tokio::select! {
        () = run => {}
        () = shutdown.succeeded().cancelled() => {}
    }
}
