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
use crate::mesh::{Endpoint, Service, Snapshot, Workload};

/// The objects that are in force. Mutable, synchronous, owned by one source.
#[derive(Debug, Default)]
pub struct Index {
    // Ordered, so that equal objects make equal snapshots, in the order that people expect to read.
    namespaces: BTreeMap<String, NamespaceIndex>,
    policies: Policies,
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
        let namespace = if *kind == Kind::Namespace { name } else { namespace };
        let Some(index) = self.namespaces.get_mut(namespace) else { return false };
        let changed = match kind {
            Kind::Namespace => index.relabel(NamespaceLabels::default()),
            Kind::Pod => index.pods.remove(name).is_some(),
            Kind::Service => index.services.remove(name).is_some(),
            Kind::EndpointSlice => index.delete_slice(name),
            Kind::PeerAuthentication | Kind::AuthorizationPolicy => false,
        };
        if index.is_empty() {
            self.namespaces.remove(namespace);
        }
        changed
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
        Snapshot::new(workloads, services).with_policies(policies)
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
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        control::{Object, Readiness, Settings},
        mesh::{Enrollment, NotEnrolled, fixtures::ip},
    };

    fn settings() -> Settings {
        Settings {
            trust_domain: "cluster.local".parse().unwrap(),
            root_namespace: "culvert-system".to_owned(),
            readiness: Readiness::Enrollment,
        }
    }

    fn record(value: Value) -> Record {
        let object = match value["kind"].as_str().unwrap() {
            "Namespace" => Object::Namespace(serde_json::from_value(value).unwrap()),
            "Pod" => Object::Pod(serde_json::from_value(value).unwrap()),
            "Service" => Object::Service(serde_json::from_value(value).unwrap()),
            _ => Object::EndpointSlice(serde_json::from_value(value).unwrap()),
        };
        Record::new(&object, &settings()).unwrap()
    }

    fn namespace(labels: &Value) -> Record {
        record(json!({"kind": "Namespace", "metadata": {"name": "shop", "labels": labels}}))
    }

    fn pod(name: &str, address: &str) -> Record {
        pod_with(name, address, &json!({}), &json!({}))
    }

    fn pod_with(name: &str, address: &str, spec: &Value, status: &Value) -> Record {
        let mut pod = json!({"kind": "Pod", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"nodeName": "node-a"}, "status": {"podIP": address}});
        pod["spec"].as_object_mut().unwrap().extend(spec.as_object().cloned().unwrap());
        pod["status"].as_object_mut().unwrap().extend(status.as_object().cloned().unwrap());
        record(pod)
    }

    fn service(name: &str, address: &str) -> Record {
        record(json!({"kind": "Service", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"clusterIP": address, "ports": [{"port": 80}]}}))
    }

    fn slice(name: &str, service: &str, addresses: &[&str]) -> Record {
        let endpoints: Vec<_> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
        record(json!({"kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
            "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}}}))
    }

    fn enabled() -> Record {
        namespace(&json!({"culvert.dev/mesh": "enabled"}))
    }

    /// Who has an address: the pod's name, `conflict`, or `-`.
    fn holder(index: &mut Index, address: &str) -> String {
        let snapshot = index.snapshot();
        if snapshot.conflicts().iter().any(|conflict| conflict.address == ip(address)) {
            return "conflict".to_owned();
        }
        snapshot.workload(ip(address)).map_or_else(|| "-".to_owned(), |pod| pod.name.to_string())
    }

    fn endpoints(index: &mut Index) -> Vec<String> {
        let snapshot = index.snapshot();
        let services = snapshot.services().iter();
        let show = |service: &Arc<Service>| {
            let addresses: Vec<_> = service.endpoints.iter().map(|end| end.address.to_string()).collect();
            format!("{} {}", service.name, addresses.join(" "))
        };
        services.map(show).collect()
    }

    #[test]
    fn pods_that_ran_to_their_end_hold_no_address() {
        for phase in ["Succeeded", "Failed"] {
            let mut index = Index::new("culvert-system");
            assert!(index.apply(&pod("old", "10.0.0.1")));
            let status = json!({"phase": phase});
            assert!(index.apply(&pod_with("old", "10.0.0.1", &json!({}), &status)));
            assert_eq!(holder(&mut index, "10.0.0.1"), "-");
            assert!(!index.apply(&pod_with("old", "10.0.0.1", &json!({}), &status)), "{phase}");
            index.apply(&pod("new", "10.0.0.1"));
            assert_eq!(holder(&mut index, "10.0.0.1"), "new");
        }
    }

    #[test]
    fn host_network_pods_never_claim_the_nodes_address() {
        let mut index = Index::new("culvert-system");
        index.apply(&enabled());
        let host = json!({"hostNetwork": true});
        index.apply(&pod_with("a", "192.0.2.1", &host, &json!({"podIPs": [{"ip": "192.0.2.1"}]})));
        index.apply(&pod_with("b", "192.0.2.1", &host, &json!({})));
        assert_eq!(holder(&mut index, "192.0.2.1"), "-");
        let snapshot = index.snapshot();
        for pod in snapshot.workloads() {
            assert_eq!(pod.enrollment, Enrollment::Not(NotEnrolled::HostNetwork));
            assert!(!pod.receives_hbone);
        }
    }

    #[test]
    fn two_live_pods_with_one_address_are_in_conflict_until_one_goes() {
        let mut index = Index::new("culvert-system");
        index.apply(&pod("a", "10.0.0.1"));
        let b = pod("b", "10.0.0.1");
        index.apply(&b);
        assert_eq!(holder(&mut index, "10.0.0.1"), "conflict");
        index.delete(b.key());
        assert_eq!(holder(&mut index, "10.0.0.1"), "a");
    }

    #[test]
    fn address_that_moves_carries_nothing_of_the_old_pod() {
        let mut index = Index::new("culvert-system");
        let old = pod_with("old", "10.0.0.1", &json!({"serviceAccountName": "old"}), &json!({}));
        index.apply(&old);
        index.delete(old.key());
        index.apply(&pod_with("new", "10.0.0.1", &json!({"serviceAccountName": "new"}), &json!({})));
        let snapshot = index.snapshot();
        let holder = snapshot.workload(ip("10.0.0.1")).unwrap();
        assert_eq!((&*holder.name, holder.identity.service_account()), ("new", "new"));
    }

    #[test]
    fn namespace_label_changes_its_pods_and_no_others() {
        let mut index = Index::new("culvert-system");
        index.apply(&pod("a", "10.0.0.1"));
        let enrollment = |index: &mut Index| {
            let snapshot = index.snapshot();
            let pod = &snapshot.workloads()[0];
            assert_eq!(pod.receives_hbone, pod.enrollment == Enrollment::Enrolled);
            pod.enrollment
        };
        let no_label = Enrollment::Not(NotEnrolled::NoLabel);
        assert_eq!(enrollment(&mut index), no_label);
        assert!(index.apply(&enabled()));
        assert!(!index.apply(&enabled()));
        assert_eq!(enrollment(&mut index), Enrollment::Enrolled);
        assert!(index.apply(&namespace(&json!({"istio.io/dataplane-mode": "ambient"}))));
        assert_eq!(enrollment(&mut index), Enrollment::Not(NotEnrolled::IstioAmbient));
        assert!(index.delete(enabled().key()));
        assert_eq!(enrollment(&mut index), no_label);
        index.apply(&enabled());
        index.apply(&pod("a", "10.0.0.2"));
        assert_eq!(enrollment(&mut index), Enrollment::Enrolled);
    }

    #[test]
    fn what_does_not_change_stays_the_same_arc() {
        let mut index = Index::new("culvert-system");
        for record in [pod("a", "10.0.0.1"), pod("b", "10.0.0.2"), service("web", "10.1.0.1")] {
            assert!(index.apply(&record));
        }
        index.apply(&slice("web-1", "web", &["10.0.0.1"]));
        let before = index.snapshot();
        for same in [pod("a", "10.0.0.1"), service("web", "10.1.0.1"), slice("web-1", "web", &["10.0.0.1"])] {
            assert!(!index.apply(&same), "{} did not change", same.key());
        }
        assert!(index.apply(&pod("b", "10.0.0.3")));
        let after = index.snapshot();
        assert!(Arc::ptr_eq(&before.workloads()[0], &after.workloads()[0]));
        assert!(!Arc::ptr_eq(&before.workloads()[1], &after.workloads()[1]));
        assert!(Arc::ptr_eq(&before.services()[0], &after.services()[0]));
    }

    #[test]
    fn slices_join_their_service_whichever_comes_first() {
        let mut index = Index::new("culvert-system");
        assert!(!index.apply(&slice("web-1", "web", &["10.0.0.1"])), "of no service that is known");
        assert!(index.apply(&service("web", "10.1.0.1")));
        assert!(index.apply(&slice("web-2", "web", &["10.0.0.2", "10.0.0.3"])));
        assert_eq!(endpoints(&mut index), ["web 10.0.0.1 10.0.0.2 10.0.0.3"]);
        assert!(index.delete(slice("web-1", "web", &[]).key()));
        assert_eq!(endpoints(&mut index), ["web 10.0.0.2 10.0.0.3"]);
        assert!(index.apply(&service("web", "10.1.0.2")));
        assert_eq!(endpoints(&mut index), ["web 10.0.0.2 10.0.0.3"]);
        assert!(index.delete(service("web", "10.1.0.2").key()));
        assert!(index.apply(&service("web", "10.1.0.2")));
        assert_eq!(endpoints(&mut index), ["web 10.0.0.2 10.0.0.3"]);
    }

    #[test]
    fn slice_that_changes_its_service_leaves_the_old_one() {
        let mut index = Index::new("culvert-system");
        index.apply(&service("a", "10.1.0.1"));
        index.apply(&service("b", "10.1.0.2"));
        index.apply(&slice("s", "a", &["10.0.0.1"]));
        assert!(index.apply(&slice("s", "b", &["10.0.0.1"])));
        assert_eq!(endpoints(&mut index), ["a ", "b 10.0.0.1"]);
    }

    #[test]
    fn deleting_everything_leaves_nothing() {
        let mut index = Index::new("culvert-system");
        let all =
            [enabled(), pod("a", "10.0.0.1"), service("web", "10.1.0.1"), slice("s", "web", &["10.0.0.1"])];
        for record in &all {
            index.apply(record);
        }
        for record in &all {
            index.delete(record.key());
            assert!(!index.delete(record.key()), "{}", record.key());
        }
        assert!(index.namespaces.is_empty(), "{index:?}");
    }
}
