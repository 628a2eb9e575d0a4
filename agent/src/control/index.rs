//! All objects of the mesh, whatever their source: records go in, snapshots come out.
//!
//! A pod's [`Workload`] depends on its own object and its namespace's labels; a [`Service`] on its own object and its
//! slices. What did not change is the same `Arc` in the next snapshot.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::Arc,
};

use super::{
    convert::{Content, Key, Kind, NamespaceLabels, PodLabels, PodRecord, Record, Slice},
    policies::Policies,
};
use crate::mesh::{Endpoint, Service, Snapshot, Workload, Zones};

/// The objects that are in force. Mutable, synchronous, owned by one source.
#[derive(Debug, Default)]
pub struct Index {
    // Ordered, so that equal objects make equal snapshots, in the order that people expect to read.
    namespaces: BTreeMap<String, NamespaceIndex>,
    policies: Policies,
    zones: Arc<Zones>,
}

#[derive(Debug, Default)]
struct NamespaceIndex {
    labels: NamespaceLabels,
    pods: BTreeMap<String, PodEntry>,
    services: BTreeMap<String, ServiceEntry>,
    /// By the service's name, then the slice's. A slice may come before its service.
    slices: HashMap<String, BTreeMap<String, Vec<Endpoint>>>,
    /// The service of each slice.
    slice_services: HashMap<String, String>,
}

#[derive(Debug)]
struct PodEntry {
    workload: Arc<Workload>,
    labels: PodLabels,
}

#[derive(Debug)]
struct ServiceEntry {
    service: Arc<Service>,
    /// Whether `service.endpoints` is behind the slices. Joining them waits for the snapshot: a service of many slices
    /// would otherwise be joined once for each of them.
    stale: bool,
}

impl Index {
    /// Makes an index without objects. The policies of `root_namespace` are for the whole mesh.
    pub fn new(root_namespace: &str) -> Self {
        Self { policies: Policies::new(root_namespace), ..Self::default() }
    }

    /// Puts an object in force, in the place of the one that had its key. Returns whether anything changed.
    pub fn apply(&mut self, record: &Record) -> bool {
        let Key { kind: _, namespace, name } = &record.key;
        match &record.content {
            Content::Namespace(labels) => self.namespace(name).relabel(*labels),
            Content::Node(zone) => self.put_zone(name, zone.as_ref()),
            Content::Pod(Some(pod)) => self.namespace(namespace).apply_pod(name, pod),
            Content::Service(Some(service)) => self.namespace(namespace).apply_service(name, service),
            Content::Slice(Some(slice)) => self.namespace(namespace).apply_slice(name, slice),
            Content::PeerAuthentication(policy) => self.policies.authenticate(policy),
            Content::AuthorizationPolicy(Some(policy)) => self.policies.authorize(policy),
            Content::AuthorizationPolicy(None) => self.policies.delete(&record.key),
            Content::Pod(None) | Content::Service(None) | Content::Slice(None) => self.delete(&record.key),
        }
    }

    /// Takes an object away. Returns whether anything changed.
    pub fn delete(&mut self, key: &Key) -> bool {
        let Key { kind, namespace, name } = key;
        if matches!(kind, Kind::PeerAuthentication | Kind::AuthorizationPolicy) {
            return self.policies.delete(key);
        }
        if *kind == Kind::Node {
            return self.put_zone(name, None);
        }
        let namespace = if *kind == Kind::Namespace { name } else { namespace };
        let Some(index) = self.namespaces.get_mut(namespace) else { return false };
        let changed = match kind {
            Kind::Namespace => index.relabel(NamespaceLabels::default()),
            Kind::Pod => index.pods.remove(name).is_some(),
            Kind::Service => index.services.remove(name).is_some(),
            Kind::EndpointSlice => index.delete_slice(name),
            Kind::Node | Kind::PeerAuthentication | Kind::AuthorizationPolicy => false,
        };
        if index.is_empty() {
            self.namespaces.remove(namespace);
        }
        changed
    }

    /// Returns whether an object is in force as it is; `false` for policies, of which that is not asked.
    pub(super) fn holds(&self, record: &Record) -> bool {
        let Key { kind: _, namespace, name } = &record.key;
        let index = |namespace: &str| self.namespaces.get(namespace);
        match &record.content {
            Content::Namespace(labels) => {
                index(name).map_or(NamespaceLabels::default(), |index| index.labels) == *labels
            }
            Content::Node(zone) => self.zones.get(name.as_str()) == zone.as_ref(),
            Content::Pod(pod) => {
                let entry = index(namespace).and_then(|index| index.pods.get(name));
                entry.zip(pod.as_ref()).map_or(entry.is_none() && pod.is_none(), |(entry, pod)| entry.is(pod))
            }
            Content::Service(service) => {
                let entry = index(namespace).and_then(|index| index.services.get(name));
                let is = |(entry, service): (&ServiceEntry, &Service)| {
                    let endpoints = entry.service.endpoints.clone();
                    *entry.service == Service { endpoints, ..service.clone() }
                };
                entry.zip(service.as_deref()).map_or(entry.is_none() && service.is_none(), is)
            }
            Content::Slice(slice) => {
                let known = index(namespace).and_then(|index| index.slice(name));
                known == slice.as_ref().map(|slice| (&*slice.service, &slice.endpoints))
            }
            Content::PeerAuthentication(_) | Content::AuthorizationPolicy(_) => false,
        }
    }

    /// Builds the snapshot of what is in force.
    pub fn snapshot(&mut self) -> Snapshot {
        let namespaces = self.namespaces.values_mut();
        namespaces.for_each(NamespaceIndex::join_slices);
        let namespaces = self.namespaces.values();
        let workloads = namespaces.clone().flat_map(|index| index.pods.values());
        let services = namespaces.flat_map(|index| index.services.values());
        let services: Vec<_> = services.map(|entry| Arc::clone(&entry.service)).collect();
        let policies = self.policies.set(&services);
        let workloads = workloads.map(|entry| Arc::clone(&entry.workload)).collect();
        Snapshot::in_zones(workloads, services, Arc::clone(&self.zones)).with_policies(policies)
    }

    /// Puts a node into a zone, or into none. Returns whether anything changed.
    fn put_zone(&mut self, node: &str, zone: Option<&Arc<str>>) -> bool {
        if self.zones.get(node) == zone {
            return false;
        }
        let zones = Arc::make_mut(&mut self.zones);
        match zone {
            Some(zone) => drop(zones.insert(node.into(), Arc::clone(zone))),
            None => drop(zones.remove(node)),
        }
        true
    }

    fn namespace(&mut self, name: &str) -> &mut NamespaceIndex {
        // Not `entry`, which would copy the name for each object.
        if !self.namespaces.contains_key(name) {
            self.namespaces.insert(name.to_owned(), NamespaceIndex::default());
        }
        self.namespaces.get_mut(name).expect("was just inserted")
    }
}

impl NamespaceIndex {
    fn is_empty(&self) -> bool {
        let Self { labels, pods, services, slices, slice_services: _ } = self;
        *labels == NamespaceLabels::default() && pods.is_empty() && services.is_empty() && slices.is_empty()
    }

    fn relabel(&mut self, labels: NamespaceLabels) -> bool {
        if mem::replace(&mut self.labels, labels) == labels {
            return false;
        }
        let mut changed = false;
        for pod in self.pods.values_mut() {
            changed |= pod.relabel(labels);
        }
        changed
    }

    fn apply_pod(&mut self, name: &str, record: &PodRecord) -> bool {
        let labels = record.labels;
        let mut workload = record.workload.clone();
        workload.enrollment = labels.enrollment(self.labels);
        workload.receives_hbone = labels.receives_hbone(workload.enrollment);
        match self.pods.get_mut(name) {
            Some(entry) => {
                entry.labels = labels;
                replace(&mut entry.workload, workload)
            }
            None => {
                let workload = Arc::new(workload);
                self.pods.insert(name.to_owned(), PodEntry { workload, labels });
                true
            }
        }
    }

    fn apply_service(&mut self, name: &str, service: &Service) -> bool {
        let Some(entry) = self.services.get_mut(name) else {
            let service = Arc::new(service.clone());
            self.services.insert(name.to_owned(), ServiceEntry { service, stale: true });
            return true;
        };
        let endpoints = entry.service.endpoints.clone();
        replace(&mut entry.service, Service { endpoints, ..service.clone() })
    }

    fn apply_slice(&mut self, name: &str, slice: &Slice) -> bool {
        let owner = self.slice_services.get(name);
        let moved = owner.is_some_and(|owner| **owner != *slice.service) && self.delete_slice(name);
        let slices = self.slices.entry(slice.service.to_string()).or_default();
        if slices.get(name) == Some(&slice.endpoints) {
            return moved;
        }
        slices.insert(name.to_owned(), slice.endpoints.clone());
        self.slice_services.insert(name.to_owned(), slice.service.to_string());
        self.mark_stale(&slice.service) || moved
    }

    /// The service of a slice, and its endpoints.
    fn slice(&self, name: &str) -> Option<(&str, &Vec<Endpoint>)> {
        let service = self.slice_services.get(name)?;
        Some((service, self.slices.get(service)?.get(name)?))
    }

    fn delete_slice(&mut self, name: &str) -> bool {
        let Some(service) = self.slice_services.remove(name) else { return false };
        if let Some(slices) = self.slices.get_mut(&service) {
            slices.remove(name);
            if slices.is_empty() {
                self.slices.remove(&service);
            }
        }
        self.mark_stale(&service)
    }

    /// Returns whether there is such a service.
    fn mark_stale(&mut self, service: &str) -> bool {
        let entry = self.services.get_mut(service);
        entry.map(|entry| entry.stale = true).is_some()
    }

    fn join_slices(&mut self) {
        for (name, entry) in &mut self.services {
            if !mem::take(&mut entry.stale) {
                continue;
            }
            let slices = self.slices.get(name).into_iter().flat_map(BTreeMap::values);
            let endpoints = slices.flatten().cloned().collect();
            let service = Service { endpoints, ..(*entry.service).clone() };
            replace(&mut entry.service, service);
        }
    }
}

impl PodEntry {
    fn is(&self, record: &PodRecord) -> bool {
        let Workload { enrollment, receives_hbone, .. } = *self.workload;
        self.labels == record.labels
            && *self.workload == Workload { enrollment, receives_hbone, ..record.workload.clone() }
    }

    fn relabel(&mut self, namespace: NamespaceLabels) -> bool {
        let enrollment = self.labels.enrollment(namespace);
        let receives_hbone = self.labels.receives_hbone(enrollment);
        if (self.workload.enrollment, self.workload.receives_hbone) == (enrollment, receives_hbone) {
            return false;
        }
        let workload = Workload { enrollment, receives_hbone, ..(*self.workload).clone() };
        self.workload = Arc::new(workload);
        true
    }
}

/// Replaces a shared value where the new one differs. Returns whether it did.
fn replace<T: PartialEq>(shared: &mut Arc<T>, new: T) -> bool {
    let differs = **shared != new;
    if differs {
        *shared = Arc::new(new);
    }
    differs
}

#[cfg(test)]
mod tests;
