//! Small workloads and services for unit tests.

use std::{net::IpAddr, sync::Arc};

use super::{
    Affinity, Distribution, Endpoint, Enrollment, Identity, Service, ServicePort, Snapshot, TargetPort,
    Workload,
};

/// A pod of the namespace `shop` on `node-a`, enrolled and ready, with a service account of its own name.
pub(crate) fn pod(name: &str, addresses: &[&str]) -> Workload {
    let name: Arc<str> = name.into();
    Workload {
        uid: format!("shop/{name}").into(),
        kubelet_uid: None,
        namespace: "shop".into(),
        workload: Arc::clone(&name),
        app: Arc::clone(&name),
        version: "latest".into(),
        labels: Arc::default(),
        node: "node-a".into(),
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        host_addresses: Vec::new(),
        identity: Identity::new("cluster.local".parse().unwrap(), "shop", &name).unwrap(),
        enrollment: Enrollment::Enrolled,
        receives_hbone: true,
        marked: None,
        netns: None,
        has_runtime_class: false,
        ports: Vec::new(),
        terminating: false,
        name,
    }
}

/// The service `shop/web` at one cluster address, whose port 80 leads to 8080 of the endpoints.
pub(crate) fn service(address: &str, endpoints: &[&str]) -> Service {
    Service {
        namespace: "shop".into(),
        name: "web".into(),
        addresses: vec![ip(address)],
        external_addresses: Vec::new(),
        ports: vec![ServicePort { name: "".into(), port: 80, target: TargetPort::Number(8080) }],
        selector: super::Labels::default(),
        endpoints: endpoints.iter().map(|address| endpoint(address)).collect(),
        affinity: Affinity::None,
        distribution: Distribution::Any,
        local_only: false,
        publish_not_ready: false,
    }
}

/// A ready endpoint that says no more than its address.
pub(crate) fn endpoint(address: &str) -> Endpoint {
    Endpoint { address: ip(address), ready: true, node: None, pod: None, ports: Arc::default() }
}

pub(crate) fn snapshot(workloads: Vec<Workload>, services: Vec<Service>) -> Snapshot {
    let workloads = workloads.into_iter().map(Arc::new).collect();
    Snapshot::new(workloads, services.into_iter().map(Arc::new).collect())
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
