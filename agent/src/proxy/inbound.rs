//! Tunnels to a pod of this node: TLS, then one CONNECT request for each connection, dialled to the application so
//! that it sees the real client.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::StatusCode;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::{
    application::Client,
    context::{CertificateError, Context},
    copy::TunnelSink,
    delivery::{Delivery, DeliveryError, Visit},
    listener,
    metrics::Reporter,
    outcome::Outcome,
    pod::{Ended, Shared},
};
use crate::{
    hbone::{self, Incoming, ServeError, ServerConnection, Tunnel, TunnelError},
    mesh::{Identity, OrigDst, Reason},
};

/// Serves one tunnel to its end.
pub(super) async fn serve(context: Arc<Context>, pod: Arc<Shared>, stream: TcpStream, peer: SocketAddr) {
    let local = stream.local_addr();
    let opened = tokio::select! {
        biased;
        ended = pod.ended(&context.shutdown) => Err(ended.into()),
        // Apart from this future, which lives as long as the tunnel: the handshake takes far more than what comes after it.
        opened = Box::pin(open(&context, &pod, stream, peer)) => opened,
    };
    match opened {
        Ok(tunnel) => drive(context, pod, tunnel, peer).await,
        Err(error) => {
            let mut outcome = Outcome::inbound(&context, peer, pod.workload());
            if let Ok(local) = local {
                outcome.asked_for(OrigDst::new(local));
            }
            outcome.failed(error.reason(), &error);
        }
    }
}

async fn open(
    context: &Context,
    pod: &Shared,
    stream: TcpStream,
    peer: SocketAddr,
) -> Result<ServerConnection, InboundError> {
    let _handshake = context
        .handshakes
        .take(pod.holder(Reporter::Destination), peer.ip())
        .ok_or(InboundError::Handshakes(peer.ip()))?;
    let svid = context.certificate(&pod.workload().identity).await?;
    let accepted = hbone::accept(stream, svid).await;
    context.workers.handshakes().served(accepted.as_ref().map(drop));
    Ok(accepted?)
}

/// Takes the tunnel's requests, each in a task of its own, until the peer or the agent ends it.
async fn drive(context: Arc<Context>, pod: Arc<Shared>, mut tunnel: ServerConnection, peer: SocketAddr) {
    let identity = tunnel.peer_identity().clone();
    let pod_closing = pod.closing.clone();
    let mut draining = false;
    let mut asked = false;
    loop {
        let incoming = tokio::select! {
            incoming = tunnel.next() => incoming,
            _ = pod.ended(&context.shutdown) => return,
            () = closing(&pod_closing, asked), if !draining => {
                draining = true;
                tunnel.graceful_shutdown();
                continue;
            }
        };
        match incoming {
            Some(Ok(incoming)) => {
                asked = true;
                spawn(&context, &pod, incoming, peer, &identity);
            }
            Some(Err(error @ ServeError::Lapsed(_))) => {
                let streams = tunnel.tunnels();
                tracing::warn!(pod = %pod.workload(), %peer, %identity, streams, %error, "a tunnel from a peer ends");
                return;
            }
            // What the streams suffer from it, they report themselves.
            Some(Err(error)) => {
                tracing::debug!(%peer, %identity, %error, "a tunnel from a peer ended");
                return;
            }
            None => return,
        }
    }
}

/// Returns when the tunnel is to take no more. A peer that finds it closing before its first request has nowhere to go:
/// what waited in the listener's queue when the pod began to close still gets that one in.
async fn closing(closing: &CancellationToken, asked: bool) {
    closing.cancelled().await;
    if !asked {
        tokio::time::sleep(FIRST_REQUEST).await;
    }
}

fn spawn(
    context: &Arc<Context>,
    pod: &Arc<Shared>,
    incoming: Incoming,
    peer: SocketAddr,
    identity: &Identity,
) {
    let Some(share) = context.shares.take(pod.holder(Reporter::Destination), peer.ip()) else {
        listener::refused(context, pod, peer, Reporter::Destination);
        incoming.refuse(StatusCode::SERVICE_UNAVAILABLE);
        return;
    };
    let (context, pod, identity) = (context.clone(), pod.clone(), identity.clone());
    // Soon gone, while the task has room for it as long as the connection lives.
    let incoming = Box::new(incoming);
    let tasks = context.shutdown.tasks().clone();
    let load = context.workers.stay();
    // On the heap before it becomes a task, as in `listener::start`.
    tasks.spawn(Box::pin(async move {
        let _holds = (share, load);
        let mut outcome = Outcome::inbound(&context, peer, pod.workload());
        let carried = tokio::select! {
            biased;
            ended = pod.ended(&context.shutdown) => Err(ended.into()),
            carried = carry(&context, &pod, incoming, (peer, identity), &mut outcome) => carried,
        };
        if let Err(error) = carried {
            outcome.failed(error.reason(), &error);
        }
    }));
}

async fn carry(
    context: &Context,
    pod: &Shared,
    incoming: Box<Incoming>,
    client: (SocketAddr, Identity),
    outcome: &mut Outcome<'_>,
) -> Result<(), InboundError> {
    // Apart from this future, which lives as long as the connection, and which an idle connection mostly consists of.
    let (mut delivery, tunnel) = Box::pin(deliver(context, pod, incoming, client, outcome)).await?;
    let (sender, receiver) = tunnel.split();
    Ok(delivery.copy(&mut (receiver, TunnelSink::new(sender)), outcome).await?)
}

/// Answers a request: with a tunnel, where the policies permit it and the application takes it.
async fn deliver(
    context: &Context,
    pod: &Shared,
    mut incoming: Box<Incoming>,
    (peer, identity): (SocketAddr, Identity),
    outcome: &mut Outcome<'_>,
) -> Result<(Delivery, Tunnel), InboundError> {
    let client_ip = peer.ip().to_canonical();
    outcome.came_from(identity.clone(), client(context, client_ip, &identity));
    let Some(target) = target(context, pod, &incoming) else {
        let authority = incoming.authority().to_owned();
        return Err(unavailable(incoming, InboundError::NotHere(authority)));
    };
    outcome.asked_for(OrigDst::new(target));
    let hint = incoming.forwarded_for().filter(|address| address.ip().to_canonical() == client_ip);
    let client = Client { address: client_ip, port: hint.map(|address| address.port()) };
    let visit = Visit { client, identity: Some(identity), target };
    let opened = tokio::select! {
        biased;
        opened = Delivery::open(pod, visit, outcome) => opened,
        error = incoming.cancelled() => return Err(error.into()),
    };
    let delivery = match opened {
        Ok(delivery) => delivery,
        Err(error @ DeliveryError::Refused(_)) => return Err(deny(incoming, error)),
        Err(error) => return Err(unavailable(incoming, error)),
    };
    let tunnel = incoming.accept()?;
    outcome.opened(true);
    Ok((delivery, tunnel))
}

/// Answers that policy refuses the connection.
fn deny(incoming: Box<Incoming>, error: DeliveryError) -> InboundError {
    incoming.refuse(StatusCode::UNAUTHORIZED);
    error.into()
}

/// Answers that there is nobody to connect to.
fn unavailable(incoming: Box<Incoming>, error: impl Into<InboundError>) -> InboundError {
    incoming.refuse(StatusCode::SERVICE_UNAVAILABLE);
    error.into()
}

/// Returns the workload that a tunnel comes from, where its address and identity agree on one.
fn client(context: &Context, address: IpAddr, identity: &Identity) -> Option<Arc<crate::mesh::Workload>> {
    context.mesh.borrow().workload(address).filter(|workload| workload.identity == *identity).cloned()
}

/// Returns the pod's own address and port that the request names, by number or as one of its services.
fn target(context: &Context, pod: &Shared, incoming: &Incoming) -> Option<SocketAddr> {
    let workload = pod.workload();
    match incoming.target() {
        Some(target) => workload.addresses.contains(&target.ip().to_canonical()).then_some(target),
        None => context.mesh.borrow().service_target(incoming.authority(), &workload),
    }
}

/// How long a tunnel that has not been asked for anything stays open for it: a peer opens one when it has a request.
const FIRST_REQUEST: Duration = Duration::from_secs(2);

/// Why an inbound connection, or a whole tunnel, failed.
#[derive(Debug, thiserror::Error)]
enum InboundError {
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("{0} holds its share of the TLS handshakes that may be under way at once")]
    Handshakes(IpAddr),
    #[error("the peer's tunnel failed: {0}")]
    Serve(#[from] ServeError),
    #[error(
        "{0} is neither an address nor a service of this pod: the peer's view of the mesh is out of date"
    )]
    NotHere(String),
    #[error("the tunnel's stream failed: {0}")]
    Tunnel(#[from] TunnelError),
    #[error(transparent)]
    Delivery(#[from] DeliveryError),
    #[error(transparent)]
    Ended(#[from] Ended),
}

impl InboundError {
    fn reason(&self) -> Reason {
        match self {
            Self::Certificate(_) => Reason::NoCertificate,
            Self::Serve(error) => error.reason(),
            Self::NotHere(_) => Reason::UnknownDestination,
            Self::Handshakes(_) => Reason::Overload,
            Self::Tunnel(error) => error.reason(),
            Self::Delivery(error) => error.reason(),
            Self::Ended(ended) => ended.reason(),
        }
    }
}
