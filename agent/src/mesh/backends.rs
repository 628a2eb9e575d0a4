//! A service's endpoints, resolved: which ready address and port each of its ports leads to, and which pod is there.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    Destination, Distribution, Endpoint, PodName, Service, ServicePort, TargetPort, Workload,
    snapshot::Holder,
};

/// A service with what its ports lead to.
#[derive(Debug)]
pub(super) struct Backends {
    service: Arc<Service>,
    ports: Vec<PortBackends>,
}

/// The ready endpoints of one port, by address family: a client of an IPv6 cluster address is sent to IPv6
/// endpoints, as kube-proxy does. Each list is in the order of (node, address).
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
    node: Arc<str>,
}

/// The pods on their node's network, by namespace and name. They hold no address, so endpoints find them by name.
pub(super) type HostNetwork<'a> = HashMap<(&'a str, &'a str), &'a Arc<Workload>>;

impl Backends {
    pub(super) fn host_network(workloads: &[Arc<Workload>]) -> HostNetwork<'_> {
        let host_network = workloads.iter().filter(|workload| workload.is_host_network());
        host_network.map(|workload| ((&*workload.namespace, &*workload.name), workload)).collect()
    }

    pub(super) fn resolve(
        service: &Arc<Service>,
        holders: &HashMap<IpAddr, Holder>,
        host_network: &HostNetwork<'_>,
    ) -> Self {
        let mut ports: Vec<_> = service.ports.iter().map(PortBackends::new).collect();
        for endpoint in &service.endpoints {
            if !(endpoint.ready || service.publish_not_ready) {
                continue;
            }
            let Some(workload) = occupant(endpoint, holders, host_network) else { continue };
            let node = endpoint.node.clone().or_else(|| Some(Arc::clone(&workload?.node)));
            let node = node.unwrap_or_default();
            for (port, backends) in service.ports.iter().zip(&mut ports) {
                let Some(number) = target_port(port, endpoint, workload) else { continue };
                let address = SocketAddr::new(endpoint.address, number);
                let (workload, node) = (workload.cloned(), Arc::clone(&node));
                backends.family_mut(address.is_ipv6()).push(Backend { address, workload, node });
            }
        }
        ports.iter_mut().for_each(PortBackends::sort);
        Self { service: Arc::clone(service), ports }
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
            if backend.workload.as_ref().is_some_and(|workload| workload.receives_hbone) {
                return Destination::Capture;
            }
            verdict = Destination::Pass;
        }
        verdict
    }
}

impl PortBackends {
    fn new(port: &ServicePort) -> Self {
        Self { port: port.port, v4: Vec::new(), v6: Vec::new() }
    }

    /// The ready endpoints that a client on `node` is to choose from.
    pub(super) fn candidates(&self, v6: bool, service: &Service, node: &str) -> &[Backend] {
        let reachable = self.reachable(v6, service, node);
        if service.distribution == Distribution::PreferSameNode {
            let near = on_node(reachable, node);
            if !near.is_empty() {
                return near;
            }
        }
        reachable
    }

    /// The ready endpoints that a client on `node` may be sent to at all.
    fn reachable(&self, v6: bool, service: &Service, node: &str) -> &[Backend] {
        let all = if v6 { &self.v6 } else { &self.v4 };
        if service.local_only { on_node(all, node) } else { all }
    }

    fn family_mut(&mut self, v6: bool) -> &mut Vec<Backend> {
        if v6 { &mut self.v6 } else { &mut self.v4 }
    }

    fn sort(&mut self) {
        for family in [&mut self.v4, &mut self.v6] {
            family.sort_unstable_by(|a, b| (&a.node, a.address).cmp(&(&b.node, b.address)));
            // While slices are rebalanced an endpoint may stand in two of them.
            family.dedup_by(|a, b| a.address == b.address);
        }
    }
}

/// The part of a list, which is in the order of nodes, that is on `node`. A node without a name has none.
fn on_node<'a>(backends: &'a [Backend], node: &str) -> &'a [Backend] {
    let start = backends.partition_point(|backend| &*backend.node < node);
    let end = backends.partition_point(|backend| &*backend.node <= node);
    if node.is_empty() { &[] } else { &backends[start..end] }
}

/// Returns the workload at an endpoint's address, `Some(None)` where the address is outside the mesh's knowledge, and
/// `None` where nothing may be sent there: the address is in dispute, or not that of the pod that the endpoint names.
fn occupant<'a>(
    endpoint: &Endpoint,
    holders: &'a HashMap<IpAddr, Holder>,
    host_network: &HostNetwork<'a>,
) -> Option<Option<&'a Arc<Workload>>> {
    match (holders.get(&endpoint.address), &endpoint.pod) {
        (Some(Holder::Conflict(_)), _) => None,
        (Some(Holder::One(workload)), Some(pod)) if !is(workload, pod) => None,
        (Some(Holder::One(workload)), _) => Some(Some(workload)),
        // A pod that is not known, or not yet at this address: what is there now may be anybody.
        (None, Some(pod)) => host_network.get(&(&*pod.namespace, &*pod.name)).map(|pod| Some(*pod)),
        (None, None) => Some(None),
    }
}

fn is(workload: &Workload, pod: &PodName) -> bool {
    workload.name == pod.name && workload.namespace == pod.namespace
}

/// Returns the number of a service's port at an endpoint; none where the endpoint does not serve it.
fn target_port(port: &ServicePort, endpoint: &Endpoint, workload: Option<&Arc<Workload>>) -> Option<u16> {
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
