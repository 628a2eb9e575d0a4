//! Keeps what snapshots are made of in step with the workloads and services, and makes them: a change costs what depends on
//! it, not what there is.
//!
//! ```text
//! Workload ─► holders of its addresses ─┐
//!                                       ├─► stale services ─► resolved once, for the snapshot ─► Snapshot
//! Service ─► whose addresses, endpoints ┘
//! ```

use std::{
    collections::{HashMap, HashSet},
    mem,
    net::IpAddr,
    sync::Arc,
};

use super::{
    Distribution, PodName, PolicySet, Service, Snapshot, Workload,
    backends::{Backends, Pods},
    list::List,
    snapshot::{Holder, Indexes, Owner, Zones},
};

/// All workloads and services, as they change.
#[derive(Debug, Default)]
pub struct SnapshotBuilder {
    indexes: Indexes,
    /// Who claims an address, where that is more than one, in the order of their names.
    rivals: HashMap<IpAddr, Vec<Arc<Workload>>>,
    /// Those on their node's network. They hold no address, so endpoints find them by name.
    host_network: HashMap<PodName, Arc<Workload>>,
    services: HashMap<Hostname, Known>,
    /// The services with an endpoint at an address, or for a pod that nobody knew an address of: what is to be resolved
    /// again when something about those changes.
    behind: HashMap<IpAddr, Vec<Hostname>>,
    missed: HashMap<PodName, Vec<Hostname>>,
    /// The services at an address, and whether it is an external one.
    claims: HashMap<IpAddr, Vec<(Hostname, bool)>>,
    /// What the next snapshot has to resolve, and whose owners to list.
    stale: HashSet<Hostname>,
    disowned: HashSet<IpAddr>,
}

/// A service's name in DNS, which no other service has.
type Hostname = Arc<str>;

#[derive(Debug)]
struct Known {
    service: Arc<Service>,
    /// The pods of which no address was known when its endpoints were resolved.
    missed: Vec<PodName>,
}

impl SnapshotBuilder {
    /// Puts a workload in the place of another. Either may be nobody.
    pub fn replace_workload(&mut self, old: Option<&Arc<Workload>>, new: Option<&Arc<Workload>>) {
        if let Some(old) = old {
            old.addresses.iter().for_each(|address| self.unclaim(*address, old));
            self.leave_node(old);
            self.host_network.remove(&name(old));
        }
        if let Some(new) = new {
            new.addresses.iter().for_each(|address| self.claim(*address, new));
            self.join_node(new);
            if new.is_host_network() {
                self.host_network.insert(name(new), Arc::clone(new));
            }
        }
        for pod in [old, new].into_iter().flatten() {
            for address in &pod.addresses {
                self.stale.extend(self.behind.get(address).into_iter().flatten().cloned());
            }
            if pod.is_host_network() {
                // Whoever has found it, and whoever has missed it.
                self.stale.extend(self.missed.get(&name(pod)).into_iter().flatten().cloned());
            }
        }
    }

    /// Puts a service in force, in the place of the one of its name.
    pub fn put_service(&mut self, service: &Arc<Service>) {
        let hostname: Hostname = service.hostname().into();
        self.unlink(&hostname);
        for endpoint in &service.endpoints {
            add(self.behind.entry(endpoint.address).or_default(), &hostname);
        }
        for (address, external) in addresses(service) {
            add(self.claims.entry(address).or_default(), &(Arc::clone(&hostname), external));
            self.disowned.insert(address);
        }
        self.services
            .insert(Arc::clone(&hostname), Known { service: Arc::clone(service), missed: Vec::new() });
        self.stale.insert(hostname);
    }

    /// Takes a service away.
    pub fn remove_service(&mut self, service: &Service) {
        let hostname: Hostname = service.hostname().into();
        self.unlink(&hostname);
        self.stale.remove(&hostname);
        self.indexes.named.remove(&hostname);
    }

    /// Says which nodes are in which zones.
    pub fn set_zones(&mut self, zones: &Arc<Zones>) {
        self.indexes.zones = Arc::clone(zones);
        let minding =
            self.services.iter().filter(|(_, known)| known.service.distribution != Distribution::Any);
        self.stale.extend(minding.map(|(hostname, _)| Arc::clone(hostname)));
    }

    /// Returns a snapshot of it all, with these lists of it and these policies.
    pub fn snapshot(
        &mut self,
        (workloads, services): (List<Workload>, List<Service>),
        policies: Arc<PolicySet>,
    ) -> Snapshot {
        for hostname in mem::take(&mut self.stale) {
            self.resolve(&hostname);
        }
        for address in mem::take(&mut self.disowned) {
            self.list_owners(address);
        }
        Snapshot::of(workloads, services, policies, self.indexes.clone())
    }

    fn resolve(&mut self, hostname: &Hostname) {
        self.forget_missed(hostname);
        let Some(known) = self.services.get_mut(hostname) else { return };
        let pods = Pods { holders: &self.indexes.holders, host_network: &self.host_network };
        let (backends, missed) = Backends::resolve(&known.service, &pods, &self.indexes.zones);
        for pod in &missed {
            add(self.missed.entry(pod.clone()).or_default(), hostname);
        }
        known.missed = missed;
        self.disowned.extend(addresses(&known.service).map(|(address, _)| address));
        self.indexes.named.insert(Arc::clone(hostname), Arc::new(backends));
    }

    /// Lists whom an address belongs to.
    fn list_owners(&mut self, address: IpAddr) {
        let claims = self.claims.get(&address).into_iter().flatten();
        let owner = |(hostname, external): &(Hostname, bool)| {
            let backends = Arc::clone(self.indexes.named.get(hostname)?);
            Some(Owner { backends, external: *external })
        };
        let mut owners: Vec<_> = claims.filter_map(owner).collect();
        // Anybody may write any address under `externalIPs` (CVE-2020-8554): none takes a cluster address over.
        if owners.iter().any(|owner| !owner.external) {
            owners.retain(|owner| !owner.external);
        }
        owners.sort_by(|one, other| {
            let name = |owner: &Owner| {
                let Service { namespace, name, .. } = &**owner.backends.service();
                (Arc::clone(namespace), Arc::clone(name))
            };
            name(one).cmp(&name(other))
        });
        match owners.is_empty() {
            true => self.indexes.owners.remove(&address),
            false => self.indexes.owners.insert(address, owners.into()),
        }
    }

    /// Forgets what a service was linked to.
    fn unlink(&mut self, hostname: &Hostname) {
        self.forget_missed(hostname);
        let Some(Known { service, missed: _ }) = self.services.remove(hostname) else { return };
        for endpoint in &service.endpoints {
            take(&mut self.behind, &endpoint.address, hostname);
        }
        for (address, external) in addresses(&service) {
            take(&mut self.claims, &address, &(Arc::clone(hostname), external));
            self.disowned.insert(address);
        }
    }

    fn forget_missed(&mut self, hostname: &Hostname) {
        let Some(known) = self.services.get_mut(hostname) else { return };
        for pod in mem::take(&mut known.missed) {
            take(&mut self.missed, &pod, hostname);
        }
    }

    fn claim(&mut self, address: IpAddr, claimant: &Arc<Workload>) {
        let before = match self.indexes.holders.get(&address) {
            None => return self.indexes.holders.insert(address, Holder::One(Arc::clone(claimant))),
            Some(Holder::One(holder)) => Arc::clone(holder),
            Some(Holder::Conflict(first, _)) => Arc::clone(first),
        };
        let rivals = self.rivals.entry(address).or_insert_with(|| vec![before]);
        let at = rivals.partition_point(|rival| order(rival) <= order(claimant));
        rivals.insert(at, Arc::clone(claimant));
        self.decide(address);
    }

    fn unclaim(&mut self, address: IpAddr, claimant: &Arc<Workload>) {
        let Some(rivals) = self.rivals.get_mut(&address) else {
            return self.indexes.holders.remove(&address);
        };
        rivals.retain(|rival| !Arc::ptr_eq(rival, claimant));
        self.decide(address);
        if self.rivals.get(&address).is_some_and(|rivals| rivals.len() < 2) {
            self.rivals.remove(&address);
        }
    }

    /// Decides who of several has an address.
    fn decide(&mut self, address: IpAddr) {
        let rivals = self.rivals.get(&address).into_iter().flatten();
        let Some(holder) = rivals.fold(None, |holder, claimant| Some(Holder::joined(holder, claimant)))
        else {
            return;
        };
        let disputed = matches!(holder, Holder::Conflict(..));
        if disputed != self.indexes.disputed.contains(&address) {
            let all = Arc::make_mut(&mut self.indexes.disputed);
            if disputed {
                all.insert(address)
            } else {
                all.remove(&address)
            };
        }
        self.indexes.holders.insert(address, holder);
    }

    fn join_node(&mut self, pod: &Arc<Workload>) {
        let pods = Arc::make_mut(self.indexes.by_node.or_default(Arc::clone(&pod.node)));
        let at = pods.partition_point(|other| order(other) <= order(pod));
        pods.insert(at, Arc::clone(pod));
    }

    fn leave_node(&mut self, pod: &Arc<Workload>) {
        let pods = Arc::make_mut(self.indexes.by_node.or_default(Arc::clone(&pod.node)));
        pods.retain(|other| !Arc::ptr_eq(other, pod));
        if pods.is_empty() {
            self.indexes.by_node.remove(&pod.node);
        }
    }
}

/// The addresses of a service, and whether each is an external one.
fn addresses(service: &Service) -> impl Iterator<Item = (IpAddr, bool)> {
    let own = service.addresses.iter().map(|address| (*address, false));
    own.chain(service.external_addresses.iter().map(|address| (*address, true)))
}

fn name(pod: &Workload) -> PodName {
    PodName { namespace: Arc::clone(&pod.namespace), name: Arc::clone(&pod.name) }
}

fn order(pod: &Workload) -> (&str, &str) {
    (&pod.namespace, &pod.name)
}

fn add<T: Clone + PartialEq>(all: &mut Vec<T>, one: &T) {
    if !all.contains(one) {
        all.push(one.clone());
    }
}

fn take<K: Eq + std::hash::Hash, T: PartialEq>(all: &mut HashMap<K, Vec<T>>, key: &K, one: &T) {
    if let Some(known) = all.get_mut(key) {
        known.retain(|known| known != one);
        if known.is_empty() {
            all.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
