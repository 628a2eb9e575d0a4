//! The way to the application of a pod of this node, so that it sees the real client.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use tokio::{net::TcpStream, time::timeout};

use super::{client_ports::ClientPort, context::DIAL_LIMIT, pod::Shared};
use crate::mesh::{Permit, Reason};

/// The client as the application is to see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    /// Its address, canonical.
    pub(super) address: IpAddr,
    /// The port that it has, where that is known.
    pub(super) port: Option<u16>,
}

/// Reserves the port under which the application sees the client: of one client's live connections no two have one.
pub(super) fn reserve(pod: &Shared, client: Client) -> Result<ClientPort, ApplicationError> {
    let Client { address, port } = client;
    pod.client_ports.reserve(address, port).ok_or(ApplicationError::NoClientPort(address))
}

/// Dials the application. That policy permits the connection is to be shown.
pub(super) async fn dial(
    pod: &Shared,
    _permit: &Permit,
    target: SocketAddr,
    client: &ClientPort,
) -> Result<TcpStream, ApplicationError> {
    timeout(DIAL_LIMIT, pod.capture.dialler().dial_app(target, client.address()))
        .await
        .map_err(|_| ApplicationError::Timeout(target))?
        .map_err(|error| ApplicationError::Dial(target, error))
}

/// Why there is no connection to the application.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplicationError {
    #[error("the client {0} has every port in use toward this pod")]
    NoClientPort(IpAddr),
    #[error("the application does not accept connections at {0}: {1}")]
    Dial(SocketAddr, #[source] io::Error),
    #[error("the application at {0} did not answer within {DIAL_LIMIT:?}")]
    Timeout(SocketAddr),
}

impl ApplicationError {
    /// Returns what the log and the metrics call it.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::NoClientPort(_) => Reason::Overload,
            Self::Dial(..) => Reason::DialFailed,
            Self::Timeout(_) => Reason::Timeout,
        }
    }
}
