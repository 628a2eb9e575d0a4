//! Where a captured connection goes: a pure function of the snapshot, the source and the original destination.

use std::{fmt, net::SocketAddr, sync::Arc};

use super::{Identity, Reason, Service, Snapshot, Workload};

/// The address that an application asked `connect` for, canonical (IPv4-mapped IPv6 is IPv4).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct OrigDst(SocketAddr);

/// Where a captured connection goes.
#[derive(Clone, Debug)]
pub enum Route {
    /// Straight to the address, in plaintext: what stands there is not in the mesh.
    Passthrough {
        /// What to dial.
        target: SocketAddr,
        /// The workload there, where it is known.
        destination: Option<Arc<Workload>>,
        /// The service that was asked for.
        service: Option<Arc<Service>>,
    },
    /// Through the tunnel to the destination's agent.
    Hbone {
        /// The agent's listener: the destination's own address, port 15008.
        peer: SocketAddr,
        /// What the application there listens on: the CONNECT request's authority.
        authority: SocketAddr,
        /// The only identity that is accepted from the peer.
        identity: Identity,
        /// The workload there.
        destination: Arc<Workload>,
        /// The service that was asked for.
        service: Option<Arc<Service>>,
    },
}

/// Why there is no route.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RouteError {
    /// Nobody is known to have the address.
    #[error("no pod or service has the address {0}")]
    Unknown(SocketAddr),
    /// Two live pods claim the address.
    #[error("{address} is claimed by two live pods, {first} and {second}: delete one of them")]
    Conflict {
        /// The address in question.
        address: SocketAddr,
        /// `namespace/name` of one claimant.
        first: String,
        /// `namespace/name` of the other.
        second: String,
    },
    /// The service has no such port.
    #[error("service {service} has no TCP port {port}")]
    NoSuchPort {
        /// `namespace/name`.
        service: String,
        /// The port that was asked for.
        port: u16,
    },
    /// The service has no ready endpoint for the port.
    #[error("service {service} has no ready endpoint for port {port}")]
    NoEndpoint {
        /// `namespace/name`.
        service: String,
        /// The port that was asked for.
        port: u16,
    },
}

impl OrigDst {
    /// Takes an address in any form.
    pub fn new(address: SocketAddr) -> Self {
        Self(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

    /// Returns the address.
    pub fn address(self) -> SocketAddr {
        self.0
    }
}

impl fmt::Display for OrigDst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl RouteError {
    /// Returns what the log and the metrics call it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Unknown(_) => Reason::UnknownDestination,
            Self::Conflict { .. } => Reason::AddressConflict,
            Self::NoSuchPort { .. } => Reason::NoSuchPort,
            Self::NoEndpoint { .. } => Reason::NoEndpoint,
        }
    }
}

impl Snapshot {
    /// Picks the endpoint for a connection of `source` to `orig_dst`.
    ///
    /// # Errors
    /// Where the mesh knows no endpoint that may receive it; the connection is then refused.
    pub fn route(&self, source: &Workload, orig_dst: OrigDst) -> Result<Route, RouteError> {
        todo!("{source:?} {orig_dst}")
    }
}
