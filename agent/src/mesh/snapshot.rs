//! An immutable view of the whole mesh, with the indexes that routing and enrolment need.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use super::{Service, Workload, backends::Backends};

/// All workloads and services at one moment. Built by `control`, shared behind an `Arc`, never changed.
#[derive(Debug, Default)]
pub struct Snapshot {
    workloads: Vec<Arc<Workload>>,
    services: Vec<Arc<Service>>,
    holders: HashMap<IpAddr, Holder>,
    owners: HashMap<IpAddr, Vec<Owner>>,
    by_node: HashMap<Arc<str>, Vec<Arc<Workload>>>,
}

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
#[derive(Debug)]
pub(super) enum Holder {
    One(Arc<Workload>),
    Conflict(AddressConflict),
}

/// A service at one of its addresses.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) backends: Arc<Backends>,
    /// Whether it is an external or load-balancer address, which may be another's too.
    pub(super) external: bool,
}

impl Snapshot {
    /// Indexes workloads and services.
    pub fn new(workloads: Vec<Arc<Workload>>, services: Vec<Arc<Service>>) -> Self {
        let holders = holders(&workloads);
        let owners = owners(&workloads, &services, &holders);
        let mut by_node: HashMap<_, Vec<_>> = HashMap::new();
        for workload in &workloads {
            by_node.entry(Arc::clone(&workload.node)).or_default().push(Arc::clone(workload));
        }
        Self { workloads, services, holders, owners, by_node }
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
            Holder::One(workload) => Some(workload),
            Holder::Conflict(_) => None,
        }
    }

    /// Returns the addresses that two live pods claim, in the addresses' order.
    pub fn conflicts(&self) -> Vec<&AddressConflict> {
        let mut conflicts: Vec<_> = self.holders.values().filter_map(Holder::conflict).collect();
        conflicts.sort_unstable_by_key(|conflict| conflict.address);
        conflicts
    }

    /// Returns the workloads of a node, enrolled or not.
    pub fn on_node<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a Arc<Workload>> + use<'a> {
        self.by_node.get(node).into_iter().flatten()
    }

    /// Returns what the kernel of `node` is to do with each address that anybody has (see [`Destination`]).
    pub fn destinations(&self, node: &str) -> HashMap<IpAddr, Destination> {
        let services = self.owners.iter().map(|(&address, owners)| {
            let verdicts = owners.iter().map(|owner| owner.destination(address, node));
            (address, verdicts.reduce(Destination::or).unwrap_or(Destination::Pass))
        });
        // Pods last: their address goes before a service's, as in `route`.
        let pods = self.holders.iter().map(|(&address, holder)| (address, holder.destination()));
        let mut destinations = HashMap::with_capacity(self.owners.len() + self.holders.len());
        destinations.extend(services);
        destinations.extend(pods);
        destinations
    }

    pub(super) fn holder(&self, address: IpAddr) -> Option<&Holder> {
        self.holders.get(&address)
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

impl Holder {
    fn destination(&self) -> Destination {
        match self {
            Self::One(workload) if !workload.receives_hbone => Destination::Pass,
            // The agent refuses what is in dispute; a connection that the kernel let pass would go out in plaintext.
            Self::One(_) | Self::Conflict(_) => Destination::Capture,
        }
    }

    fn conflict(&self) -> Option<&AddressConflict> {
        match self {
            Self::One(_) => None,
            Self::Conflict(conflict) => Some(conflict),
        }
    }

    /// Adds a claimant of the address.
    fn claim(&mut self, address: IpAddr, claimant: &Arc<Workload>) {
        match self {
            Self::One(holder) if holder.terminating && !claimant.terminating => {
                *holder = Arc::clone(claimant);
            }
            Self::One(holder) if holder.terminating == claimant.terminating => {
                let (first, second) = (Arc::clone(holder), Arc::clone(claimant));
                *self = Self::Conflict(AddressConflict { address, first, second });
            }
            Self::Conflict(conflict) if conflict.first.terminating && !claimant.terminating => {
                *self = Self::One(Arc::clone(claimant));
            }
            Self::One(_) | Self::Conflict(_) => {}
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
    for workload in workloads {
        for &address in &workload.addresses {
            match holders.entry(address) {
                Entry::Vacant(entry) => {
                    entry.insert(Holder::One(Arc::clone(workload)));
                }
                Entry::Occupied(mut entry) => entry.get_mut().claim(address, workload),
            }
        }
    }
    holders
}

fn owners(
    workloads: &[Arc<Workload>],
    services: &[Arc<Service>],
    holders: &HashMap<IpAddr, Holder>,
) -> HashMap<IpAddr, Vec<Owner>> {
    let host_network = Backends::host_network(workloads);
    let mut owners: HashMap<IpAddr, Vec<Owner>> = HashMap::with_capacity(services.len());
    for service in services {
        if service.addresses.is_empty() && service.external_addresses.is_empty() {
            continue;
        }
        let backends = Arc::new(Backends::resolve(service, holders, &host_network));
        let mut own = |address: &IpAddr, external| {
            let owner = Owner { backends: Arc::clone(&backends), external };
            owners.entry(*address).or_default().push(owner);
        };
        service.addresses.iter().for_each(|address| own(address, false));
        service.external_addresses.iter().for_each(|address| own(address, true));
    }
    owners
}
