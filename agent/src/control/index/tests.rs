//! What records change, in whatever order they come.

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
    let all = [enabled(), pod("a", "10.0.0.1"), service("web", "10.1.0.1"), slice("s", "web", &["10.0.0.1"])];
    for record in &all {
        index.apply(record);
    }
    for record in &all {
        index.delete(record.key());
        assert!(!index.delete(record.key()), "{}", record.key());
    }
    assert!(index.namespaces.is_empty(), "{index:?}");
}
