//! The cost of one route: `cargo bench -p bench --bench route`. To one pod over and over it is to be the same in a mesh of
//! any size; to all of them in turn it grows with what is not in the processor's cache.

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use culvert::mesh::{
    Affinity, Distribution, Endpoint, Identity, Labels, OrigDst, Route, Service, ServicePort, Snapshot,
    TargetPort, Workload,
};

const SIZES: [u32; 3] = [100, 10_000, 100_000];
const PODS_PER_SERVICE: u32 = 10;
const PODS_PER_NODE: u32 = 50;
/// Pods are not asked for in the order in which they are in memory. A prime that divides none of the sizes: each has its turn.
const STEP: u32 = 7919;

type Address = fn(u32) -> IpAddr;
/// What is asked for: the address for a pod, and how far it is from one pod to the next.
const QUESTIONS: [(&str, Address, u32); 3] = [
    ("route to one pod", pod_address, 0),
    ("route to each pod in turn", pod_address, STEP),
    ("route to each service in turn", service_address, STEP),
];

fn routes(criterion: &mut Criterion) {
    let meshes = SIZES.map(|pods| (pods, mesh(pods)));
    for (name, address, step) in QUESTIONS {
        let mut group = criterion.benchmark_group(name);
        for (pods, mesh) in &meshes {
            let source = &mesh.workloads()[0];
            let route = |pod| {
                let target = OrigDst::new(SocketAddr::new(address(pod), PORT));
                mesh.route(source, source.addresses[0], target).expect("a route")
            };
            for pod in [0, pods / 2, pods - 1] {
                let Route::Hbone { identity: found, .. } = route(pod) else { panic!("a route by no tunnel") };
                assert_eq!(found, identity(pod), "the identity at {}", address(pod));
            }
            let mut pod = 0;
            group.bench_function(BenchmarkId::from_parameter(pods), |bencher| {
                bencher.iter(|| {
                    pod = (pod + step) % pods;
                    route(black_box(pod))
                });
            });
        }
        group.finish();
    }
}

fn mesh(pods: u32) -> Snapshot {
    let workloads = (0..pods).map(|number| Arc::new(pod(number))).collect();
    let services = (0..pods / PODS_PER_SERVICE).map(|number| Arc::new(service(number))).collect();
    Snapshot::new(workloads, services)
}

fn pod(number: u32) -> Workload {
    Workload {
        uid: format!("3f1c2a9e-5b7d-4c1e-9f0a-{number:012}").into(),
        name: format!("web-{number}").into(),
        node: format!("node-{}", number / PODS_PER_NODE).into(),
        addresses: vec![pod_address(number)],
        ..Workload::unknown("shop".into(), Arc::default(), identity(number))
    }
}

/// The pods of a service have one identity, and no others have it.
fn identity(pod: u32) -> Identity {
    let domain = "cluster.local".parse().expect("a trust domain");
    Identity::new(domain, "shop", &format!("web-{}", pod / PODS_PER_SERVICE)).expect("an identity")
}

fn service(number: u32) -> Service {
    let first = number * PODS_PER_SERVICE;
    let endpoint = |pod| Endpoint {
        address: pod_address(pod),
        ready: true,
        node: None,
        pod: None,
        ports: Arc::default(),
    };
    Service {
        namespace: "shop".into(),
        name: format!("web-{number}").into(),
        addresses: vec![service_address(first)],
        external_addresses: Vec::new(),
        ports: vec![ServicePort { name: "".into(), port: PORT, target: TargetPort::Number(PORT) }],
        selector: Labels::default(),
        endpoints: (first..first + PODS_PER_SERVICE).map(endpoint).collect(),
        affinity: Affinity::None,
        distribution: Distribution::Any,
        local_only: false,
        publish_not_ready: false,
    }
}

fn pod_address(pod: u32) -> IpAddr {
    Ipv4Addr::from_bits(u32::from_be_bytes([10, 0, 0, 0]) + pod + 1).into()
}

/// The address of the service that a pod stands behind.
fn service_address(pod: u32) -> IpAddr {
    Ipv4Addr::from_bits(u32::from_be_bytes([172, 16, 0, 0]) + pod / PODS_PER_SERVICE + 1).into()
}

const PORT: u16 = 8080;

criterion_group!(benches, routes);
criterion_main!(benches);
