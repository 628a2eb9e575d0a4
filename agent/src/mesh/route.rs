//! Where a captured connection goes: a pure function of the snapshot, the source and the original destination.

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use rand::seq::IndexedRandom as _;

use super::{Affinity, Identity, Reason, Service, Snapshot, Workload, backends::Backend, snapshot::Holder};

/// The address that an application asked `connect` for, canonical (IPv4-mapped IPv6 is IPv4).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct OrigDst(SocketAddr);

/// Where a captured connection goes.
#[derive(Clone, Debug)]
pub enum Route {
    /// Straight to the address, in plaintext: what stands there is not in the mesh, or wants plaintext.
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
            Some(Holder::One(workload)) => Ok(self.to_address(target, Some(workload), None)),
            Some(Holder::Conflict(first, second)) => Err(conflict(target, first, second)),
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
                return Ok(self.to_address(target, None, None));
            }
            let service = first.backends.service().to_string();
            return Err(RouteError::NoSuchPort { service, port: target.port() });
        };
        let service = owner.backends.service();
        let candidates = backends.candidates(target.is_ipv6(), service, &source.node, self.zones());
        let Some(backend) = pick(candidates, service.affinity, source_ip) else {
            return Err(self.why_no_endpoint(service, target));
        };
        Ok(self.to_address(backend.address, backend.workload.as_ref(), Some(service)))
    }

    /// Plaintext also goes to who receives HBONE and wants plaintext nevertheless: its mode at the port is DISABLE.
    fn to_address(
        &self,
        target: SocketAddr,
        destination: Option<&Arc<Workload>>,
        service: Option<&Arc<Service>>,
    ) -> Route {
        let service = service.cloned();
        match destination {
            Some(workload)
                if workload.receives_hbone && !self.policies().sends_plaintext(workload, target.port()) =>
            {
                Route::Hbone {
                    peer: SocketAddr::new(target.ip(), HBONE_PORT),
                    authority: target,
                    identity: workload.identity.clone(),
                    destination: Arc::clone(workload),
                    service,
                }
            }
            _ => Route::Passthrough { target, destination: destination.cloned(), service },
        }
    }

    /// Tells a service all of whose endpoints have an address in dispute from one that has none.
    fn why_no_endpoint(&self, service: &Service, target: SocketAddr) -> RouteError {
        let disputed = service.endpoints.iter().find_map(|endpoint| {
            let ready = endpoint.ready || service.publish_not_ready;
            match self.holder(endpoint.address) {
                Some(Holder::Conflict(first, second)) if ready => Some((endpoint.address, first, second)),
                _ => None,
            }
        });
        match disputed {
            Some((address, first, second)) => {
                conflict(SocketAddr::new(address, target.port()), first, second)
            }
            None => RouteError::NoEndpoint { service: service.to_string(), port: target.port() },
        }
    }
}

fn conflict(address: SocketAddr, first: &Workload, second: &Workload) -> RouteError {
    RouteError::Conflict { address, first: first.to_string(), second: second.to_string() }
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::mesh::{
        Distribution, Endpoint, EndpointPort, Enrollment, Labels, Mode, NamedPort, NotEnrolled,
        PeerAuthentication, PodName, PolicyKind, PolicyName, PolicySet, ServicePort, TargetPort, fixtures::*,
    };

    fn client() -> Workload {
        pod("client", &["10.0.0.99"])
    }

    fn route(snapshot: &Snapshot, target: &str) -> String {
        let target = OrigDst::new(target.parse().unwrap());
        show(snapshot.route(&client(), ip("10.0.0.99"), target))
    }

    fn show(route: Result<Route, RouteError>) -> String {
        match route {
            Ok(Route::Passthrough { target, destination, .. }) => {
                format!("plain {target} {}", destination.map_or("?".into(), |pod| pod.name.to_string()))
            }
            Ok(Route::Hbone { peer, authority, identity, destination, .. }) => {
                assert_eq!(identity, destination.identity);
                format!("hbone {peer} {authority} {}", destination.name)
            }
            Err(error) => error.reason().to_string(),
        }
    }

    /// Where connections to a target go, over so many that each endpoint that may be picked is picked.
    fn routes(snapshot: &Snapshot, target: &str) -> Vec<String> {
        let routes: HashSet<_> = (0..200).map(|_| route(snapshot, target)).collect();
        let mut routes: Vec<_> = routes.into_iter().collect();
        routes.sort();
        routes
    }

    fn check(workloads: Vec<Workload>, services: Vec<Service>, expected: &[(&str, &[&str])]) {
        let snapshot = snapshot(workloads, services);
        for (target, expected) in expected {
            assert_eq!(routes(&snapshot, target), *expected, "to {target}");
        }
    }

    fn outside(name: &str, addresses: &[&str]) -> Workload {
        Workload { receives_hbone: false, ..pod(name, addresses) }
    }

    fn web() -> Vec<Workload> {
        vec![pod("web-1", &["10.0.0.1"]), pod("web-2", &["10.0.0.2"])]
    }

    const WEB_1: &str = "hbone 10.0.0.1:15008 10.0.0.1:8080 web-1";
    const WEB_2: &str = "hbone 10.0.0.2:15008 10.0.0.2:8080 web-2";

    #[test]
    fn pod_address_leads_to_the_pod() {
        check(
            vec![pod("in", &["10.0.0.1", "fd00::1"]), outside("out", &["10.0.0.2"])],
            vec![],
            &[
                ("10.0.0.1:80", &["hbone 10.0.0.1:15008 10.0.0.1:80 in"]),
                ("[::ffff:10.0.0.1]:80", &["hbone 10.0.0.1:15008 10.0.0.1:80 in"]),
                ("[fd00::1]:80", &["hbone [fd00::1]:15008 [fd00::1]:80 in"]),
                ("10.0.0.2:80", &["plain 10.0.0.2:80 out"]),
                ("10.0.0.3:80", &["unknown_destination"]),
            ],
        );
    }

    #[test]
    fn service_leads_to_each_ready_endpoint() {
        let mut service = service("10.1.0.1", &["10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.1"]);
        service.endpoints[2].ready = false;
        let mut pods = web();
        pods.push(pod("web-3", &["10.0.0.3"]));
        check(
            pods,
            vec![service],
            &[("10.1.0.1:80", &[WEB_1, WEB_2, "plain 192.0.2.1:8080 ?"]), ("10.1.0.1:81", &["no_such_port"])],
        );
    }

    #[test]
    fn service_without_ready_endpoint_is_refused() {
        let mut service = service("10.1.0.1", &["10.0.0.1"]);
        service.endpoints[0].ready = false;
        check(web(), vec![service.clone()], &[("10.1.0.1:80", &["no_endpoint"])]);
        service.publish_not_ready = true;
        check(web(), vec![service], &[("10.1.0.1:80", &[WEB_1])]);
    }

    #[test]
    fn pod_may_be_sent_to_itself() {
        check(
            vec![client()],
            vec![service("10.1.0.1", &["10.0.0.99"])],
            &[("10.1.0.1:80", &["hbone 10.0.0.99:15008 10.0.0.99:8080 client"])],
        );
    }

    #[test]
    fn slice_says_the_port_before_the_service_does() {
        let said = |name: &str, port| EndpointPort { name: name.into(), port };
        let with = |ports: Vec<EndpointPort>, target| {
            let endpoints = vec![Endpoint { ports: ports.into(), ..endpoint("10.0.0.1") }];
            let ports = vec![ServicePort { name: "http".into(), port: 80, target }];
            let mut pod = pod("web", &["10.0.0.1"]);
            pod.ports = vec![NamedPort { name: "main".into(), port: 9090 }];
            let service = Service { endpoints, ports, ..service("10.1.0.1", &[]) };
            routes(&snapshot(vec![pod], vec![service]), "10.1.0.1:80").join(", ")
        };
        let named = |name: &str| TargetPort::Name(name.into());
        let to = |port: u16| format!("hbone 10.0.0.1:15008 10.0.0.1:{port} web");
        assert_eq!(with(vec![said("http", Some(7070))], TargetPort::Number(8080)), to(7070));
        assert_eq!(with(vec![said("http", Some(7070))], named("main")), to(7070));
        assert_eq!(with(vec![said("http", None)], TargetPort::Number(8080)), to(8080));
        assert_eq!(with(vec![said("http", None)], named("main")), to(9090));
        assert_eq!(with(vec![], TargetPort::Number(8080)), to(8080));
        assert_eq!(with(vec![], named("main")), to(9090));
        assert_eq!(with(vec![], named("absent")), "no_endpoint");
        assert_eq!(with(vec![said("other", Some(7070))], TargetPort::Number(8080)), "no_endpoint");
    }

    #[test]
    fn client_stays_with_its_endpoint_while_that_is_ready() {
        let addresses: Vec<_> = (1..=8).map(|n| format!("192.0.2.{n}")).collect();
        let sticky = |addresses: &[&str]| {
            let service = Service { affinity: Affinity::ClientIp, ..service("10.1.0.1", addresses) };
            snapshot(vec![], vec![service])
        };
        let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
        let (all, fewer) = (sticky(&addresses), sticky(&addresses[1..]));
        let target = OrigDst::new("10.1.0.1:80".parse().unwrap());
        let mut used = HashSet::new();
        for client_address in (1..=200).map(|n| ip(&format!("10.0.1.{n}"))) {
            let to = |snapshot: &Snapshot| show(snapshot.route(&client(), client_address, target));
            let first = to(&all);
            assert!((0..10).all(|_| to(&all) == first), "{client_address} moved");
            let stays = first != "plain 192.0.2.1:8080 ?";
            assert_eq!(to(&fewer) == first, stays, "only those of the lost endpoint move");
            used.insert(first);
        }
        assert_eq!(used.len(), 8, "all endpoints are used");
    }

    #[test]
    fn endpoints_on_the_clients_node_go_first() {
        let far = Workload { node: "node-b".into(), ..pod("web-2", &["10.0.0.2"]) };
        let pods = || vec![pod("web-1", &["10.0.0.1"]), far.clone()];
        let near = |endpoints: &[&str]| {
            let distribution = Distribution::PreferSameNode;
            vec![Service { distribution, ..service("10.1.0.1", endpoints) }]
        };
        check(pods(), near(&["10.0.0.1", "10.0.0.2"]), &[("10.1.0.1:80", &[WEB_1])]);
        check(pods(), near(&["10.0.0.2"]), &[("10.1.0.1:80", &[WEB_2])]);
        let mut said = near(&["10.0.0.1", "10.0.0.2"]);
        said[0].endpoints[0].node = Some("node-c".into());
        said[0].endpoints[1].node = Some("node-a".into());
        check(pods(), said, &[("10.1.0.1:80", &[WEB_2])]);
    }

    #[test]
    fn endpoints_in_the_clients_zone_go_first_where_zones_are_known() {
        let other = Workload { node: "node-b".into(), ..pod("web-2", &["10.0.0.2"]) };
        let zoned = |zones: &[(&str, &str)], endpoints: &[&str]| {
            let service =
                Service { distribution: Distribution::PreferSameZone, ..service("10.1.0.1", endpoints) };
            let workloads = vec![Arc::new(pod("web-1", &["10.0.0.1"])), Arc::new(other.clone())];
            let zones = zones.iter().map(|&(node, zone)| (node.into(), zone.into())).collect();
            let snapshot = Snapshot::in_zones(workloads, vec![Arc::new(service)], &Arc::new(zones));
            let target = OrigDst("10.1.0.1:80".parse().unwrap());
            let client = |node: &str| Workload { node: node.into(), ..client() };
            let routes = |node: &str| {
                let route = |_| show(snapshot.route(&client(node), ip("10.0.0.9"), target));
                (0..50).map(route).collect::<HashSet<_>>().len()
            };
            ["node-a", "node-b", "node-c"].map(routes)
        };
        let both = ["10.0.0.1", "10.0.0.2"];
        let apart = [("node-a", "x"), ("node-b", "y"), ("node-c", "x")];
        assert_eq!(zoned(&apart, &both), [1, 1, 1], "each has one in its zone");
        let together = [("node-a", "x"), ("node-b", "x"), ("node-c", "z")];
        assert_eq!(
            zoned(&together, &both),
            [2, 2, 2],
            "all that are in the zone, or all where there are none"
        );
        assert_eq!(zoned(&apart, &both[..1]), [1, 1, 1], "another zone's where there is no other");
        assert_eq!(zoned(&[], &both), [1, 1, 2], "by nodes where no zone is known");
    }

    #[test]
    fn local_service_never_leaves_the_node() {
        let far = Workload { node: "node-b".into(), ..pod("web-2", &["10.0.0.2"]) };
        let pods = || vec![pod("web-1", &["10.0.0.1"]), far.clone()];
        let local = |endpoints: &[&str]| vec![Service { local_only: true, ..service("10.1.0.1", endpoints) }];
        check(pods(), local(&["10.0.0.1", "10.0.0.2"]), &[("10.1.0.1:80", &[WEB_1])]);
        check(pods(), local(&["10.0.0.2"]), &[("10.1.0.1:80", &["no_endpoint"])]);
    }

    #[test]
    fn plaintext_goes_to_a_port_whose_mode_is_disable() {
        let policy = PeerAuthentication {
            name: PolicyName {
                kind: PolicyKind::PeerAuthentication,
                namespace: "shop".into(),
                name: "ports".into(),
            },
            created: None,
            selector: Some(Labels::default()),
            mode: Mode::Strict,
            ports: [(8080, Mode::Disable)].into(),
            is_readable: true,
        };
        let snapshot = snapshot(vec![pod("web-1", &["10.0.0.1"])], vec![service("10.1.0.1", &["10.0.0.1"])])
            .with_policies(Arc::new(PolicySet::new(Vec::new(), vec![Arc::new(policy)], "root", &[])));
        // The service's port 80 leads to 8080.
        assert_eq!(route(&snapshot, "10.1.0.1:80"), "plain 10.0.0.1:8080 web-1");
        assert_eq!(route(&snapshot, "10.0.0.1:8080"), "plain 10.0.0.1:8080 web-1");
        assert_eq!(route(&snapshot, "10.0.0.1:80"), "hbone 10.0.0.1:15008 10.0.0.1:80 web-1");
    }

    #[test]
    fn source_without_node_is_near_to_nobody() {
        let local = Service { local_only: true, ..service("10.1.0.1", &["192.0.2.1"]) };
        let snapshot = snapshot(vec![], vec![local]);
        let nowhere = Workload { node: "".into(), ..client() };
        let target = OrigDst::new("10.1.0.1:80".parse().unwrap());
        assert_eq!(show(snapshot.route(&nowhere, ip("10.0.0.99"), target)), "no_endpoint");
    }

    #[test]
    fn address_in_dispute_is_refused_and_avoided() {
        let pods = || vec![pod("a", &["10.0.0.1"]), pod("b", &["10.0.0.1"]), pod("web-2", &["10.0.0.2"])];
        check(
            pods(),
            vec![service("10.1.0.1", &["10.0.0.1", "10.0.0.2"])],
            &[("10.0.0.1:8080", &["address_conflict"]), ("10.1.0.1:80", &[WEB_2])],
        );
        check(pods(), vec![service("10.1.0.1", &["10.0.0.1"])], &[("10.1.0.1:80", &["address_conflict"])]);
        let error = snapshot(pods(), vec![])
            .route(&client(), ip("10.0.0.99"), OrigDst::new("10.0.0.1:80".parse().unwrap()))
            .unwrap_err();
        let text = "10.0.0.1:80 is claimed by two live pods, shop/a and shop/b: delete one of them";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn endpoint_leads_nowhere_once_its_address_is_another_pods() {
        let of = |pod: &str, address: &str| Endpoint {
            pod: Some(PodName { namespace: "shop".into(), name: pod.into() }),
            ..endpoint(address)
        };
        let service = |endpoints| vec![Service { endpoints, ..service("10.1.0.1", &[]) }];
        let to =
            |endpoints, expected: &[&str]| check(web(), service(endpoints), &[("10.1.0.1:80", expected)]);
        to(vec![of("web-1", "10.0.0.1"), of("web-1", "10.0.0.2")], &[WEB_1]);
        to(vec![of("web-0", "10.0.0.1")], &["no_endpoint"]);
        // Neither the pod nor the address is known: it may be a pod of the mesh that the index has yet to see.
        to(vec![of("web-3", "10.0.0.3")], &["no_endpoint"]);
        // The pod is known, and not at this address.
        to(vec![of("web-1", "10.0.0.3")], &["no_endpoint"]);
    }

    #[test]
    fn endpoint_on_its_nodes_network_is_reached_in_plaintext() {
        let enrollment = Enrollment::Not(NotEnrolled::HostNetwork);
        let host = Workload { enrollment, ..outside("host", &[]) };
        let name = PodName { namespace: "shop".into(), name: "host".into() };
        let endpoints = vec![Endpoint { pod: Some(name), ..endpoint("192.0.2.1") }];
        let service = Service { endpoints, ..service("10.1.0.1", &[]) };
        check(vec![host], vec![service], &[("10.1.0.1:80", &["plain 192.0.2.1:8080 host"])]);
    }

    #[test]
    fn client_is_sent_to_an_endpoint_of_its_own_family() {
        let addresses = vec![ip("10.1.0.1"), ip("fd01::1")];
        let service = Service { addresses, ..service("10.1.0.1", &["10.0.0.1", "fd00::1"]) };
        check(
            vec![pod("web", &["10.0.0.1", "fd00::1"])],
            vec![service],
            &[
                ("10.1.0.1:80", &["hbone 10.0.0.1:15008 10.0.0.1:8080 web"]),
                ("[fd01::1]:80", &["hbone [fd00::1]:15008 [fd00::1]:8080 web"]),
            ],
        );
    }

    #[test]
    fn external_address_is_the_service_on_its_ports_only() {
        let external_addresses = vec![ip("192.0.2.1")];
        let service = Service { external_addresses, ..service("10.1.0.1", &["10.0.0.1"]) };
        let other = Service {
            name: "other".into(),
            addresses: vec![],
            ports: vec![ServicePort { name: "".into(), port: 81, target: TargetPort::Number(8081) }],
            endpoints: vec![endpoint("10.0.0.2")],
            ..service.clone()
        };
        check(
            web(),
            vec![service, other],
            &[
                ("192.0.2.1:80", &[WEB_1]),
                ("192.0.2.1:81", &["hbone 10.0.0.2:15008 10.0.0.2:8081 web-2"]),
                ("192.0.2.1:6443", &["plain 192.0.2.1:6443 ?"]),
            ],
        );
    }
}
