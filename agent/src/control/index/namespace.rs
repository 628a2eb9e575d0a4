//! The pods, services and slices of one namespace.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    sync::Arc,
};

use super::super::convert::{NamespaceLabels, PodLabels, PodRecord, Slice};
use crate::mesh::{Endpoint, Service, SnapshotBuilder, Workload};

#[derive(Debug, Default)]
pub(super) struct NamespaceIndex {
    pub(super) labels: NamespaceLabels,
    pub(super) pods: BTreeMap<String, PodEntry>,
    pub(super) services: BTreeMap<String, Arc<Service>>,
    /// By the service's name, then the slice's. A slice may come before its service.
    slices: HashMap<String, BTreeMap<String, Vec<Endpoint>>>,
    /// The service of each slice.
    slice_services: HashMap<String, String>,
    /// The services whose endpoints are behind the slices. Joining them waits for the snapshot: a service of many slices would
    /// otherwise be joined once for each of them.
    unjoined: BTreeSet<String>,
    /// The pods and the services as the last snapshot listed them; none where they changed since.
    listed_pods: Option<Arc<[Arc<Workload>]>>,
    listed_services: Option<Arc<[Arc<Service>]>>,
}

#[derive(Debug)]
pub(super) struct PodEntry {
    workload: Arc<Workload>,
    labels: PodLabels,
}

impl NamespaceIndex {
    pub(super) fn is_empty(&self) -> bool {
        let Self { labels, pods, services, slices, .. } = self;
        *labels == NamespaceLabels::default() && pods.is_empty() && services.is_empty() && slices.is_empty()
    }

    pub(super) fn relabel(&mut self, labels: NamespaceLabels, builder: &mut SnapshotBuilder) -> bool {
        if mem::replace(&mut self.labels, labels) == labels {
            return false;
        }
        let mut changed = false;
        for pod in self.pods.values_mut() {
            changed |= pod.relabel(labels, builder);
        }
        if changed {
            self.listed_pods = None;
        }
        changed
    }

    pub(super) fn apply_pod(
        &mut self,
        name: &str,
        record: &PodRecord,
        builder: &mut SnapshotBuilder,
    ) -> bool {
        let labels = record.labels;
        let mut workload = record.workload.clone();
        workload.enrollment = labels.enrollment(self.labels);
        workload.receives_hbone = labels.receives_hbone(workload.enrollment);
        if let Some(entry) = self.pods.get_mut(name) {
            entry.labels = labels;
            let Some(old) = replace(&mut entry.workload, workload) else { return false };
            builder.replace_workload(Some(&old), Some(&entry.workload));
        } else {
            let workload = Arc::new(workload);
            builder.replace_workload(None, Some(&workload));
            self.pods.insert(name.to_owned(), PodEntry { workload, labels });
        }
        self.listed_pods = None;
        true
    }

    pub(super) fn delete_pod(&mut self, name: &str, builder: &mut SnapshotBuilder) -> bool {
        let Some(entry) = self.pods.remove(name) else { return false };
        builder.replace_workload(Some(&entry.workload), None);
        self.listed_pods = None;
        true
    }

    pub(super) fn apply_service(&mut self, name: &str, service: &Service) -> bool {
        let Some(known) = self.services.get_mut(name) else {
            self.services.insert(name.to_owned(), Arc::new(service.clone()));
            self.unjoined.insert(name.to_owned());
            return true;
        };
        let endpoints = known.endpoints.clone();
        if replace(known, Service { endpoints, ..service.clone() }).is_none() {
            return false;
        }
        // The builder hears of it when its endpoints are what they ought to be.
        self.unjoined.insert(name.to_owned());
        true
    }

    pub(super) fn delete_service(&mut self, name: &str, builder: &mut SnapshotBuilder) -> bool {
        let Some(service) = self.services.remove(name) else { return false };
        builder.remove_service(&service);
        self.unjoined.remove(name);
        self.listed_services = None;
        true
    }

    pub(super) fn apply_slice(&mut self, name: &str, slice: &Slice) -> bool {
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
    pub(super) fn slice(&self, name: &str) -> Option<(&str, &Vec<Endpoint>)> {
        let service = self.slice_services.get(name)?;
        Some((service, self.slices.get(service)?.get(name)?))
    }

    pub(super) fn delete_slice(&mut self, name: &str) -> bool {
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
        let known = self.services.contains_key(service);
        if known {
            self.unjoined.insert(service.to_owned());
        }
        known
    }

    pub(super) fn join_slices(&mut self, builder: &mut SnapshotBuilder) {
        for name in mem::take(&mut self.unjoined) {
            let Some(known) = self.services.get_mut(&name) else { continue };
            let slices = self.slices.get(&name).into_iter().flat_map(BTreeMap::values);
            let endpoints = slices.flatten().cloned().collect();
            let service = Service { endpoints, ..(**known).clone() };
            replace(known, service);
            builder.put_service(known);
            self.listed_services = None;
        }
    }

    pub(super) fn list_pods(&mut self) -> Arc<[Arc<Workload>]> {
        let pods = &self.pods;
        let list = || pods.values().map(|entry| Arc::clone(&entry.workload)).collect();
        Arc::clone(self.listed_pods.get_or_insert_with(list))
    }

    pub(super) fn list_services(&mut self) -> Arc<[Arc<Service>]> {
        let services = &self.services;
        Arc::clone(self.listed_services.get_or_insert_with(|| services.values().cloned().collect()))
    }
}

impl PodEntry {
    pub(super) fn is(&self, record: &PodRecord) -> bool {
        let Workload { enrollment, receives_hbone, .. } = *self.workload;
        self.labels == record.labels
            && *self.workload == Workload { enrollment, receives_hbone, ..record.workload.clone() }
    }

    fn relabel(&mut self, namespace: NamespaceLabels, builder: &mut SnapshotBuilder) -> bool {
        let enrollment = self.labels.enrollment(namespace);
        let receives_hbone = self.labels.receives_hbone(enrollment);
        if (self.workload.enrollment, self.workload.receives_hbone) == (enrollment, receives_hbone) {
            return false;
        }
        let workload = Arc::new(Workload { enrollment, receives_hbone, ..(*self.workload).clone() });
        builder.replace_workload(Some(&self.workload), Some(&workload));
        self.workload = workload;
        true
    }
}

/// Replaces a shared value where the new one differs. Returns the old one, where it did.
fn replace<T: PartialEq>(shared: &mut Arc<T>, new: T) -> Option<Arc<T>> {
    (**shared != new).then(|| mem::replace(shared, Arc::new(new)))
}
