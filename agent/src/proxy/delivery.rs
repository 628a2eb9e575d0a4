//! A connection to the application of a pod of this node, whoever brings it: admitted by policy before the application is
//! dialled, again once it has answered, and for as long as bytes flow.

use std::net::SocketAddr;

use tokio::net::TcpStream;

use super::{
    admission::{Admission, Refused},
    application::{self, ApplicationError, Client},
    client_ports::ClientPort,
    copy::{self, CopyError, Side, Sink, Source},
    outcome::Outcome,
    pod::{Shared, close_gently},
};
use crate::mesh::{Identity, Reason};

/// Who comes to a pod of this node, and for what.
pub(super) struct Visit {
    /// The client as the application is to see it; its address is the one that the policies are asked about.
    pub(super) client: Client,
    /// Who it proved to be; none in plaintext.
    pub(super) identity: Option<Identity>,
    /// The pod's own address and port.
    pub(super) target: SocketAddr,
}

/// A connection that the policies permit, and that the application has accepted.
pub(super) struct Delivery {
    admission: Admission,
    /// Held as long as the application has the connection.
    _client: ClientPort,
    application: TcpStream,
}

impl Delivery {
    /// Asks the policies, and dials the application where they permit it. Notes in the outcome what they decide and which
    /// client the application sees.
    ///
    /// # Errors
    /// Where the policies refuse it, before or after the application has answered, or the application does not answer.
    pub(super) async fn open(
        pod: &Shared,
        visit: Visit,
        outcome: &mut Outcome<'_>,
    ) -> Result<Self, DeliveryError> {
        let Visit { client, identity, target } = visit;
        let mut admission = Admission::new(pod.subscribe(), client.address, identity, target);
        let permit = admission.ask(outcome)?;
        let client = application::reserve(pod, client)?;
        outcome.client_shown(client.address());
        // An application may take its time to answer.
        let dialled = tokio::select! {
            dialled = application::dial(pod, &permit, target, &client) => Ok(dialled?),
            refused = admission.revoked() => Err(refused),
        };
        match dialled.and_then(|application| admission.ask_again().map(|()| application)) {
            Ok(application) => Ok(Self { admission, _client: client, application }),
            Err(refused) => {
                outcome.revoked(refused.denial());
                Err(refused.into())
            }
        }
    }

    /// Copies between the client and the application until both directions have ended, or the policies permit it no longer.
    ///
    /// # Errors
    /// The first failure of either side, and what the policies say. The caller then drops the client's side, which resets
    /// it.
    pub(super) async fn copy(
        &mut self,
        client: &mut (impl Source, impl Sink),
        outcome: &mut Outcome<'_>,
    ) -> Result<(), DeliveryError> {
        let Self { admission, _client, application } = self;
        let mut server = copy::tcp(application, Side::Local);
        // Bytes "up" go from the client to the application.
        let copied = copy::copy(client, &mut server, &outcome.up, &outcome.down);
        let ended = tokio::select! {
            copied = copied => Ok(copied?),
            refused = admission.revoked() => Err(refused),
        };
        if let Err(refused) = ended {
            outcome.revoked(refused.denial());
            return Err(refused.into());
        }
        close_gently(application);
        Ok(())
    }
}

/// Why a connection did not come to the application, or ended before both of its ends did.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeliveryError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Application(#[from] ApplicationError),
    #[error(transparent)]
    Copy(#[from] CopyError),
}

impl DeliveryError {
    /// Returns what the log and the metrics call it.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Refused(refused) => refused.reason(),
            Self::Application(error) => error.reason(),
            Self::Copy(error) => error.reason(),
        }
    }
}
