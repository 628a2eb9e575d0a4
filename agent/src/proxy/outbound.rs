//! Connections from a pod of this node: original destination, route; then a tunnel, plain TCP, or another pod of this very
//! agent; copy.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

use super::{
    context::{CertificateError, Context, DIAL_LIMIT, HOLD_LIMIT},
    copy::{self, CopyError, Side, TunnelSink},
    local::{self, LocalError},
    outcome::Outcome,
    pod::{Ended, Shared, close_gently},
};
use crate::{
    hbone::{ConnectError, ConnectRequest, FirstBytes, PoolKey, Tunnel},
    identity::Svid,
    mesh::{Identity, OrigDst, Reason, Route, RouteError, Workload},
};

/// Carries one connection to its end.
pub(super) async fn serve(context: Arc<Context>, pod: Arc<Shared>, stream: TcpStream, peer: SocketAddr) {
    let source = pod.workload();
    let mut outcome = Outcome::outbound(&context, peer, source.clone());
    // The account of the other end, where it is this agent's as well.
    let mut far = None;
    let carried = tokio::select! {
        biased;
        ended = pod.ended(&context.shutdown) => Err(ended.into()),
        carried = carry(&context, &pod, &source, (&stream, peer), (&mut outcome, &mut far)) => carried,
    };
    match carried {
        // Both directions ended in good order: let the kernel deliver what it still has.
        Ok(()) => close_gently(&stream),
        // Dropped with linger 0, the socket is reset.
        Err(error) => {
            if let Some(far) = &mut far {
                error.report_to(far);
            }
            outcome.failed(error.reason(), &error);
        }
    }
}

async fn carry<'a>(
    context: &'a Context,
    pod: &Arc<Shared>,
    source: &Arc<Workload>,
    (stream, peer): (&TcpStream, SocketAddr),
    (outcome, far): (&mut Outcome<'a>, &mut Option<Box<Outcome<'a>>>),
) -> Result<(), OutboundError> {
    let mut near = copy::tcp(stream, Side::Local);
    // Apart from this future, which lives as long as the connection, and which an idle connection mostly consists of.
    let opening = Box::pin(open(context, pod, source, (stream, peer), (outcome, &mut near.0)));
    match opening.await? {
        Opened::Plain(far) => {
            let mut ends = copy::tcp(&far, Side::Plain);
            // Apart as well, for it is larger than that of a tunnel, and rare.
            Box::pin(copy::copy(&mut near, &mut ends, &outcome.up, &outcome.down)).await?;
            close_gently(&far);
        }
        Opened::Tunnel(tunnel) => {
            let early = tunnel.early();
            let (sender, receiver) = tunnel.split();
            let mut far = (receiver, TunnelSink::after(sender, early));
            copy::copy(&mut near, &mut far, &outcome.up, &outcome.down).await?;
        }
        Opened::Here { held, svid, destination, authority } => {
            let account = local::account(context, &held, (source, peer), (authority, outcome));
            let far = far.insert(Box::new(account));
            let ends = (outcome, &mut **far);
            let carried =
                Box::pin(local::carry(context, (pod, &held), svid, (stream, peer), ends, authority));
            carried.await.map_err(|error| OutboundError::Local(destination, error))?;
        }
    }
    Ok(())
}

/// What a connection goes on to.
enum Opened {
    /// A destination outside the mesh.
    Plain(TcpStream),
    Tunnel(Tunnel),
    /// A pod of this very agent, which is yet to be asked.
    Here {
        held: Arc<Shared>,
        svid: Arc<Svid>,
        destination: Arc<Workload>,
        authority: SocketAddr,
    },
}

/// Finds where the connection goes, and opens what leads there.
async fn open(
    context: &Context,
    pod: &Shared,
    source: &Arc<Workload>,
    (stream, peer): (&TcpStream, SocketAddr),
    (outcome, first): (&mut Outcome<'_>, &mut impl FirstBytes),
) -> Result<Opened, OutboundError> {
    let Ok(orig_dst) = pod.capture.orig_dst(stream) else {
        return Err(OutboundError::NotCaptured(stream.local_addr().map_err(OutboundError::Socket)?));
    };
    outcome.asked_for(orig_dst);
    match route(context, source, peer, orig_dst).await? {
        Route::Passthrough { target, destination, service } => {
            outcome.routed_to(target, destination, service);
            let far = dial(target, pod.capture.dialler().dial_plain(target)).await?;
            outcome.opened(false);
            Ok(Opened::Plain(far))
        }
        Route::Hbone { peer: agent, authority, identity, destination, service } => {
            outcome.routed_to(authority, Some(destination.clone()), service);
            let to = Peer { agent, authority, identity, destination: &destination };
            let svid = context.certificate(&source.identity).await?;
            if let Some(held) = local::near(context, source, peer, &to) {
                return Ok(Opened::Here { held, svid, destination, authority });
            }
            let tunnel = tunnel(context, pod, (source, svid), (peer, first), to).await?;
            outcome.opened(true);
            Ok(Opened::Tunnel(tunnel))
        }
    }
}

/// Finds the route; an address that nobody knows yet is waited for where the index may lag behind the kernel.
async fn route(
    context: &Context,
    source: &Workload,
    peer: SocketAddr,
    orig_dst: OrigDst,
) -> Result<Route, RouteError> {
    let mut mesh = context.mesh.clone();
    let deadline = Instant::now() + HOLD_LIMIT;
    loop {
        let route = mesh.borrow_and_update().route(source, peer.ip(), orig_dst);
        match route {
            Err(RouteError::Unknown(_)) if context.hold_unknown => {
                if !matches!(timeout_at(deadline, mesh.changed()).await, Ok(Ok(()))) {
                    return route;
                }
            }
            route => return route,
        }
    }
}

/// A destination in the mesh.
pub(super) struct Peer<'a> {
    agent: SocketAddr,
    pub(super) authority: SocketAddr,
    pub(super) identity: Identity,
    pub(super) destination: &'a Workload,
}

async fn tunnel(
    context: &Context,
    pod: &Shared,
    (source, svid): (&Workload, Arc<Svid>),
    (client, first): (SocketAddr, &mut impl FirstBytes),
    to: Peer<'_>,
) -> Result<Tunnel, OutboundError> {
    let client = super::access_log::canonical(client);
    let key = PoolKey {
        source_workload: source.uid.clone(),
        source: client.ip(),
        identity: source.identity.clone(),
        peer: to.agent,
        peer_workload: to.destination.uid.clone(),
        expect: to.identity,
    };
    let request = ConnectRequest {
        authority: to.authority,
        forwarded: Some(client),
        baggage: Some(super::baggage::encode(source)),
    };
    let dialler = pod.capture.dialler();
    let dial = || async move { dialler.dial_peer(client.ip(), to.agent).await };
    let connected = context.workers.pool().connect(key, svid, dial, (request, first)).await;
    connected.map_err(|error| OutboundError::Tunnel {
        workload: to.destination.to_string(),
        agent: to.agent,
        error,
    })
}

async fn dial(
    target: SocketAddr,
    dial: impl Future<Output = io::Result<TcpStream>>,
) -> Result<TcpStream, OutboundError> {
    timeout(DIAL_LIMIT, dial)
        .await
        .map_err(|_| OutboundError::DialTimeout(target, DIAL_LIMIT))?
        .map_err(|error| OutboundError::Dial(target, error))
}

/// Why an outbound connection failed.
#[derive(Debug, thiserror::Error)]
enum OutboundError {
    #[error(
        "the connection to {0} did not come through connect(2) of this pod: applications must not dial the agent's own listener"
    )]
    NotCaptured(SocketAddr),
    #[error("the application's socket failed: {0}")]
    Socket(#[source] io::Error),
    #[error(transparent)]
    Route(#[from] RouteError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("dialling {0} failed: {1}")]
    Dial(SocketAddr, #[source] io::Error),
    #[error("{0} did not answer within {1:?}")]
    DialTimeout(SocketAddr, Duration),
    #[error("no tunnel to {workload} by its agent at {agent}: {error}")]
    Tunnel {
        workload: String,
        agent: SocketAddr,
        #[source]
        error: ConnectError,
    },
    #[error("{}", .1.text_at_source(.0))]
    Local(Arc<Workload>, #[source] LocalError),
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error(transparent)]
    Ended(#[from] Ended),
}

impl OutboundError {
    fn reason(&self) -> Reason {
        match self {
            Self::NotCaptured(_) => Reason::NotCaptured,
            Self::Socket(_) => Reason::Reset,
            Self::Route(error) => error.reason(),
            Self::Certificate(_) => Reason::NoCertificate,
            Self::Dial(..) => Reason::DialFailed,
            Self::DialTimeout(..) => Reason::Timeout,
            Self::Tunnel { error, .. } => error.reason(),
            Self::Local(_, error) => error.reason_at_source(),
            Self::Copy(error) => error.reason(),
            Self::Ended(ended) => ended.reason(),
        }
    }

    /// Notes it in the account of the other end, a pod of this agent too.
    fn report_to(&self, far: &mut Outcome<'_>) {
        match self {
            Self::Local(_, error) => far.failed(error.reason_at_destination(), error),
            error => far.failed(error.reason(), &format_args!("the source: {error}")),
        }
    }
}
