//! A service's endpoints, resolved: which ready address and port each of its ports leads to, and which pod is there.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    Destination, Distribution, Endpoint, PodName, Service, ServicePort, TargetPort, Workload,
    sharded::Sharded,
    snapshot::{Holder, Zones},
};

/// A service with what its ports lead to.
#[derive(Debug)]
pub(super) struct Backends {
    service: Arc<Service>,
    ports: Vec<PortBackends>,
}

/// The ready endpoints of one port, by address family: a client of an IPv6 cluster address is sent to IPv6
/// endpoints, as kube-proxy does. Each list is in the order of (place, address).
#[derive(Debug)]
pub(super) struct PortBackends {
    port: u16,
    v4: Vec<Backend>,
    v6: Vec<Backend>,
}

/// One ready endpoint of one port.
#[derive(Clone, Debug)]
pub(super) struct Backend {
    /// Where the application listens.
    pub(super) address: SocketAddr,
    /// The workload there, where one is known.
    pub(super) workload: Option<Arc<Workload>>,
    receives_hbone: bool,
    /// Its node, or that node's zone, where that matters to the service and is known.
    place: Option<Arc<str>>,
}

/// What of its endpoints' places matters to a service.
#[derive(Clone, Copy)]
enum Minds {
    Nothing,
    Nodes,
    Zones,
}

/// The pods that endpoints stand for.
pub(super) struct Pods<'a> {
    pub(super) holders: &'a Sharded<IpAddr, Holder>,
    /// Those on their node's network. They hold no address, so endpoints find them by name.
    pub(super) host_network: &'a HashMap<PodName, Arc<Workload>>,
}

impl Backends {
    /// Resolves a service's endpoints. Returns also the pods that were looked for by their names, since nobody has the
    /// address that the endpoint gives.
    pub(super) fn resolve(service: &Arc<Service>, pods: &Pods<'_>, zones: &Zones) -> (Self, Vec<PodName>) {
        let mut by_name = Vec::new();
        let mut ports: Vec<_> = service.ports.iter().map(PortBackends::new).collect();
        for endpoint in &service.endpoints {
            if !(endpoint.ready || service.publish_not_ready) {
                continue;
            }
            if let Some(pod) = endpoint.pod.as_ref().filter(|_| pods.holders.get(&endpoint.address).is_none())
            {
                by_name.push(pod.clone());
            }
            let Some(workload) = pods.behind(endpoint) else { continue };
            let receives_hbone = workload.is_some_and(|workload| workload.receives_hbone);
            let place = match service.minds(zones) {
                Minds::Nothing => None,
                Minds::Nodes => node_of(endpoint, workload.map(|pod| &**pod)),
                Minds::Zones => {
                    node_of(endpoint, workload.map(|pod| &**pod)).and_then(|node| zones.get(node))
                }
            };
            for (port, backends) in service.ports.iter().zip(&mut ports) {
                let Some(number) = target_port(port, endpoint, workload.map(|pod| &**pod)) else { continue };
                let address = SocketAddr::new(endpoint.address, number);
                let backend =
                    Backend { address, workload: workload.cloned(), receives_hbone, place: place.cloned() };
                backends.family_mut(address.is_ipv6()).push(backend);
            }
        }
        ports.iter_mut().for_each(PortBackends::sort);
        (Self { service: Arc::clone(service), ports }, by_name)
    }

    pub(super) fn service(&self) -> &Arc<Service> {
        &self.service
    }

    pub(super) fn port(&self, port: u16) -> Option<&PortBackends> {
        self.ports.iter().find(|backends| backends.port == port)
    }

    /// Returns where `port` leads at `workload`; none where the workload is no ready endpoint of it.
    pub(super) fn at(&self, port: u16, workload: &Workload) -> Option<SocketAddr> {
        let port = self.port(port)?;
        let mut addresses = port.v4.iter().chain(&port.v6).map(|backend| backend.address);
        addresses.find(|address| workload.addresses.contains(&address.ip()))
    }

    /// What the kernel of `node` is to do with a connection to an address of the service.
    pub(super) fn destination(&self, v6: bool, node: &str) -> Destination {
        if self.ports.is_empty() {
            return Destination::Pass;
        }
        let mut verdict = Destination::Refuse;
        for backend in self.ports.iter().flat_map(|port| port.reachable(v6, &self.service, node)) {
            if backend.receives_hbone {
                return Destination::Capture;
            }
            verdict = Destination::Pass;
        }
        verdict
    }
}

impl Service {
    fn minds(&self, zones: &Zones) -> Minds {
        match self.distribution {
            _ if self.local_only => Minds::Nodes,
            Distribution::Any => Minds::Nothing,
            Distribution::PreferSameZone if !zones.is_empty() => Minds::Zones,
            Distribution::PreferSameZone | Distribution::PreferSameNode => Minds::Nodes,
        }
    }
}

impl<'a> Pods<'a> {
    /// Returns the workload at an endpoint's address, `Some(None)` where the address is outside the mesh's knowledge,
    /// and `None` where nothing may be sent there: the address is in dispute, or not that of the pod that the endpoint
    /// names.
    fn behind(&self, endpoint: &Endpoint) -> Option<Option<&'a Arc<Workload>>> {
        match (self.holders.get(&endpoint.address), &endpoint.pod) {
            (Some(Holder::Conflict(..)), _) => None,
            (Some(Holder::One(workload)), Some(pod)) => is(workload, pod).then_some(Some(workload)),
            (Some(Holder::One(workload)), None) => Some(Some(workload)),
            // A pod that is not known, or not yet at this address: what is there now may be anybody.
            (None, Some(pod)) => self.host_network.get(pod).map(Some),
            (None, None) => Some(None),
        }
    }
}

impl PortBackends {
    fn new(port: &ServicePort) -> Self {
        Self { port: port.port, v4: Vec::new(), v6: Vec::new() }
    }

    /// The ready endpoints that a client on `node` is to choose from.
    pub(super) fn candidates(&self, v6: bool, service: &Service, node: &str, zones: &Zones) -> &[Backend] {
        let reachable = self.reachable(v6, service, node);
        let near = match service.minds(zones) {
            Minds::Nothing => return reachable,
            Minds::Nodes => at_place(reachable, node),
            Minds::Zones => at_place(reachable, zones.get(node).map_or("", |zone| zone)),
        };
        if near.is_empty() { reachable } else { near }
    }

    /// The ready endpoints that a client on `node` may be sent to at all.
    fn reachable(&self, v6: bool, service: &Service, node: &str) -> &[Backend] {
        let all = if v6 { &self.v6 } else { &self.v4 };
        if service.local_only { at_place(all, node) } else { all }
    }

    fn family_mut(&mut self, v6: bool) -> &mut Vec<Backend> {
        if v6 { &mut self.v6 } else { &mut self.v4 }
    }

    fn sort(&mut self) {
        for family in [&mut self.v4, &mut self.v6] {
            family.sort_unstable_by(|a, b| (&a.place, a.address).cmp(&(&b.place, b.address)));
            // While slices are rebalanced an endpoint may stand in two of them.
            family.dedup_by(|a, b| a.address == b.address);
        }
    }
}

/// The part of a list, which is in the order of places, that is at `place`. A place without a name has none.
fn at_place<'a>(backends: &'a [Backend], place: &str) -> &'a [Backend] {
    if place.is_empty() {
        return &[];
    }
    let start = backends.partition_point(|backend| backend.place.as_deref() < Some(place));
    let end = backends.partition_point(|backend| backend.place.as_deref() <= Some(place));
    &backends[start..end]
}

fn node_of<'a>(endpoint: &'a Endpoint, workload: Option<&'a Workload>) -> Option<&'a Arc<str>> {
    endpoint.node.as_ref().or_else(|| workload.map(|workload| &workload.node))
}

fn is(workload: &Workload, pod: &PodName) -> bool {
    workload.name == pod.name && workload.namespace == pod.namespace
}

/// Returns the number of a service's port at an endpoint; none where the endpoint does not serve it.
fn target_port(port: &ServicePort, endpoint: &Endpoint, workload: Option<&Workload>) -> Option<u16> {
    let said = endpoint.ports.iter().find(|said| said.name == port.name);
    match (said, &port.target) {
        (Some(said), _) if said.port.is_some() => said.port,
        (None, _) if !endpoint.ports.is_empty() => None,
        (_, TargetPort::Number(number)) => Some(*number),
        (_, TargetPort::Name(name)) => {
            workload?.ports.iter().find(|named| named.name == *name).map(|named| named.port)
        }
    }
}
