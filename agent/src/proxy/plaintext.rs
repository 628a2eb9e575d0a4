//! Plaintext to a pod of this node that policy has to look at: it depends on where it comes from, which the kernel does
//! not decide. What needs no look never comes here.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::net::TcpStream;

use super::{
    access_log::canonical,
    admission::{Admission, Refused},
    application::{self, ApplicationError, Client},
    client_ports::ClientPort,
    context::Context,
    copy::{self, CopyError, Side},
    outcome::Outcome,
    pod::{Ended, Shared, close_gently},
};
use crate::mesh::{OrigDst, Permit, Reason};

/// Carries one connection to its end.
pub(super) async fn serve(context: Arc<Context>, pod: Arc<Shared>, stream: TcpStream, peer: SocketAddr) {
    let peer = canonical(peer);
    let mut outcome = Outcome::plaintext(&context, peer, pod.workload());
    let carried = tokio::select! {
        biased;
        ended = pod.ended(&context) => Err(ended.into()),
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
    let mut admission = Admission::new(pod.subscribe(), peer.ip(), None, target);
    let permit = admission.ask(outcome)?;
    let client = application::reserve(pod, Client { address: peer.ip(), port: Some(peer.port()) })?;
    let carried = tokio::select! {
        refused = admission.revoked() => Err(refused),
        carried = deliver(pod, &permit, (stream, target, &client), outcome) => Ok(carried),
    };
    carried.unwrap_or_else(|refused| {
        outcome.revoked(refused.denial());
        Err(refused.into())
    })
}

/// Brings the connection to the application, and copies.
async fn deliver(
    pod: &Shared,
    permit: &Permit,
    (stream, target, client): (&TcpStream, SocketAddr, &ClientPort),
    outcome: &mut Outcome<'_>,
) -> Result<(), PlaintextError> {
    let far = application::dial(pod, permit, target, client).await?;
    outcome.opened(false);
    copy::copy(copy::tcp(stream, Side::Plain), copy::tcp(&far, Side::Local), &outcome.up, &outcome.down)
        .await?;
    close_gently(&far);
    Ok(())
}

/// Why a plaintext connection failed.
#[derive(Debug, thiserror::Error)]
enum PlaintextError {
    #[error("the client's socket failed: {0}")]
    Socket(#[source] io::Error),
    #[error("plaintext, without an identity: {0}")]
    Refused(#[from] Refused),
    #[error(transparent)]
    Application(#[from] ApplicationError),
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error(transparent)]
    Ended(#[from] Ended),
}

impl PlaintextError {
    fn reason(&self) -> Reason {
        match self {
            Self::Socket(_) => Reason::Reset,
            Self::Refused(refused) => refused.reason(),
            Self::Application(error) => error.reason(),
            Self::Copy(error) => error.reason(),
            Self::Ended(ended) => ended.reason(),
        }
    }
}
