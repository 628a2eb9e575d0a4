//! Connections between two pods that this agent holds both: no tunnel and no TLS, and all else as through one.
//!
//! ```text
//! outbound ─► both certificates, as in a handshake ─► destination's policies ─► application
//!                    └─ watched as those of a tunnel's connection, while the copy goes from socket to socket
//! ```
//!
//! A tunnel proves the client's address by its TCP handshake across the network. Here nothing crosses it, so only what the
//! mesh knows as the source pod's own address goes this way ([`near`]); the rest takes a tunnel, and fails where that does.

use std::{net::SocketAddr, sync::Arc};

use tokio::net::TcpStream;

use super::{
    access_log::canonical,
    application::Client,
    context::{CertificateError, Context},
    copy::{self, Side},
    delivery::{Delivery, DeliveryError, Visit},
    listener,
    metrics::Reporter,
    outbound::Peer,
    outcome::Outcome,
    pod::{Ended, Shared},
};
use crate::{
    capture,
    identity::{NotTrusted, PairLapsed, Svid, Usage},
    mesh::{Denial, OrigDst, Reason, Workload},
};

/// Returns the destination of a connection of `source` from `client`, where this agent holds that pod and need not be told
/// by a tunnel whose the client's address is.
///
/// Not once the node was handed over: who decides on new connections is then the successor.
pub(super) fn near(
    context: &Context,
    source: &Workload,
    client: SocketAddr,
    to: &Peer<'_>,
) -> Option<Arc<Shared>> {
    if context.shutdown.succeeded().is_cancelled() || !source.addresses.contains(&client.ip().to_canonical())
    {
        return None;
    }
    let pod = context.pods.held(&to.destination.uid)?;
    let workload = pod.workload();
    (workload.identity == to.identity && workload.addresses.contains(&to.authority.ip())).then_some(pod)
}

/// Opens the account of the destination's end.
pub(super) fn account<'a>(
    context: &'a Context,
    pod: &Shared,
    (source, client): (&Arc<Workload>, SocketAddr),
    (target, outcome): (SocketAddr, &mut Outcome<'a>),
) -> Outcome<'a> {
    let mut far = Outcome::inbound(context, client, pod.workload());
    far.came_from(source.identity.clone(), Some(Arc::clone(source)));
    far.asked_for(OrigDst::new(target));
    far.is_other_end_of(outcome);
    far
}

/// Carries a connection to its end. `svid` is the source's.
pub(super) async fn carry(
    context: &Context,
    (source, pod): (&Arc<Shared>, &Arc<Shared>),
    svid: Arc<Svid>,
    (stream, client): (&TcpStream, SocketAddr),
    (outcome, far): (&mut Outcome<'_>, &mut Outcome<'_>),
    target: SocketAddr,
) -> Result<(), LocalError> {
    let client = canonical(client);
    let share = context.shares.take(pod.holder(Reporter::Destination), client.ip());
    let _share = share.ok_or(LocalError::NoRoom)?;
    let between = async {
        let server = context.certificate(&pod.workload().identity).await?;
        let pair = context.mutual.meet(&svid, &server)?;
        let carried = async {
            let visit = Visit {
                client: Client { address: client.ip(), port: Some(client.port()) },
                identity: Some(svid.identity().clone()),
                target,
            };
            let mut delivery = Delivery::open(pod, visit, far).await.map_err(LocalError::NotOpened)?;
            outcome.opened(true);
            far.opened(true);
            if outcome.is_asked_for(target) {
                context.native.offer(context, (source, pod), &pair, (client, target));
            }
            delivery.copy(&mut copy::tcp(stream, Side::Client), far).await.map_err(LocalError::Broken)
        };
        tokio::select! {
            biased;
            lapsed = pair.lapsed() => Err(LocalError::Lapsed(lapsed)),
            carried = carried => carried,
        }
    };
    tokio::select! {
        biased;
        ended = pod.ended(&context.shutdown) => Err(ended.into()),
        carried = between => carried,
    }
}

/// Why a connection within this agent failed. Each end has its own words and its own reason for it, those that it has
/// where a tunnel is in between.
#[derive(Debug, thiserror::Error)]
pub(super) enum LocalError {
    #[error("{}", listener::NO_ROOM)]
    NoRoom,
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    NotTrusted(#[from] NotTrusted),
    #[error(transparent)]
    NotOpened(DeliveryError),
    #[error(transparent)]
    Broken(DeliveryError),
    #[error("{}", .0.text_at(Usage::Server))]
    Lapsed(Arc<PairLapsed>),
    #[error("the destination: {0}")]
    Ended(#[from] Ended),
    #[error(
        "it went past the agent (--native), which is not safe any more for one of the two pods: {0}; the next connection goes through the agent"
    )]
    Shared(Arc<capture::Shared>),
}

impl LocalError {
    /// Returns what the destination's log line and metrics call it.
    pub(super) fn reason_at_destination(&self) -> Reason {
        match self {
            Self::NoRoom => Reason::Overload,
            Self::Certificate(_) => Reason::NoCertificate,
            Self::NotTrusted(refused) => refused.error.reason(),
            Self::NotOpened(error) | Self::Broken(error) => error.reason(),
            Self::Lapsed(lapsed) => lapsed.reason_at(Usage::Server),
            Self::Ended(ended) => ended.reason(),
            Self::Shared(_) => Reason::SharedSegment,
        }
    }

    /// Returns what the source's log line and metrics call it.
    pub(super) fn reason_at_source(&self) -> Reason {
        match self {
            Self::NotOpened(DeliveryError::Refused(_)) => Reason::PeerDenied,
            Self::NoRoom | Self::NotOpened(_) => Reason::PeerUnavailable,
            // The client itself is reset.
            Self::Broken(_) => Reason::Reset,
            Self::Lapsed(lapsed) => lapsed.reason_at(Usage::Client),
            Self::Certificate(_) | Self::NotTrusted(_) | Self::Ended(_) | Self::Shared(_) => {
                self.reason_at_destination()
            }
        }
    }

    /// Returns what the policies say, where it is they who ended it.
    pub(super) fn denial(&self) -> Option<&Denial> {
        match self {
            Self::Broken(DeliveryError::Refused(refused)) => Some(refused.denial()),
            _ => None,
        }
    }

    /// Says it on the source's line.
    pub(super) fn text_at_source(&self, destination: &Workload) -> String {
        match self {
            Self::NotOpened(DeliveryError::Refused(refused)) => {
                format!("{destination}, on this node, does not admit it: {refused}")
            }
            Self::NotOpened(DeliveryError::Application(error)) => {
                format!("{destination}, on this node, is not reached: {error}; does it listen on the port?")
            }
            Self::Lapsed(lapsed) => lapsed.text_at(Usage::Client),
            Self::Ended(ended) => format!("{destination}, on this node, takes it no longer: {ended}"),
            _ => format!("to {destination}, on this node: {self}"),
        }
    }
}
