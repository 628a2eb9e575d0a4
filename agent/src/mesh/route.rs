//! Where a captured connection goes: a pure function of the snapshot, the source and the original destination.

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use rand::seq::IndexedRandom as _;

use super::{
    Affinity, Identity, Reason, Service, Snapshot, Workload,
    backends::Backend,
    snapshot::{AddressConflict, Holder},
};

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
    /// Picks the endpoint for a connection of `source`, whose own address is `source_ip`, to `orig_dst`.
    ///
    /// Pure but for the random choice among a service's endpoints that are equally good.
    ///
    /// # Errors
    /// Where the mesh knows no endpoint that may receive it; the connection is then refused.
    pub fn route(
        &self,
        source: &Workload,
        source_ip: IpAddr,
        orig_dst: OrigDst,
    ) -> Result<Route, RouteError> {
        let target = orig_dst.address();
        match self.holder(target.ip()) {
            // A pod's address goes before a service's: nobody's `externalIPs` may take a pod's traffic away.
            Some(Holder::One(workload)) => Ok(to_address(target, Some(workload), None)),
            Some(Holder::Conflict(conflict)) => Err(RouteError::conflict(target, conflict)),
            None => self.route_service(source, source_ip, target),
        }
    }

    fn route_service(
        &self,
        source: &Workload,
        source_ip: IpAddr,
        target: SocketAddr,
    ) -> Result<Route, RouteError> {
        let owners = self.owners(target.ip());
        let Some(first) = owners.first() else { return Err(RouteError::Unknown(target)) };
        // Services may share an external address and divide its ports.
        let Some((owner, backends)) =
            owners.iter().find_map(|owner| Some((owner, owner.backends.port(target.port())?)))
        else {
            if owners.iter().all(|owner| owner.external) {
                return Ok(to_address(target, None, None));
            }
            let service = first.backends.service().to_string();
            return Err(RouteError::NoSuchPort { service, port: target.port() });
        };
        let service = owner.backends.service();
        let candidates = backends.candidates(target.is_ipv6(), service, &source.node);
        let Some(backend) = pick(candidates, service.affinity, source_ip) else {
            return Err(self.why_no_endpoint(service, target));
        };
        Ok(to_address(backend.address, backend.workload.as_ref(), Some(service)))
    }

    /// Tells a service all of whose endpoints have an address in dispute from one that has none.
    fn why_no_endpoint(&self, service: &Service, target: SocketAddr) -> RouteError {
        let disputed = service.endpoints.iter().find_map(|endpoint| {
            let ready = endpoint.ready || service.publish_not_ready;
            match self.holder(endpoint.address) {
                Some(Holder::Conflict(conflict)) if ready => Some((endpoint.address, conflict)),
                _ => None,
            }
        });
        match disputed {
            Some((address, conflict)) => {
                RouteError::conflict(SocketAddr::new(address, target.port()), conflict)
            }
            None => RouteError::NoEndpoint { service: service.to_string(), port: target.port() },
        }
    }
}

impl RouteError {
    fn conflict(address: SocketAddr, conflict: &AddressConflict) -> Self {
        Self::Conflict { address, first: conflict.first.to_string(), second: conflict.second.to_string() }
    }
}

fn to_address(
    target: SocketAddr,
    destination: Option<&Arc<Workload>>,
    service: Option<&Arc<Service>>,
) -> Route {
    let service = service.cloned();
    match destination {
        Some(workload) if workload.receives_hbone => Route::Hbone {
            peer: SocketAddr::new(target.ip(), HBONE_PORT),
            authority: target,
            identity: workload.identity.clone(),
            destination: Arc::clone(workload),
            service,
        },
        _ => Route::Passthrough { target, destination: destination.cloned(), service },
    }
}

fn pick(candidates: &[Backend], affinity: Affinity, source_ip: IpAddr) -> Option<&Backend> {
    match affinity {
        Affinity::None => candidates.choose(&mut rand::rng()),
        // Rendezvous hashing: an endpoint that comes or goes moves only the clients that it gains or loses. Over the
        // address alone, so that a client meets one endpoint on all ports of the service.
        Affinity::ClientIp => candidates.iter().max_by_key(|backend| weight(source_ip, backend.address.ip())),
    }
}

fn weight(client: IpAddr, endpoint: IpAddr) -> u64 {
    // Without a random key: an agent that restarts must come to the same answer.
    let mut hasher = DefaultHasher::new();
    (client.to_canonical(), endpoint).hash(&mut hasher);
    hasher.finish()
}

/// The port of a destination's agent that takes HBONE, as in Istio's ambient mesh.
const HBONE_PORT: u16 = 15008;
