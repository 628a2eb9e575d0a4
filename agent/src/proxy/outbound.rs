//! Connections from a pod of this node: original destination, route, tunnel or plain TCP, copy.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

use super::{
    context::{CERTIFICATE_LIMIT, Context, DIAL_LIMIT, HOLD_LIMIT},
    copy::{self, CopyError, Side, TunnelSink},
    outcome::Outcome,
    pod::{Ended, Shared, close_gently},
};
use crate::{
    hbone::{ConnectError, ConnectRequest, PoolKey, Tunnel},
    identity::SvidError,
    mesh::{Identity, OrigDst, Reason, Route, RouteError, Workload},
};

/// Carries one connection to its end.
pub(super) async fn serve(context: Arc<Context>, pod: Arc<Shared>, stream: TcpStream, peer: SocketAddr) {
    let source = pod.workload();
    let mut outcome = Outcome::outbound(&context, peer, source.clone());
    let carried = tokio::select! {
        biased;
        ended = pod.ended(&context) => Err(ended.into()),
        carried = carry(&context, &pod, &source, (&stream, peer), &mut outcome) => carried,
    };
    match carried {
        // Both directions ended in good order: let the kernel deliver what it still has.
        Ok(()) => close_gently(&stream),
        // Dropped with linger 0, the socket is reset.
        Err(error) => outcome.failed(error.reason(), &error),
    }
}

async fn carry(
    context: &Context,
    pod: &Shared,
    source: &Workload,
    (stream, peer): (&TcpStream, SocketAddr),
    outcome: &mut Outcome<'_>,
) -> Result<(), OutboundError> {
    let local = stream.local_addr().map_err(OutboundError::Socket)?;
    let orig_dst = pod.capture.orig_dst(stream).map_err(|_| OutboundError::NotCaptured(local))?;
    outcome.asked_for(orig_dst);
    let route = route(context, source, peer, orig_dst).await?;
    let near = copy::tcp(stream, Side::Local);
    match route {
        Route::Passthrough { target, destination, service } => {
            outcome.routed_to(target, destination, service);
            let far = dial(target, pod.capture.dialler().dial_plain(target)).await?;
            outcome.opened(false);
            copy::copy(near, copy::tcp(&far, Side::Plain), &outcome.up, &outcome.down).await?;
            close_gently(&far);
        }
        Route::Hbone { peer: agent, authority, identity, destination, service } => {
            outcome.routed_to(authority, Some(destination.clone()), service);
            let to = Peer { agent, authority, identity, destination: &destination };
            let (sender, receiver) = tunnel(context, pod, source, peer, to).await?.split();
            outcome.opened(true);
            copy::copy(near, (receiver, TunnelSink::new(sender)), &outcome.up, &outcome.down).await?;
        }
    }
    Ok(())
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

struct Peer<'a> {
    agent: SocketAddr,
    authority: SocketAddr,
    identity: Identity,
    destination: &'a Workload,
}

async fn tunnel(
    context: &Context,
    pod: &Shared,
    source: &Workload,
    client: SocketAddr,
    to: Peer<'_>,
) -> Result<Tunnel, OutboundError> {
    let svid = timeout(CERTIFICATE_LIMIT, context.svids.svid(&source.identity))
        .await
        .map_err(|_| OutboundError::CertificateTimeout(source.identity.clone(), CERTIFICATE_LIMIT))??;
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
    let connected = context
        .workers
        .pool()
        .connect(key, svid, || async move { dialler.dial_peer(client.ip(), to.agent).await }, request)
        .await;
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
    #[error("no certificate for {0} within {1:?}: see the log for what its authority says")]
    CertificateTimeout(Identity, Duration),
    #[error(transparent)]
    Certificate(#[from] SvidError),
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
            Self::CertificateTimeout(..) | Self::Certificate(_) => Reason::NoCertificate,
            Self::Dial(..) => Reason::DialFailed,
            Self::DialTimeout(..) => Reason::Timeout,
            Self::Tunnel { error, .. } => error.reason(),
            Self::Copy(error) => error.reason(),
            Self::Ended(ended) => ended.reason(),
        }
    }
}
