//! Plaintext to a pod of this node that policy has to look at: it depends on where it comes from, which the kernel does
//! not decide. What needs no look never comes here.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::net::TcpStream;

use super::{
    access_log::canonical,
    application::Client,
    context::Context,
    copy::{self, Side},
    delivery::{Delivery, DeliveryError, Visit},
    outcome::Outcome,
    pod::{Ended, Shared, close_gently},
};
use crate::mesh::{OrigDst, Reason};

/// Carries one connection to its end.
pub(super) async fn serve(context: Arc<Context>, pod: Arc<Shared>, stream: TcpStream, peer: SocketAddr) {
    let peer = canonical(peer);
    let mut outcome = Outcome::plaintext(&context, peer, pod.workload());
    let carried = tokio::select! {
        biased;
        ended = pod.ended(&context.shutdown) => Err(ended.into()),
        carried = carry(&pod, (&stream, peer), &mut outcome) => carried,
    };
    match carried {
        Ok(()) => close_gently(&stream),
        // Dropped with linger 0, the socket is reset.
        Err(error) => outcome.failed(error.reason(), &error),
    }
}

async fn carry(
    pod: &Shared,
    (stream, peer): (&TcpStream, SocketAddr),
    outcome: &mut Outcome<'_>,
) -> Result<(), PlaintextError> {
    // The kernel hands the connection over as it came: this is what the client asked for.
    let target = canonical(stream.local_addr().map_err(PlaintextError::Socket)?);
    outcome.asked_for(OrigDst::new(target));
    let client = Client { address: peer.ip(), port: Some(peer.port()) };
    let mut delivery = Delivery::open(pod, Visit { client, identity: None, target }, outcome).await?;
    outcome.opened(false);
    Ok(delivery.copy(&mut copy::tcp(stream, Side::Client), outcome).await?)
}

/// Why a plaintext connection failed.
#[derive(Debug, thiserror::Error)]
enum PlaintextError {
    #[error("the client's socket failed: {0}")]
    Socket(#[source] io::Error),
    #[error("{prefix}{0}", prefix = if let DeliveryError::Refused(_) = .0 { "plaintext, without an identity: " } else { "" })]
    Delivery(#[from] DeliveryError),
    #[error(transparent)]
    Ended(#[from] Ended),
}

impl PlaintextError {
    fn reason(&self) -> Reason {
        match self {
            Self::Socket(_) => Reason::Reset,
            Self::Delivery(error) => error.reason(),
            Self::Ended(ended) => ended.reason(),
        }
    }
}
