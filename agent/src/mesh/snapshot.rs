//! An immutable view of the whole mesh, with the indexes that routing and enrolment need.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use super::{
    PolicySet, Service, SnapshotBuilder, Workload, backends::Backends, list::List, sharded::Sharded,
};

/// All workloads and services at one moment. Built by `control`, shared behind an `Arc`, never changed. It shares with those
/// before and after it what is the same in them.
#[derive(Debug, Default)]
pub struct Snapshot {
    workloads: List<Workload>,
    services: List<Service>,
    policies: Arc<PolicySet>,
    pub(super) indexes: Indexes,
}

/// What routing and enrolment look things up in. A copy is cheap.
#[derive(Clone, Debug, Default)]
pub(super) struct Indexes {
    /// Who has an address.
    pub(super) holders: Sharded<IpAddr, Holder>,
    /// The addresses in dispute.
    pub(super) disputed: Arc<BTreeSet<IpAddr>>,
    /// The services at an address, in the order of their names.
    pub(super) owners: Sharded<IpAddr, Arc<[Owner]>>,
    /// The services by their names in DNS.
    pub(super) named: Sharded<Arc<str>, Arc<Backends>>,
    /// The workloads of a node, in the order of their names.
    pub(super) by_node: Sharded<Arc<str>, Arc<Vec<Arc<Workload>>>>,
    pub(super) zones: Arc<Zones>,
}

/// The zone of each node that has one, by the nodes' names.
pub type Zones = HashMap<Arc<str>, Arc<str>>;

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
#[derive(Clone, Debug)]
pub(super) enum Holder {
    One(Arc<Workload>),
    Conflict(Arc<Workload>, Arc<Workload>),
}

/// A service at one of its addresses.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub(super) backends: Arc<Backends>,
    /// Whether it is an external or load-balancer address, which may be another's too.
    pub(super) external: bool,
}

impl Snapshot {
    /// Indexes workloads and services, where no node's zone is known.
    pub fn new(workloads: Vec<Arc<Workload>>, services: Vec<Arc<Service>>) -> Self {
        Self::in_zones(workloads, services, &Arc::default())
    }

    /// Indexes workloads and services on nodes in zones.
    pub fn in_zones(workloads: Vec<Arc<Workload>>, services: Vec<Arc<Service>>, zones: &Arc<Zones>) -> Self {
        let mut builder = SnapshotBuilder::default();
        builder.set_zones(zones);
        workloads.iter().for_each(|workload| builder.replace_workload(None, Some(workload)));
        services.iter().for_each(|service| builder.put_service(service));
        builder.snapshot((workloads.into(), services.into()), Arc::default())
    }

    pub(super) fn of(
        workloads: List<Workload>,
        services: List<Service>,
        policies: Arc<PolicySet>,
        indexes: Indexes,
    ) -> Self {
        Self { workloads, services, policies, indexes }
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
    pub fn workloads(&self) -> &List<Workload> {
        &self.workloads
    }

    /// Returns all services.
    pub fn services(&self) -> &List<Service> {
        &self.services
    }

    /// Returns the one live workload that has the address; none where nobody or more than one has.
    pub fn workload(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        match self.holder(address.to_canonical())? {
            Holder::One(workload) => Some(workload),
            Holder::Conflict(..) => None,
        }
    }

    /// Returns the addresses that two live pods claim, in the addresses' order.
    pub fn conflicts(&self) -> Vec<AddressConflict> {
        let conflict = |address: &IpAddr| match self.holder(*address)? {
            Holder::One(_) => None,
            Holder::Conflict(first, second) => {
                let (first, second) = (Arc::clone(first), Arc::clone(second));
                Some(AddressConflict { address: *address, first, second })
            }
        };
        self.indexes.disputed.iter().filter_map(conflict).collect()
    }

    /// Returns the workloads of a node, enrolled or not.
    pub fn on_node<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a Arc<Workload>> + use<'a> {
        self.indexes.by_node.get(node).into_iter().flat_map(|pods| pods.iter())
    }

    /// Returns what the kernel of `node` is to do with each address that anybody has (see [`Destination`]).
    pub fn destinations(&self, node: &str) -> HashMap<IpAddr, Destination> {
        let Indexes { owners, holders, .. } = &self.indexes;
        let services = owners.iter().map(|(&address, owners)| {
            let verdicts = owners.iter().map(|owner| owner.destination(address, node));
            (address, verdicts.reduce(Destination::or).unwrap_or(Destination::Pass))
        });
        // Pods last: their address goes before a service's, as in `route`.
        let pods = holders.iter().map(|(&address, holder)| (address, holder.destination()));
        let mut destinations = HashMap::with_capacity(owners.len() + holders.len());
        destinations.extend(services);
        destinations.extend(pods);
        destinations
    }

    /// Returns the zone of a node, where it is known.
    pub fn zone(&self, node: &str) -> Option<&Arc<str>> {
        self.indexes.zones.get(node)
    }

    pub(super) fn zones(&self) -> &Zones {
        &self.indexes.zones
    }

    pub(super) fn holder(&self, address: IpAddr) -> Option<&Holder> {
        self.indexes.holders.get(&address)
    }

    /// Returns the service of a DNS name.
    pub(super) fn named(&self, hostname: &str) -> Option<&Backends> {
        self.indexes.named.get(hostname).map(|backends| &**backends)
    }

    pub(super) fn owners(&self, address: IpAddr) -> &[Owner] {
        self.indexes.owners.get(&address).map_or(&[], |owners| owners)
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
    /// Who has the address once another workload claims it too. To be asked in the order of the workloads' names.
    pub(super) fn joined(before: Option<Self>, claimant: &Arc<Workload>) -> Self {
        let Some(before) = before else { return Self::One(Arc::clone(claimant)) };
        let (Self::One(holder) | Self::Conflict(holder, _)) = &before;
        match (&before, holder.terminating, claimant.terminating) {
            (_, true, false) => Self::One(Arc::clone(claimant)),
            (_, false, true) | (Self::Conflict(..), ..) => before,
            (Self::One(holder), ..) => Self::Conflict(Arc::clone(holder), Arc::clone(claimant)),
        }
    }

    fn destination(&self) -> Destination {
        match self {
            Self::One(workload) if !workload.receives_hbone => Destination::Pass,
            // The agent refuses what is in dispute; a connection that the kernel let pass would go out in plaintext.
            Self::One(_) | Self::Conflict(..) => Destination::Capture,
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
        let name = "greedy".into();
        let greedy = Service { name, external_addresses, ..service("10.1.0.2", &["10.0.0.1"]) };
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
