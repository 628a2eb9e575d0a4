//! However the mesh came to be as it is, its snapshot is the same.

use std::collections::BTreeMap;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::*;
use crate::mesh::{Endpoint, Enrollment, NotEnrolled, ServicePort, TargetPort, fixtures};

/// Something that changes: the pod or the service of a number becomes another, or goes.
#[derive(Clone, Debug)]
enum Step {
    Pod(u8, Option<Pod>),
    Service(u8, Option<Shape>),
    Zone(bool),
    /// Somebody takes a snapshot.
    Snapshot,
}

#[derive(Clone, Debug)]
struct Pod {
    addresses: Vec<u8>,
    node: u8,
    host_network: bool,
    terminating: bool,
    receives_hbone: bool,
}

#[derive(Clone, Debug)]
struct Shape {
    address: u8,
    external: Option<u8>,
    /// Addresses, and the pods that they are said to be of.
    endpoints: Vec<(u8, Option<u8>)>,
    near: bool,
}

/// Of few numbers, so that pods and services meet.
fn step(random: &mut StdRng) -> Step {
    match random.random_range(0..10) {
        0..4 => {
            let pod = random.random_bool(0.7).then(|| pod(random));
            Step::Pod(random.random_range(0..4), pod)
        }
        4..7 => {
            let shape = random.random_bool(0.7).then(|| shape(random));
            Step::Service(random.random_range(0..3), shape)
        }
        7 => Step::Zone(random.random()),
        _ => Step::Snapshot,
    }
}

fn pod(random: &mut StdRng) -> Pod {
    let host_network = random.random_bool(0.3);
    let addresses = (0..6).filter(|_| !host_network && random.random_bool(0.25)).collect();
    Pod {
        addresses,
        node: random.random_range(0..2),
        host_network,
        terminating: random.random_bool(0.3),
        receives_hbone: random.random(),
    }
}

fn shape(random: &mut StdRng) -> Shape {
    let endpoint = |_| {
        let pod = random.random_bool(0.5).then(|| random.random_range(0..4));
        (random.random_range(0..6), pod)
    };
    Shape {
        endpoints: (0..3).map(endpoint).collect(),
        address: random.random_range(0..4),
        external: random.random_bool(0.5).then(|| random.random_range(0..8)),
        near: random.random(),
    }
}

fn workload(number: u8, pod: &Pod) -> Arc<Workload> {
    let Pod { addresses, node, host_network, terminating, receives_hbone } = pod;
    let addresses: Vec<_> = addresses.iter().map(|address| format!("10.0.0.{address}")).collect();
    let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
    let enrollment = match host_network {
        true => Enrollment::Not(NotEnrolled::HostNetwork),
        false => Enrollment::Enrolled,
    };
    Arc::new(Workload {
        node: format!("node-{node}").into(),
        enrollment,
        terminating: *terminating,
        receives_hbone: *receives_hbone,
        ..fixtures::pod(&format!("pod-{number}"), &addresses)
    })
}

fn service(number: u8, shape: &Shape) -> Arc<Service> {
    let Shape { address, external, endpoints, near } = shape;
    let endpoint = |&(address, pod): &(u8, Option<u8>)| Endpoint {
        pod: pod.map(|pod| PodName { namespace: "shop".into(), name: format!("pod-{pod}").into() }),
        ..fixtures::endpoint(&format!("10.0.0.{address}"))
    };
    Arc::new(Service {
        name: format!("service-{number}").into(),
        external_addresses: external.iter().map(|last| fixtures::ip(&format!("10.1.0.{last}"))).collect(),
        endpoints: endpoints.iter().map(endpoint).collect(),
        distribution: if *near { Distribution::PreferSameZone } else { Distribution::Any },
        ports: vec![ServicePort { name: "".into(), port: 80, target: TargetPort::Number(8080) }],
        ..fixtures::service(&format!("10.1.0.{address}"), &[])
    })
}

fn zones(there: bool) -> Arc<Zones> {
    let zones = there.then(|| (Arc::from("node-0"), Arc::from("zone-a")));
    Arc::new(zones.into_iter().collect())
}

/// All that a snapshot answers by, in an order.
fn show(snapshot: &Snapshot) -> String {
    let Indexes { holders, disputed, owners, named, by_node, zones } = &snapshot.indexes;
    let holders: BTreeMap<_, _> = holders.iter().collect();
    let owners: BTreeMap<_, _> = owners.iter().collect();
    let named: BTreeMap<_, _> = named.iter().collect();
    let by_node: BTreeMap<_, _> = by_node.iter().collect();
    format!("{holders:#?}{disputed:#?}{owners:#?}{named:#?}{by_node:#?}{zones:#?}")
}

#[test]
fn a_snapshot_of_changes_is_the_one_of_what_they_come_to() {
    for seed in 0..SEEDS {
        let mut random = StdRng::seed_from_u64(seed);
        let mut builder = SnapshotBuilder::default();
        let mut pods: BTreeMap<u8, Arc<Workload>> = BTreeMap::new();
        let mut services: BTreeMap<u8, Arc<Service>> = BTreeMap::new();
        let mut known_zones = zones(false);
        let mut taken: Vec<(Snapshot, String)> = Vec::new();
        let snapshot = |builder: &mut SnapshotBuilder| builder.snapshot(Default::default(), Arc::default());
        for _ in 0..STEPS {
            match step(&mut random) {
                Step::Pod(number, pod) => {
                    let new = pod.map(|pod| workload(number, &pod));
                    let old = pods.remove(&number);
                    builder.replace_workload(old.as_ref(), new.as_ref());
                    pods.extend(new.map(|new| (number, new)));
                }
                Step::Service(number, Some(shape)) => {
                    let new = service(number, &shape);
                    builder.put_service(&new);
                    services.insert(number, new);
                }
                Step::Service(number, None) => {
                    let gone = services.remove(&number);
                    gone.iter().for_each(|gone| builder.remove_service(gone));
                }
                Step::Zone(there) => {
                    known_zones = zones(there);
                    builder.set_zones(&known_zones);
                }
                Step::Snapshot => {
                    let made = snapshot(&mut builder);
                    let shown = show(&made);
                    taken.push((made, shown));
                }
            }
        }
        let (pods, services) = (pods.into_values().collect(), services.into_values().collect());
        let fresh = Snapshot::in_zones(pods, services, &known_zones);
        assert_eq!(show(&snapshot(&mut builder)), show(&fresh), "seed {seed}");
        for (earlier, shown) in &taken {
            assert_eq!(&show(earlier), shown, "a snapshot never changes (seed {seed})");
        }
    }
}

#[test]
fn what_is_taken_away_leaves_nothing() {
    let mut builder = SnapshotBuilder::default();
    let pod = |name: &str| Arc::new(fixtures::pod(name, &["10.0.0.1"]));
    let (one, other) = (pod("one"), pod("other"));
    let service = Arc::new(fixtures::service("10.1.0.1", &["10.0.0.1", "10.0.0.2"]));
    builder.replace_workload(None, Some(&one));
    builder.replace_workload(None, Some(&other));
    builder.put_service(&service);
    assert_eq!(builder.snapshot(Default::default(), Arc::default()).conflicts().len(), 1);
    builder.replace_workload(Some(&one), None);
    builder.remove_service(&service);
    builder.replace_workload(Some(&other), None);
    let empty = show(&Snapshot::default());
    assert_eq!(show(&builder.snapshot(Default::default(), Arc::default())), empty);
    let SnapshotBuilder { rivals, host_network, services, behind, missed, claims, .. } = builder;
    assert!(rivals.is_empty() && host_network.is_empty() && services.is_empty());
    assert!(behind.is_empty() && missed.is_empty() && claims.is_empty());
}

/// Several hundred meshes of a few pods: a mistake in any of the links shows in more than one.
const SEEDS: u64 = 300;
const STEPS: usize = 40;
