//! What a mesh of many pods costs an agent: memory, the first list, a change, what the kernel is to know, and changes that
//! never end. It prints a
//! table, a line for each size; each is measured in a process of its own, so that none pays for another's memory. Times
//! are the processor's.

use std::{
    env, fs, hint, process,
    thread::sleep,
    time::{Duration, Instant},
};

use culvert::control::{Index, Object, Readiness, Record, Settings, pause};
use serde_json::{Value, json};

const SIZES: [usize; 3] = [1_000, 10_000, 100_000];
/// Changes a second, and for how long.
const RATE: usize = 1_000;
const SECONDS: usize = 10;
const PODS_PER_SERVICE: usize = 10;
const PODS_PER_NODE: usize = 50;
const PODS_PER_NAMESPACE: usize = 200;

fn main() {
    if let Some(pods) = env::var(SIZE).ok().and_then(|size| size.parse().ok()) {
        println!("{}", measure(pods));
        return;
    }
    println!(
        "| pods | memory, MiB | first list, ms | a change, ms | destinations, ms | CPU at {RATE} changes/s | snapshots/s |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let program = env::current_exe().expect("this program's path");
    for size in SIZES {
        let status = process::Command::new(&program).env(SIZE, size.to_string()).status();
        assert!(status.expect("this program again").success());
    }
}

fn measure(pods: usize) -> String {
    let settings = Settings {
        trust_domain: "cluster.local".parse().expect("a trust domain"),
        root_namespace: "culvert-system".to_owned(),
        readiness: Readiness::Annotation,
    };
    let empty = resident();
    let mut index = Index::new(&settings.root_namespace);
    let mut listing = Duration::ZERO;
    for object in objects(pods) {
        let begun = processor_time();
        let record = Record::new(&object, &settings).expect("a valid object");
        drop(object);
        index.apply(&record);
        listing += processor_time() - begun;
    }
    let begun = processor_time();
    let mut snapshot = index.snapshot();
    listing += processor_time() - begun;
    let changed: Vec<_> = (0..CHANGES as usize)
        .map(|change| Record::new(&pod(change * 7919 % pods, 1), &settings).expect("a valid object"))
        .collect();
    let begun = processor_time();
    for record in &changed {
        assert!(index.apply(record), "a change");
        snapshot = hint::black_box(index.snapshot());
    }
    let cost = (processor_time() - begun) / CHANGES;
    let begun = processor_time();
    for _ in 0..READINGS {
        drop(hint::black_box(snapshot.destinations("node-0")));
    }
    let reading = (processor_time() - begun) / READINGS;
    assert_eq!(snapshot.workloads().len(), pods);
    let memory = resident().saturating_sub(empty);

    let (before, begun) = (processor_time(), Instant::now());
    let (mut done, mut built) = (0, 0);
    while done < RATE * SECONDS {
        let due = (begun.elapsed().as_secs_f64() * RATE as f64) as usize;
        for change in done..due.min(RATE * SECONDS) {
            // Its readiness changes, as a rollout has it.
            let object = pod(change * 7 % pods, change);
            index.apply(&Record::new(&object, &settings).expect("a valid object"));
        }
        done = due;
        let building = Instant::now();
        snapshot = hint::black_box(index.snapshot());
        built += 1;
        sleep(pause(building.elapsed(), pods));
    }
    let load = (processor_time() - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    drop(snapshot);
    let per_second = f64::from(built) / begun.elapsed().as_secs_f64();
    let [listing, cost, reading] = [listing, cost, reading].map(|time| time.as_secs_f64() * 1e3);
    let (memory, load) = (memory as f64 / f64::from(1 << 20), load * 100.0);
    format!(
        "| {pods} | {memory:.1} | {listing:.0} | {cost:.2} | {reading:.1} | {load:.0} % | {per_second:.0} |"
    )
}

/// A cluster, an object at a time, as the API server's watch has them.
fn objects(pods: usize) -> impl Iterator<Item = Object> {
    let namespaces = (0..pods.div_ceil(PODS_PER_NAMESPACE)).map(namespace);
    let services = (0..pods.div_ceil(PODS_PER_SERVICE)).flat_map(|number| [service(number), slice(number)]);
    namespaces.chain((0..pods).map(|number| pod(number, 0))).chain(services)
}

fn namespace(number: usize) -> Object {
    let metadata = json!({"name": format!("team-{number}"), "labels": {"culvert.dev/mesh": "enabled"}});
    Object::Namespace(Box::new(read(json!({"metadata": metadata}))))
}

fn pod(number: usize, version: usize) -> Object {
    let service = number / PODS_PER_SERVICE;
    let metadata = json!({
        "name": format!("web-{service}-7d4f9c6b5-{number:05}"), "namespace": namespace_of(number),
        "uid": format!("3f1c2a9e-5b7d-4c1e-9f0a-{number:012}"),
        "labels": {"app": format!("web-{service}"), "pod-template-hash": "7d4f9c6b5",
            "app.kubernetes.io/version": format!("v{}", version % 2)},
        "annotations": {"culvert.dev/enrolled": "true"},
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true, "uid": "x",
            "name": format!("web-{service}-7d4f9c6b5")}],
    });
    let spec = json!({"nodeName": format!("node-{}", number / PODS_PER_NODE), "serviceAccountName": format!("web-{service}"),
        "containers": [{"name": "web", "ports": [{"containerPort": 8080, "name": "http"}]}]});
    let address = address(10, number);
    let status = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]});
    Object::Pod(Box::new(read(json!({"metadata": metadata, "spec": spec, "status": status}))))
}

fn service(number: usize) -> Object {
    let metadata =
        json!({"name": format!("web-{number}"), "namespace": namespace_of(number * PODS_PER_SERVICE)});
    let ports = json!([{"name": "http", "port": 80, "targetPort": "http"}]);
    let spec = json!({"clusterIP": address(172, number), "ports": ports, "selector": {"app": format!("web-{number}")}});
    Object::Service(Box::new(read(json!({"metadata": metadata, "spec": spec}))))
}

fn slice(number: usize) -> Object {
    let first = number * PODS_PER_SERVICE;
    let metadata = json!({"name": format!("web-{number}-abcde"), "namespace": namespace_of(first),
        "labels": {"kubernetes.io/service-name": format!("web-{number}")}});
    let endpoints = (first..first + PODS_PER_SERVICE).map(|pod| {
        let name = format!("web-{number}-7d4f9c6b5-{pod:05}");
        let target = json!({"kind": "Pod", "name": name, "namespace": namespace_of(pod)});
        json!({"addresses": [address(10, pod)], "conditions": {"ready": true}, "targetRef": target,
            "nodeName": format!("node-{}", pod / PODS_PER_NODE)})
    });
    let endpoints: Vec<_> = endpoints.collect();
    let ports = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
    let slice = json!({"metadata": metadata, "addressType": "IPv4", "endpoints": endpoints, "ports": ports});
    Object::EndpointSlice(Box::new(read(slice)))
}

fn namespace_of(pod: usize) -> String {
    format!("team-{}", pod / PODS_PER_NAMESPACE)
}

fn address(net: u8, number: usize) -> String {
    format!("{net}.{}.{}.{}", number / 62_500, number / 250 % 250, number % 250 + 1)
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object of Kubernetes")
}

/// The memory that the process has, in bytes.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

/// The processor time that this thread, the only one, has had.
fn processor_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/schedstat").expect("/proc/self/schedstat");
    let nanoseconds = stat.split_whitespace().next().and_then(|text| text.parse().ok()).expect("a number");
    Duration::from_nanos(nanoseconds)
}

const SIZE: &str = "CULVERT_BENCH_PODS";
/// So many that the kernel's account of a thread's time, which is as exact as its tick, does not matter.
const CHANGES: u32 = 500;
const READINGS: u32 = 100;
