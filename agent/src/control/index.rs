//! All objects of the mesh, whatever their source: records go in, snapshots come out.
//!
//! A pod's [`Workload`](crate::mesh::Workload) depends on its own object and its namespace's labels; a [`Service`] on its
//! own object and its slices. What did not change is the same `Arc` in the next snapshot, and so is what is derived from it: a
//! change costs what depends on it ([`SnapshotBuilder`]).

mod namespace;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, mem, sync::Arc};

use self::namespace::NamespaceIndex;
use super::{
    convert::{Content, Key, Kind, NamespaceLabels, Record},
    policies::Policies,
};
use crate::mesh::{List, Service, Snapshot, SnapshotBuilder, Zones};

/// The objects that are in force. Mutable, synchronous, owned by one source.
#[derive(Debug, Default)]
pub struct Index {
    // Ordered, so that equal objects make equal snapshots, in the order that people expect to read.
    namespaces: BTreeMap<String, NamespaceIndex>,
    policies: Policies,
    zones: Arc<Zones>,
    /// Whether the builder has yet to hear of the zones: they are copied for each time that it does.
    rezoned: bool,
    builder: SnapshotBuilder,
}

impl Index {
    /// Makes an index without objects. The policies of `root_namespace` are for the whole mesh.
    pub fn new(root_namespace: &str) -> Self {
        Self { policies: Policies::new(root_namespace), ..Self::default() }
    }

    /// Puts an object in force, in the place of the one that had its key. Returns whether anything changed.
    pub fn apply(&mut self, record: &Record) -> bool {
        let Key { kind: _, namespace, name } = &record.key;
        let Self { namespaces, builder, .. } = self;
        match &record.content {
            Content::Namespace(labels) => of(namespaces, name).relabel(*labels, builder),
            Content::Node(zone) => self.put_zone(name, zone.as_ref()),
            Content::Pod(Some(pod)) => of(namespaces, namespace).apply_pod(name, pod, builder),
            Content::Service(Some(service)) => of(namespaces, namespace).apply_service(name, service),
            Content::Slice(Some(slice)) => of(namespaces, namespace).apply_slice(name, slice),
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
            Kind::Namespace => index.relabel(NamespaceLabels::default(), &mut self.builder),
            Kind::Pod => index.delete_pod(name, &mut self.builder),
            Kind::Service => index.delete_service(name, &mut self.builder),
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
                let is = |(entry, service): (&Arc<Service>, &Service)| {
                    let endpoints = entry.endpoints.clone();
                    **entry == Service { endpoints, ..service.clone() }
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
        if mem::take(&mut self.rezoned) {
            self.builder.set_zones(&self.zones);
        }
        for index in self.namespaces.values_mut() {
            index.join_slices(&mut self.builder);
        }
        let workloads: List<_> = self.namespaces.values_mut().map(NamespaceIndex::list_pods).collect();
        let services: List<_> = self.namespaces.values_mut().map(NamespaceIndex::list_services).collect();
        let namespaces = &self.namespaces;
        let policies = self.policies.set(|namespace, name| namespaces.get(namespace)?.services.get(name));
        self.builder.snapshot((workloads, services), policies)
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
        self.rezoned = true;
        true
    }
}

/// The index of a namespace, which may not have had any object.
fn of<'a>(namespaces: &'a mut BTreeMap<String, NamespaceIndex>, name: &str) -> &'a mut NamespaceIndex {
    // Not `entry`, which would copy the name for each object.
    if !namespaces.contains_key(name) {
        namespaces.insert(name.to_owned(), NamespaceIndex::default());
    }
    namespaces.get_mut(name).expect("was just inserted")
}
