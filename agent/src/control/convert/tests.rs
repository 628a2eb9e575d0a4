//! Kubernetes objects as the model takes them, and what of them is refused.

use serde_json::{Value, json};

use super::*;
use crate::mesh::{Affinity, Distribution, Enrollment, NetnsRef, NotEnrolled, TargetPort, Workload};

fn convert_as(object: Value, readiness: Readiness) -> Result<Content, Invalid> {
    let settings = Settings {
        trust_domain: "cluster.local".parse().unwrap(),
        root_namespace: "culvert-system".to_owned(),
        readiness,
    };
    let object = match object["kind"].as_str().unwrap() {
        "Namespace" => Object::Namespace(serde_json::from_value(object).unwrap()),
        "Pod" => Object::Pod(serde_json::from_value(object).unwrap()),
        "Service" => Object::Service(serde_json::from_value(object).unwrap()),
        _ => Object::EndpointSlice(serde_json::from_value(object).unwrap()),
    };
    Record::new(&object, &settings).map(|record| record.content)
}

fn convert(object: Value) -> Result<Content, Invalid> {
    convert_as(object, Readiness::Enrollment)
}

/// An object of `kind` called `shop/web`, with more fields.
fn object(kind: &str, more: Value) -> Value {
    let mut object = json!({"kind": kind, "metadata": {"name": "web", "namespace": "shop"}});
    merge(&mut object, more);
    object
}

fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            more.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, more) => *into = more,
    }
}

fn pod(more: Value) -> Workload {
    match convert(object("Pod", more)) {
        Ok(Content::Pod(Some(pod))) => pod.workload,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_static_pod_is_known_by_the_kubelets_hash_and_by_nothing_that_another_pod_could_be_called() {
    let hash = |value: &str| {
        let mirror = json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": value}}});
        pod(mirror).kubelet_uid.map(|hash| hash.to_string())
    };
    assert_eq!(hash("0123456789abcdef0123456789abcdef").as_deref(), Some("0123456789abcdef0123456789abcdef"));
    for wrong in ["", "3ad2ad9f-0a8c-4d48-a8ac-9c9e0d6a0b1c", "../x", &"a".repeat(65)] {
        assert_eq!(hash(wrong), None, "{wrong}");
    }
    assert_eq!(pod(json!({})).uid_on_node(), &pod(json!({})).uid);
}

fn service(more: Value) -> mesh::Service {
    match convert(object("Service", more)) {
        Ok(Content::Service(Some(service))) => *service,
        other => panic!("{other:?}"),
    }
}

fn slice(more: Value) -> Slice {
    let label = json!({"addressType": "IPv4", "endpoints": [],
        "metadata": {"labels": {"kubernetes.io/service-name": "web"}}});
    let mut slice = object("EndpointSlice", label);
    merge(&mut slice, more);
    match convert(slice) {
        Ok(Content::Slice(Some(slice))) => slice,
        other => panic!("{other:?}"),
    }
}

fn addresses(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

#[test]
fn bare_pod_has_its_defaults() {
    let pod = pod(json!({}));
    assert_eq!(&*pod.uid, "shop/web");
    assert_eq!((&*pod.workload, &*pod.app, &*pod.version, &*pod.node), ("web", "web", "latest", ""));
    assert_eq!(pod.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/default");
    assert_eq!(pod.enrollment, Enrollment::Not(NotEnrolled::NoLabel));
    assert!(pod.addresses.is_empty() && pod.ports.is_empty() && !pod.terminating && pod.netns.is_none());
}

#[test]
fn namespace_defaults_to_default() {
    let object = json!({"kind": "Pod", "metadata": {"name": "a"}});
    assert!(matches!(convert(object), Ok(Content::Pod(Some(pod))) if &*pod.workload.namespace == "default"));
}

#[test]
fn pod_addresses_are_canonical_and_not_repeated() {
    let status = json!({"status": {"podIP": "10.0.0.1",
        "podIPs": [{"ip": "10.0.0.1"}, {"ip": "::ffff:10.0.0.1"}, {"ip": "fd00:0::1"}]}});
    assert_eq!(addresses(&pod(status).addresses), ["10.0.0.1", "fd00::1"]);
}

#[test]
fn pod_that_is_being_deleted_is_marked() {
    assert!(pod(json!({"metadata": {"deletionTimestamp": "2026-01-02T03:04:05Z"}})).terminating);
}

#[test]
fn workload_is_named_after_what_the_user_deployed() {
    let check = |kind: &str, owner: &str, expected: &str| {
        let owner = json!({"apiVersion": "v1", "uid": "", "kind": kind, "name": owner, "controller": true});
        let labels = json!({"pod-template-hash": "7d4f9c"});
        let pod = pod(json!({"metadata": {"labels": labels, "ownerReferences": [owner]}}));
        assert_eq!(&*pod.workload, expected);
    };
    check("ReplicaSet", "front-7d4f9c", "front");
    check("ReplicaSet", "front-other", "front-other");
    check("ReplicaSet", "7d4f9c", "7d4f9c");
    check("StatefulSet", "db", "db");
    check("Job", "backup-29384756", "backup");
    check("Job", "backup-2", "backup-2");
    check("Job", "-29384756", "-29384756");
}

#[test]
fn canonical_names_come_from_labels() {
    let labels = json!({"app.kubernetes.io/name": "front", "app": "x", "version": "v2"});
    let pod = pod(json!({"metadata": {"labels": labels}}));
    assert_eq!((&*pod.app, &*pod.version), ("front", "v2"));
}

#[test]
fn network_namespace_is_a_path_or_a_process() {
    let netns = |text: &str| {
        convert(object("Pod", json!({"metadata": {"annotations": {"culvert.dev/netns": text}}})))
    };
    let valid = |text| match netns(text) {
        Ok(Content::Pod(Some(pod))) => pod.workload.netns.unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!(valid("/run/netns/a"), NetnsRef::Path("/run/netns/a".into()));
    assert_eq!(valid("4711"), NetnsRef::Pid(4711));
    for text in ["", "netns/a", "0", "-1", "+1", "99999999999", "4711 "] {
        let invalid = netns(text).unwrap_err();
        assert_eq!(invalid.path.to_string(), "metadata.annotations[culvert.dev/netns]", "{text:?}");
    }
}

#[test]
fn named_tcp_ports_of_containers_and_sidecars_are_known() {
    let port = |name: &str, port: u16, protocol: &str| json!({"name": name, "containerPort": port, "protocol": protocol});
    let pod = pod(json!({"spec": {
        "containers": [
            {"ports": [port("http", 80, "TCP"), port("dns", 53, "UDP"), {"containerPort": 1}]},
            {"ports": [port("http", 81, "TCP"), {"name": "admin", "containerPort": 9000}]},
        ],
        "initContainers": [
            {"ports": [port("early", 70, "TCP")]},
            {"ports": [port("late", 71, "TCP")], "restartPolicy": "Always"},
        ],
    }}));
    let ports: Vec<_> = pod.ports.iter().map(|port| (&*port.name, port.port)).collect();
    assert_eq!(ports, [("http", 80), ("admin", 9000), ("late", 71)]);
}

#[test]
fn enrolment_follows_labels_and_annotations() {
    use Enrollment::{Enrolled, Not};
    use NotEnrolled::{Agent, HostNetwork, IstioAmbient, NoLabel, OptedOut, Sidecar};
    let check = |namespace: Value, pod: Value, expected: Enrollment| {
        let namespace = object("Namespace", json!({"metadata": {"labels": namespace}}));
        let Ok(Content::Namespace(labels)) = convert(namespace) else { panic!("no namespace") };
        let Ok(Content::Pod(Some(record))) = convert(object("Pod", pod.clone())) else { panic!("no pod") };
        assert_eq!(record.labels.enrollment(labels), expected, "{pod}");
    };
    let labels = |labels: Value| json!({"metadata": {"labels": labels}});
    let on = || json!({"culvert.dev/mesh": "enabled"});
    let off = || json!({"culvert.dev/mesh": "disabled"});
    let ambient = || json!({"culvert.dev/mesh": "enabled", "istio.io/dataplane-mode": "ambient"});
    check(json!({}), json!({}), Not(NoLabel));
    check(off(), json!({}), Not(NoLabel));
    check(on(), json!({}), Enrolled);
    check(on(), labels(off()), Not(OptedOut));
    check(json!({}), labels(off()), Not(OptedOut));
    check(off(), labels(on()), Enrolled);
    check(json!({}), labels(on()), Enrolled);
    check(on(), labels(ambient()), Not(IstioAmbient));
    check(ambient(), labels(on()), Not(IstioAmbient));
    check(ambient(), labels(json!({"istio.io/dataplane-mode": "none"})), Enrolled);
    check(on(), json!({"spec": {"hostNetwork": true}}), Not(HostNetwork));
    for annotation in ["sidecar.istio.io/status", "linkerd.io/proxy-version"] {
        check(on(), json!({"metadata": {"annotations": {annotation: "x"}}}), Not(Sidecar));
    }
    let agent = json!({"app.kubernetes.io/name": "culvert", "culvert.dev/mesh": "enabled"});
    check(on(), labels(agent.clone()), Enrolled);
    check(on(), json!({"metadata": {"namespace": "culvert-system", "labels": agent}}), Not(Agent));
}

#[test]
fn readiness_is_the_annotation_or_without_a_cluster_the_enrolment() {
    let check = |pod: Value, expected: [bool; 2]| {
        let receives = [Readiness::Annotation, Readiness::Enrollment].map(|readiness| {
            match convert_as(object("Pod", pod.clone()), readiness) {
                Ok(Content::Pod(Some(pod))) => pod.workload.receives_hbone,
                other => panic!("{other:?}"),
            }
        });
        assert_eq!(receives, expected, "{pod}");
    };
    let annotated = |key: &str, value: &str| json!({"metadata": {"annotations": {key: value}}});
    check(json!({}), [false, false]);
    check(json!({"metadata": {"labels": {"culvert.dev/mesh": "enabled"}}}), [false, true]);
    check(annotated("culvert.dev/enrolled", "true"), [true, true]);
    check(annotated("culvert.dev/enrolled", "false"), [false, false]);
    check(annotated("ambient.istio.io/redirection", "enabled"), [true, true]);
    let mut host = annotated("ambient.istio.io/redirection", "enabled");
    merge(&mut host, json!({"spec": {"hostNetwork": true}}));
    check(host, [false, false]);
}

#[test]
fn service_has_its_addresses_by_their_kind() {
    let service = service(json!({
        "spec": {"clusterIP": "10.1.0.1", "clusterIPs": ["10.1.0.1", "fd01::1"], "externalIPs": ["192.0.2.1"]},
        "status": {"loadBalancer": {"ingress": [
            {"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}, {"hostname": "lb.example"}, {"ip": "192.0.2.3", "ipMode": "Proxy"},
        ]}},
    }));
    assert_eq!(addresses(&service.addresses), ["10.1.0.1", "fd01::1"]);
    assert_eq!(addresses(&service.external_addresses), ["192.0.2.1", "192.0.2.2"]);
}

#[test]
fn headless_service_has_no_address_and_an_external_name_is_no_service() {
    let headless = service(json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}}));
    assert!(headless.addresses.is_empty() && headless.external_addresses.is_empty());
    let external = object("Service", json!({"spec": {"type": "ExternalName", "externalName": "a.example"}}));
    assert_eq!(convert(external), Ok(Content::Service(None)));
}

#[test]
fn service_ports_are_the_tcp_ones() {
    let service = service(json!({"spec": {"ports": [
        {"port": 80}, {"port": 81, "targetPort": 8081}, {"name": "n", "port": 82, "targetPort": "http", "protocol": "TCP"},
        {"port": 53, "protocol": "UDP"}, {"port": 83, "targetPort": 0},
    ]}}));
    let ports: Vec<_> = service.ports.iter().map(|port| (port.port, port.target.clone())).collect();
    let number = TargetPort::Number;
    let expected =
        [(80, number(80)), (81, number(8081)), (82, TargetPort::Name("http".into())), (83, number(83))];
    assert_eq!(ports, expected);
}

#[test]
fn service_options_are_read() {
    let plain = service(json!({}));
    assert_eq!((plain.affinity, plain.distribution), (Affinity::None, Distribution::Any));
    assert!(!plain.local_only && !plain.publish_not_ready);
    let (zone, node) = (Distribution::PreferSameZone, Distribution::PreferSameNode);
    for (distribution, expected) in
        [("PreferClose", zone), ("PreferSameZone", zone), ("PreferSameNode", node)]
    {
        let service =
            service(json!({"spec": {"sessionAffinity": "ClientIP", "trafficDistribution": distribution,
            "internalTrafficPolicy": "Local", "publishNotReadyAddresses": true}}));
        assert_eq!((service.affinity, service.distribution), (Affinity::ClientIp, expected));
        assert!(service.local_only && service.publish_not_ready);
    }
}

#[test]
fn endpoints_are_read() {
    let slice = slice(json!({
        "ports": [{"name": "http", "port": 80}, {"port": null}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        "endpoints": [
            {"addresses": ["10.0.0.1", "10.0.0.9"], "nodeName": "node-a", "targetRef": {"kind": "Pod", "name": "a"}},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false}, "targetRef": {"kind": "Node", "name": "b"}},
            {"addresses": []},
        ],
    }));
    let [first, second] = slice.endpoints.as_slice() else { panic!("{slice:?}") };
    assert_eq!((addresses(&[first.address]), first.ready), (vec!["10.0.0.1".to_owned()], true));
    assert_eq!(first.node.as_deref(), Some("node-a"));
    let pod = first.pod.as_ref().unwrap();
    assert_eq!((&*pod.namespace, &*pod.name), ("shop", "a"));
    assert_eq!((second.ready, &second.pod, &second.node), (false, &None, &None));
    let ports: Vec<_> = first.ports.iter().map(|port| (&*port.name, port.port)).collect();
    assert_eq!(ports, [("http", Some(80)), ("", None)]);
}

#[test]
fn slice_of_no_service_or_of_names_means_nothing() {
    let none =
        object("EndpointSlice", json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}]}));
    assert_eq!(convert(none), Ok(Content::Slice(None)));
    let names = object(
        "EndpointSlice",
        json!({"addressType": "FQDN", "endpoints": [{"addresses": ["a.example"]}],
            "metadata": {"labels": {"kubernetes.io/service-name": "web"}}}),
    );
    assert_eq!(convert(names), Ok(Content::Slice(None)));
}

#[test]
fn what_cannot_be_is_refused_with_its_field() {
    let check = |kind: &str, more: Value, path: &str| {
        let invalid = convert(object(kind, more)).unwrap_err();
        assert_eq!(invalid.path.to_string(), path, "{invalid}");
    };
    check("Pod", json!({"metadata": {"name": ""}}), "metadata.name");
    check("Pod", json!({"metadata": {"namespace": "A B"}}), "metadata.namespace");
    check(
        "Pod",
        json!({"metadata": {"labels": {"culvert.dev/mesh": "on"}}}),
        "metadata.labels[culvert.dev/mesh]",
    );
    check("Pod", json!({"spec": {"serviceAccountName": "a/b"}}), "spec.serviceAccountName");
    for address in ["x", "127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1", "::ffff:127.0.0.1"] {
        check("Pod", json!({"status": {"podIP": address}}), "status.podIP");
        check(
            "Pod",
            json!({"status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": address}]}}),
            "status.podIPs[1].ip",
        );
        check("Service", json!({"spec": {"clusterIP": address}}), "spec.clusterIP");
        check("Service", json!({"spec": {"externalIPs": [address]}}), "spec.externalIPs[0]");
    }
    for port in [0, -1, 65536] {
        let ports = json!([{"containerPort": port}]);
        let path = "spec.containers[0].ports[0].containerPort";
        check("Pod", json!({"spec": {"containers": [{"ports": ports}]}}), path);
        check("Service", json!({"spec": {"ports": [{"port": port}]}}), "spec.ports[0].port");
    }
    check("Service", json!({"spec": {"ports": [{"port": 1, "targetPort": -1}]}}), "spec.ports[0].targetPort");
    let labels = json!({"labels": {"kubernetes.io/service-name": "web"}});
    let slice = |more: Value, path| {
        let mut slice = json!({"addressType": "IPv4", "endpoints": [], "metadata": labels});
        merge(&mut slice, more);
        check("EndpointSlice", slice, path);
    };
    slice(json!({"endpoints": [{"addresses": ["127.0.0.1"]}]}), "endpoints[0].addresses[0]");
    slice(json!({"ports": [{"port": 70000}]}), "ports[0].port");
}

#[test]
fn enrolment_can_be_asked_of_a_pod_and_its_namespace_alone() {
    let settings = Settings {
        trust_domain: "cluster.local".parse().unwrap(),
        root_namespace: "culvert-system".to_owned(),
        readiness: Readiness::Annotation,
    };
    let check = |pod: Value, namespace: Value| {
        let pod = serde_json::from_value(object("Pod", pod)).unwrap();
        let namespace = json!({"metadata": {"name": "shop", "labels": namespace}});
        enrollment_of(&pod, &serde_json::from_value(namespace).unwrap(), &settings)
    };
    let enabled = || json!({"culvert.dev/mesh": "enabled"});
    assert_eq!(check(json!({}), enabled()), Ok(Enrollment::Enrolled));
    assert_eq!(check(json!({}), json!({})), Ok(Enrollment::Not(NotEnrolled::NoLabel)));
    let host = json!({"spec": {"hostNetwork": true, "containers": []}});
    assert_eq!(check(host, enabled()), Ok(Enrollment::Not(NotEnrolled::HostNetwork)));
    let out = json!({"metadata": {"labels": {"culvert.dev/mesh": "disabled"}}});
    assert_eq!(check(out, enabled()), Ok(Enrollment::Not(NotEnrolled::OptedOut)));
    let error = check(json!({}), json!({"culvert.dev/mesh": "yes"})).unwrap_err();
    assert!(error.to_string().contains("yes"), "{error}");
}
