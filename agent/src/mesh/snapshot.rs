//! An immutable view of the whole mesh, with the indexes that routing and enrolment need.

use std::{collections::HashMap, fmt, net::IpAddr, sync::Arc};

use super::{
    PolicySet, Service, Workload,
    backends::{Backends, Pods},
};

/// All workloads and services at one moment. Built by `control`, shared behind an `Arc`, never changed.
#[derive(Debug, Default)]
pub struct Snapshot {
    workloads: Vec<Arc<Workload>>,
    services: Vec<Arc<Service>>,
    holders: HashMap<IpAddr, Holder>,
    owners: HashMap<IpAddr, Vec<Owner>>,
    named: HashMap<String, Arc<Backends>>,
    by_node: HashMap<Arc<str>, Vec<Position>>,
    policies: Arc<PolicySet>,
    zones: Arc<Zones>,
}

/// The zone of each node that has one, by the nodes' names.
pub type Zones = HashMap<Arc<str>, Arc<str>>;

/// A workload's place in the snapshot. Indexes hold places instead of `Arc`s: counting references up and down is most
/// of what building and dropping a snapshot of 100,000 pods would cost.
pub(super) type Position = u32;

/// What the kernel does with a connection of an enrolled pod to an address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Destination {
    /// Redirect it to the agent.
    Capture,
    /// Refuse it at once, with ECONNREFUSED: a service without any ready endpoint.
    Refuse,
    /// Known, and not in the mesh: leave it alone, also inside a configured pod range.
    Pass,
}

/// Two live pods that claim one address. Traffic to it is refused: nobody can tell which of them would get it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AddressConflict {
    /// The address in question.
    pub address: IpAddr,
    /// One claimant.
    pub first: Arc<Workload>,
    /// Another one; there may be more.
    pub second: Arc<Workload>,
}

/// Who has an address.
#[derive(Clone, Copy, Debug)]
pub(super) enum Holder {
    One(Position),
    Conflict(Position, Position),
}

/// A service at one of its addresses.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) backends: Arc<Backends>,
    /// Whether it is an external or load-balancer address, which may be another's too.
    pub(super) external: bool,
}

impl Snapshot {
    /// Indexes workloads and services, where no node's zone is known.
    pub fn new(workloads: Vec<Arc<Workload>>, services: Vec<Arc<Service>>) -> Self {
        Self::in_zones(workloads, services, Arc::default())
    }

    /// Indexes workloads and services on nodes in zones.
    pub fn in_zones(workloads: Vec<Arc<Workload>>, services: Vec<Arc<Service>>, zones: Arc<Zones>) -> Self {
        let holders = holders(&workloads);
        let resolved = resolve(&workloads, &services, &holders, &zones);
        let owners = owners(&resolved);
        let named = resolved.into_iter().map(|backends| (backends.service().hostname(), backends)).collect();
        let mut by_node: HashMap<Arc<str>, Vec<Position>> = HashMap::new();
        for (position, workload) in (0..).zip(&workloads) {
            match by_node.get_mut(&workload.node) {
                Some(positions) => positions.push(position),
                None => drop(by_node.insert(Arc::clone(&workload.node), vec![position])),
            }
        }
        Self { workloads, services, holders, owners, named, by_node, policies: Arc::default(), zones }
    }

    /// Adds the policies.
    #[must_use]
    pub fn with_policies(self, policies: Arc<PolicySet>) -> Self {
        Self { policies, ..self }
    }

    /// Returns the policies: the same `Arc` as in the snapshot before as long as none of them changed.
    pub fn policies(&self) -> &Arc<PolicySet> {
        &self.policies
    }

    /// Returns all workloads.
    pub fn workloads(&self) -> &[Arc<Workload>] {
        &self.workloads
    }

    /// Returns all services.
    pub fn services(&self) -> &[Arc<Service>] {
        &self.services
    }

    /// Returns the one live workload that has the address; none where nobody or more than one has.
    pub fn workload(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        match self.holder(address.to_canonical())? {
            Holder::One(position) => Some(self.at(position)),
            Holder::Conflict(..) => None,
        }
    }

    /// Returns the addresses that two live pods claim, in the addresses' order.
    pub fn conflicts(&self) -> Vec<AddressConflict> {
        let conflicts = self.holders.iter().filter_map(|(&address, &holder)| match holder {
            Holder::One(_) => None,
            Holder::Conflict(first, second) => Some((address, first, second)),
        });
        let mut conflicts: Vec<_> = conflicts
            .map(|(address, first, second)| AddressConflict {
                address,
                first: Arc::clone(self.at(first)),
                second: Arc::clone(self.at(second)),
            })
            .collect();
        conflicts.sort_unstable_by_key(|conflict| conflict.address);
        conflicts
    }

    /// Returns the workloads of a node, enrolled or not.
    pub fn on_node<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a Arc<Workload>> + use<'a> {
        self.by_node.get(node).into_iter().flatten().map(|&position| self.at(position))
    }

    /// Returns what the kernel of `node` is to do with each address that anybody has (see [`Destination`]).
    pub fn destinations(&self, node: &str) -> HashMap<IpAddr, Destination> {
        let services = self.owners.iter().map(|(&address, owners)| {
            let verdicts = owners.iter().map(|owner| owner.destination(address, node));
            (address, verdicts.reduce(Destination::or).unwrap_or(Destination::Pass))
        });
        // Pods last: their address goes before a service's, as in `route`.
        let pods = self.holders.iter().map(|(&address, &holder)| (address, self.pod_destination(holder)));
        let mut destinations = HashMap::with_capacity(self.owners.len() + self.holders.len());
        destinations.extend(services);
        destinations.extend(pods);
        destinations
    }

    /// Returns the zone of a node, where it is known.
    pub fn zone(&self, node: &str) -> Option<&Arc<str>> {
        self.zones.get(node)
    }

    pub(super) fn zones(&self) -> &Zones {
        &self.zones
    }

    pub(super) fn holder(&self, address: IpAddr) -> Option<Holder> {
        self.holders.get(&address).copied()
    }

    pub(super) fn at(&self, position: Position) -> &Arc<Workload> {
        &self.workloads[position as usize]
    }

    fn pod_destination(&self, holder: Holder) -> Destination {
        match holder {
            Holder::One(position) if !self.at(position).receives_hbone => Destination::Pass,
            // The agent refuses what is in dispute; a connection that the kernel let pass would go out in plaintext.
            Holder::One(_) | Holder::Conflict(..) => Destination::Capture,
        }
    }

    /// Returns the service of a DNS name.
    pub(super) fn named(&self, hostname: &str) -> Option<&Backends> {
        self.named.get(hostname).map(|backends| &**backends)
    }

    pub(super) fn owners(&self, address: IpAddr) -> &[Owner] {
        self.owners.get(&address).map_or(&[], Vec::as_slice)
    }
}

impl Destination {
    /// Joins the verdicts of services that share an address.
    fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Capture, _) | (_, Self::Capture) => Self::Capture,
            (Self::Refuse, Self::Refuse) => Self::Refuse,
            // One of them serves in plaintext, and the agent can tell the other's ports apart.
            (Self::Refuse, Self::Pass) | (Self::Pass, Self::Refuse) => Self::Capture,
            (Self::Pass, Self::Pass) => Self::Pass,
        }
    }
}

impl fmt::Display for AddressConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, first, second } = self;
        write!(
            f,
            "{address} is claimed by two live pods, {first} and {second}: traffic to it is refused until one of them \
             is deleted"
        )
    }
}

impl Holder {
    /// Who has the address once another workload claims it too.
    fn joined(self, claimant: Position, workloads: &[Arc<Workload>]) -> Self {
        let terminating = |position: Position| workloads[position as usize].terminating;
        let (Self::One(holder) | Self::Conflict(holder, _)) = self;
        match (self, terminating(holder), terminating(claimant)) {
            (_, true, false) => Self::One(claimant),
            (_, false, true) | (Self::Conflict(..), ..) => self,
            (Self::One(holder), ..) => Self::Conflict(holder, claimant),
        }
    }
}

impl Owner {
    fn destination(&self, address: IpAddr, node: &str) -> Destination {
        match self.backends.destination(address.is_ipv6(), node) {
            // Not at once for all ports of an address that may be a node's: the agent tells them apart.
            Destination::Refuse if self.external => Destination::Capture,
            verdict => verdict,
        }
    }
}

fn holders(workloads: &[Arc<Workload>]) -> HashMap<IpAddr, Holder> {
    let mut holders: HashMap<IpAddr, Holder> = HashMap::with_capacity(workloads.len());
    for (position, workload) in (0..).zip(workloads) {
        for &address in &workload.addresses {
            let holder = holders.entry(address);
            holder
                .and_modify(|holder| *holder = holder.joined(position, workloads))
                .or_insert(Holder::One(position));
        }
    }
    holders
}

fn resolve(
    workloads: &[Arc<Workload>],
    services: &[Arc<Service>],
    holders: &HashMap<IpAddr, Holder>,
    zones: &Zones,
) -> Vec<Arc<Backends>> {
    let pods = Pods::new(workloads, holders);
    services.iter().map(|service| Arc::new(Backends::resolve(service, &pods, zones))).collect()
}

fn owners(resolved: &[Arc<Backends>]) -> HashMap<IpAddr, Vec<Owner>> {
    let mut owners: HashMap<IpAddr, Vec<Owner>> = HashMap::with_capacity(resolved.len());
    for backends in resolved {
        let mut own = |address: &IpAddr, external| {
            let owner = Owner { backends: Arc::clone(backends), external };
            owners.entry(*address).or_default().push(owner);
        };
        backends.service().addresses.iter().for_each(|address| own(address, false));
        backends.service().external_addresses.iter().for_each(|address| own(address, true));
    }
    for owners in owners.values_mut() {
        // Anybody may write any address under `externalIPs` (CVE-2020-8554): none takes a cluster address over.
        if owners.iter().any(|owner| !owner.external) {
            owners.retain(|owner| !owner.external);
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::{Endpoint, fixtures::*};

    /// Each address as `address verdict`, in order.
    fn check(workloads: Vec<Workload>, services: Vec<Service>, expected: &[&str]) {
        let snapshot = snapshot(workloads, services);
        let mut destinations: Vec<_> = snapshot.destinations("node-a").into_iter().collect();
        destinations.sort_unstable_by_key(|(address, _)| *address);
        let shown: Vec<_> =
            destinations.into_iter().map(|(address, verdict)| format!("{address} {verdict:?}")).collect();
        assert_eq!(shown, expected);
    }

    fn outside(name: &str, addresses: &[&str]) -> Workload {
        Workload { receives_hbone: false, ..pod(name, addresses) }
    }

    #[test]
    fn only_pods_that_receive_hbone_are_captured() {
        check(
            vec![pod("in", &["10.0.0.1", "fd00::1"]), outside("out", &["10.0.0.2"])],
            vec![],
            &["10.0.0.1 Capture", "10.0.0.2 Pass", "fd00::1 Capture"],
        );
    }

    #[test]
    fn service_is_captured_with_one_ready_endpoint_that_receives_hbone() {
        let pods = || vec![pod("in", &["10.0.0.1"]), outside("out", &["10.0.0.2"])];
        let verdict = |endpoints: Vec<Endpoint>| {
            let service = Service { endpoints, ..service("10.1.0.1", &[]) };
            snapshot(pods(), vec![service]).destinations("node-a")[&ip("10.1.0.1")]
        };
        let unready = |address| Endpoint { ready: false, ..endpoint(address) };
        assert_eq!(verdict(vec![endpoint("10.0.0.2"), endpoint("10.0.0.1")]), Destination::Capture);
        assert_eq!(verdict(vec![endpoint("10.0.0.2"), unready("10.0.0.1")]), Destination::Pass);
        assert_eq!(verdict(vec![endpoint("192.0.2.1")]), Destination::Pass);
        assert_eq!(verdict(vec![unready("10.0.0.1"), unready("10.0.0.2")]), Destination::Refuse);
        assert_eq!(verdict(vec![]), Destination::Refuse);
    }

    #[test]
    fn service_without_tcp_ports_is_left_alone() {
        let service = Service { ports: vec![], ..service("10.1.0.1", &["10.0.0.1"]) };
        check(vec![pod("in", &["10.0.0.1"])], vec![service], &["10.0.0.1 Capture", "10.1.0.1 Pass"]);
    }

    #[test]
    fn not_ready_endpoints_count_where_they_are_published() {
        let endpoints = vec![Endpoint { ready: false, ..endpoint("10.0.0.1") }];
        let service = Service { endpoints, publish_not_ready: true, ..service("10.1.0.1", &[]) };
        check(vec![pod("in", &["10.0.0.1"])], vec![service], &["10.0.0.1 Capture", "10.1.0.1 Capture"]);
    }

    #[test]
    fn local_service_counts_the_endpoints_of_the_node() {
        let far = Workload { node: "node-b".into(), ..pod("far", &["10.0.0.1"]) };
        let local = Service { local_only: true, ..service("10.1.0.1", &["10.0.0.1"]) };
        let snapshot = snapshot(vec![far], vec![local]);
        assert_eq!(snapshot.destinations("node-a")[&ip("10.1.0.1")], Destination::Refuse);
        assert_eq!(snapshot.destinations("node-b")[&ip("10.1.0.1")], Destination::Capture);
    }

    #[test]
    fn families_of_a_service_are_judged_apart() {
        let addresses = vec![ip("10.1.0.1"), ip("fd01::1")];
        let service = Service { addresses, ..service("10.1.0.1", &["10.0.0.1"]) };
        let pods = vec![pod("in", &["10.0.0.1", "fd00::1"])];
        check(
            pods,
            vec![service],
            &["10.0.0.1 Capture", "10.1.0.1 Capture", "fd00::1 Capture", "fd01::1 Refuse"],
        );
    }

    #[test]
    fn external_address_without_endpoint_is_captured_as_it_may_be_a_nodes() {
        let external_addresses = vec![ip("192.0.2.1")];
        let service = Service { external_addresses, ..service("10.1.0.1", &[]) };
        check(vec![], vec![service], &["10.1.0.1 Refuse", "192.0.2.1 Capture"]);
    }

    #[test]
    fn external_address_takes_over_neither_a_pod_nor_a_cluster_address() {
        let victim = service("10.1.0.1", &["192.0.2.7"]);
        let external_addresses = vec![ip("10.1.0.1"), ip("10.0.0.2")];
        let greedy = Service { external_addresses, ..service("10.1.0.2", &["10.0.0.1"]) };
        check(
            vec![pod("in", &["10.0.0.1"]), outside("out", &["10.0.0.2"])],
            vec![greedy, victim],
            &["10.0.0.1 Capture", "10.0.0.2 Pass", "10.1.0.1 Pass", "10.1.0.2 Capture"],
        );
    }

    #[test]
    fn address_of_two_live_pods_is_captured_and_nobodys() {
        let snapshot =
            snapshot(vec![outside("a", &["10.0.0.1"]), outside("b", &["10.0.0.1", "10.0.0.2"])], vec![]);
        assert_eq!(snapshot.workload(ip("10.0.0.1")), None);
        assert!(snapshot.workload(ip("10.0.0.2")).is_some());
        assert_eq!(snapshot.destinations("node-a")[&ip("10.0.0.1")], Destination::Capture);
        let conflicts = snapshot.conflicts();
        let [conflict] = conflicts.as_slice() else { panic!("{conflicts:?}") };
        assert_eq!((&*conflict.first.name, &*conflict.second.name), ("a", "b"));
    }

    #[test]
    fn pod_that_is_being_deleted_yields_its_address_in_any_order() {
        let old = |name| Workload { terminating: true, ..pod(name, &["10.0.0.1"]) };
        let new = |name| pod(name, &["10.0.0.1"]);
        let holder = |workloads: Vec<Workload>| {
            let holder = snapshot(workloads, vec![]).workload(ip("10.0.0.1")).cloned();
            holder.map_or_else(|| "-".to_owned(), |holder| holder.name.to_string())
        };
        assert_eq!(holder(vec![old("old")]), "old");
        assert_eq!(holder(vec![old("old"), new("new")]), "new");
        assert_eq!(holder(vec![new("new"), old("old")]), "new");
        assert_eq!(holder(vec![old("old"), old("older")]), "-");
        assert_eq!(holder(vec![old("old"), old("older"), new("new")]), "new");
        assert_eq!(holder(vec![old("old"), new("new"), new("newer")]), "-");
        assert_eq!(holder(vec![new("new"), old("old"), new("newer")]), "-");
    }

    #[test]
    fn mapped_address_is_found() {
        let snapshot = snapshot(vec![pod("in", &["10.0.0.1"])], vec![]);
        assert!(snapshot.workload(ip("::ffff:10.0.0.1")).is_some());
    }

    #[test]
    fn pods_are_found_by_node() {
        let far = Workload { node: "node-b".into(), ..pod("far", &[]) };
        let snapshot = snapshot(vec![pod("near", &[]), far, pod("other", &[])], vec![]);
        let on = |node| snapshot.on_node(node).map(|pod| pod.name.to_string()).collect::<Vec<_>>();
        assert_eq!(on("node-a"), ["near", "other"]);
        assert_eq!(on("node-b"), ["far"]);
        assert!(on("node-c").is_empty());
    }
}
