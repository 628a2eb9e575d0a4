//! What sources say, in whatever order and with whatever gaps, against what they have in the end.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::control::{Object, Readiness, Record, Settings};

fn settings() -> Settings {
    Settings {
        trust_domain: "cluster.local".parse().unwrap(),
        root_namespace: "culvert-system".to_owned(),
        readiness: Readiness::Annotation,
    }
}

fn item(value: Value) -> Item {
    let object = match value["kind"].as_str().unwrap() {
        "Namespace" => Object::Namespace(serde_json::from_value(value).unwrap()),
        "Node" => Object::Node(serde_json::from_value(value).unwrap()),
        "Pod" => Object::Pod(serde_json::from_value(value).unwrap()),
        "Service" => Object::Service(serde_json::from_value(value).unwrap()),
        "EndpointSlice" => Object::EndpointSlice(serde_json::from_value(value).unwrap()),
        _ => Object::AuthorizationPolicy(Box::new(value)),
    };
    Item { key: object.key().unwrap(), record: Record::new(&object, &settings()) }
}

fn pod(name: &str, address: &str) -> Item {
    item(
        json!({"kind": "Pod", "metadata": {"name": name, "namespace": "shop"}, "status": {"podIP": address}}),
    )
}

fn standing(item: Item) -> FileChange {
    let record = Arc::new(item.record.unwrap());
    FileChange::Apply(Standing { record, file: PathBuf::from("a.yaml"), line: 1 })
}

fn files(merged: &mut Merged, changes: Vec<FileChange>) {
    merged.take(Batch::Files { changes, problems: Vec::new() });
}

fn watched(merged: &mut Merged, event: WatchEvent) {
    merged.take(Batch::Watch(event));
}

fn list(merged: &mut Merged, kind: Kind, items: Vec<Item>) {
    watched(merged, WatchEvent::Begin(kind));
    items.into_iter().for_each(|item| watched(merged, WatchEvent::Listed(item)));
    watched(merged, WatchEvent::Done(kind));
}

/// Each pod as `name address`.
fn pods(merged: &mut Merged) -> Vec<String> {
    let snapshot = merged.snapshot();
    let show = |pod: &Arc<crate::mesh::Workload>| format!("{} {:?}", pod.name, pod.addresses);
    snapshot.workloads().iter().map(show).collect()
}

fn problems(merged: &Merged) -> Vec<String> {
    merged.problems().iter().map(ToString::to_string).collect()
}

#[test]
fn mesh_is_complete_when_every_kind_has_been_listed_or_is_unknown() {
    let mut merged = Merged::new("culvert-system", &[Kind::Pod, Kind::AuthorizationPolicy]);
    assert!(!merged.is_complete());
    list(&mut merged, Kind::Pod, vec![pod("web", "10.0.0.1")]);
    assert!(!merged.is_complete());
    watched(&mut merged, WatchEvent::Absent(Kind::AuthorizationPolicy));
    assert!(merged.is_complete());
    assert!(Merged::new("culvert-system", &[]).is_complete());
}

#[test]
fn new_list_replaces_everything_at_once_and_only_when_it_is_complete() {
    let mut merged = Merged::new("culvert-system", &[Kind::Pod]);
    list(&mut merged, Kind::Pod, vec![pod("a", "10.0.0.1"), pod("b", "10.0.0.2")]);
    assert!(merged.take_changed());

    // `a` is gone, and `c` has its address.
    watched(&mut merged, WatchEvent::Begin(Kind::Pod));
    watched(&mut merged, WatchEvent::Listed(pod("c", "10.0.0.1")));
    assert!(!merged.take_changed());
    assert_eq!(pods(&mut merged), ["a [10.0.0.1]", "b [10.0.0.2]"]);
    // Cut off, and begun anew.
    watched(&mut merged, WatchEvent::Begin(Kind::Pod));
    watched(&mut merged, WatchEvent::Listed(pod("b", "10.0.0.2")));
    watched(&mut merged, WatchEvent::Listed(pod("c", "10.0.0.1")));
    assert!(!merged.take_changed());
    watched(&mut merged, WatchEvent::Done(Kind::Pod));
    assert!(merged.take_changed());
    assert_eq!(pods(&mut merged), ["b [10.0.0.2]", "c [10.0.0.1]"]);
    assert!(merged.snapshot().conflicts().is_empty());

    list(&mut merged, Kind::Pod, vec![pod("b", "10.0.0.2"), pod("c", "10.0.0.1")]);
    assert!(!merged.take_changed(), "the same again");
}

#[test]
fn object_of_the_api_server_counts_before_that_of_a_file_and_the_doublet_is_reported() {
    let mut merged = Merged::new("culvert-system", &[Kind::Pod]);
    files(&mut merged, vec![standing(pod("web", "10.0.0.9"))]);
    list(&mut merged, Kind::Pod, vec![pod("web", "10.0.0.1")]);
    assert_eq!(pods(&mut merged), ["web [10.0.0.1]"]);
    assert_eq!(problems(&merged), ["a.yaml:1: Pod shop/web is in the API server too: that one counts"]);
    files(&mut merged, vec![standing(pod("web", "10.0.0.8")), standing(pod("db", "10.0.0.2"))]);
    assert_eq!(pods(&mut merged), ["db [10.0.0.2]", "web [10.0.0.1]"]);
    let key = pod("web", "10.0.0.1").key;
    watched(&mut merged, WatchEvent::Deleted(key.clone()));
    assert_eq!(pods(&mut merged), ["db [10.0.0.2]", "web [10.0.0.8]"]);
    assert!(problems(&merged).is_empty());
    watched(&mut merged, WatchEvent::Applied(pod("web", "10.0.0.1")));
    files(&mut merged, vec![FileChange::Delete(key)]);
    assert_eq!(pods(&mut merged), ["db [10.0.0.2]", "web [10.0.0.1]"]);
}

#[test]
fn invalid_object_stays_as_it_was_and_is_reported_until_it_is_mended_or_gone() {
    let mut merged = Merged::new("culvert-system", &[Kind::Pod]);
    list(&mut merged, Kind::Pod, vec![pod("a", "10.0.0.1"), pod("b", "no")]);
    assert_eq!(pods(&mut merged), ["a [10.0.0.1]"]);
    let left_out = "API server: Pod shop/b: status.podIP: \"no\" is not an IP address; it is left out";
    assert_eq!(problems(&merged), [left_out]);
    watched(&mut merged, WatchEvent::Applied(pod("a", "nor this")));
    assert_eq!(pods(&mut merged), ["a [10.0.0.1]"]);
    assert!(problems(&merged)[0].ends_with("it stays as it was"), "{:?}", problems(&merged));
    // Also over a new list.
    list(&mut merged, Kind::Pod, vec![pod("a", "nor this")]);
    assert_eq!(pods(&mut merged), ["a [10.0.0.1]"]);
    assert_eq!(merged.problems().len(), 1, "{:?}", problems(&merged));
    list(&mut merged, Kind::Pod, vec![pod("a", "10.0.0.1")]);
    assert!(problems(&merged).is_empty(), "{:?}", problems(&merged));
}

#[test]
fn policy_that_cannot_be_read_is_in_force_and_reported() {
    let mut merged = Merged::new("culvert-system", &[Kind::AuthorizationPolicy]);
    let metadata = json!({"name": "readers", "namespace": "shop"});
    let broken = json!({"kind": "AuthorizationPolicy", "metadata": metadata, "spec": {"rules": 5}});
    list(&mut merged, Kind::AuthorizationPolicy, vec![item(broken)]);
    assert_eq!(merged.snapshot().policies().authorization().len(), 1);
    let problems = merged.problems();
    assert_eq!(problems[0].policy, Some((Kind::AuthorizationPolicy, Severity::Error)));
    watched(&mut merged, WatchEvent::Absent(Kind::AuthorizationPolicy));
    assert_eq!(merged.snapshot().policies().authorization().len(), 1, "policies never go by themselves");
}

#[test]
fn problems_are_bounded() {
    let mut merged = Merged::new("culvert-system", &[Kind::Pod]);
    let broken = (0..FAULTS + 3).map(|number| pod(&format!("pod-{number}"), "no"));
    list(&mut merged, Kind::Pod, broken.collect());
    assert_eq!(merged.problems().len(), FAULTS + 1);
    assert_eq!(merged.problems()[FAULTS].message, "3 more problems are not shown");
}

/// What happens to an object of the API server.
#[derive(Clone, Debug)]
enum Step {
    /// An object is written, and the watch says so, or is in a gap.
    Put(usize, u8),
    Remove(usize),
    Gap,
    /// A list begins and is cut off.
    CutOff,
    Relist,
    File(usize, Option<u8>),
}

/// An object by its number and a version of it.
fn object(number: usize, version: u8) -> Item {
    let label = if version.is_multiple_of(2) { "enabled" } else { "disabled" };
    let address = format!("10.0.0.{}", version % 4 + 1);
    item(match number {
        0 => {
            json!({"kind": "Namespace", "metadata": {"name": "shop", "labels": {"culvert.dev/mesh": label}}})
        }
        1 => json!({"kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"clusterIP": address, "ports": [{"port": 80}]}}),
        2 => json!({"kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [{"addresses": [address]}],
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}}}),
        3 => json!({"kind": "AuthorizationPolicy", "metadata": {"name": "a", "namespace": "shop"},
            "spec": {"action": if version.is_multiple_of(2) { "ALLOW" } else { "DENY" }}}),
        4 => json!({"kind": "Node",
            "metadata": {"name": "node-a", "labels": {"topology.kubernetes.io/zone": address}}}),
        _ => json!({"kind": "Pod", "metadata": {"name": format!("pod-{number}"), "namespace": "shop"},
            "status": {"podIP": address, "phase": if version == 7 { "Failed" } else { "Running" }}}),
    })
}

const OBJECTS: usize = 9;
const EVERY_KIND: [Kind; 6] =
    [Kind::Namespace, Kind::Node, Kind::Pod, Kind::Service, Kind::EndpointSlice, Kind::AuthorizationPolicy];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..OBJECTS, 0u8..8).prop_map(|(number, version)| Step::Put(number, version)),
        3 => (0..OBJECTS).prop_map(Step::Remove),
        1 => Just(Step::Gap),
        1 => Just(Step::CutOff),
        1 => Just(Step::Relist),
        2 => (0..OBJECTS, proptest::option::of(0u8..8)).prop_map(|(number, version)| Step::File(number, version)),
    ]
}

fn relist(merged: &mut Merged, server: &BTreeMap<usize, u8>, complete: bool) {
    for kind in EVERY_KIND {
        watched(merged, WatchEvent::Begin(kind));
        let items = server.iter().map(|(number, version)| object(*number, *version));
        for item in items.filter(|item| item.key.kind == kind) {
            watched(merged, WatchEvent::Listed(item));
        }
        if complete {
            watched(merged, WatchEvent::Done(kind));
        }
    }
}

/// Everything that a snapshot says of the objects.
fn show(snapshot: &Snapshot) -> String {
    let policies = snapshot.policies();
    let zone = snapshot.zone("node-a");
    format!(
        "{zone:?}\n{:#?}\n{:#?}\n{:#?}",
        snapshot.workloads(),
        snapshot.services(),
        policies.authorization()
    )
}

proptest! {
    #[test]
    fn mesh_ends_as_what_the_sources_have(steps in proptest::collection::vec(step(), 0..60)) {
        let mut merged = Merged::new("culvert-system", &EVERY_KIND);
        let mut server: BTreeMap<usize, u8> = BTreeMap::new();
        let mut on_disk: BTreeMap<usize, u8> = BTreeMap::new();
        relist(&mut merged, &server, true);
        let mut in_gap = false;
        for step in steps {
            match step {
                Step::Put(number, version) => {
                    server.insert(number, version);
                    if !in_gap {
                        watched(&mut merged, WatchEvent::Applied(object(number, version)));
                    }
                }
                Step::Remove(number) => {
                    if server.remove(&number).is_some() && !in_gap {
                        watched(&mut merged, WatchEvent::Deleted(object(number, 0).key));
                    }
                }
                Step::Gap => in_gap = true,
                Step::CutOff => {
                    in_gap = true;
                    relist(&mut merged, &server, false);
                }
                Step::Relist => {
                    in_gap = false;
                    relist(&mut merged, &server, true);
                }
                Step::File(number, version) => {
                    let change = match version {
                        Some(version) => standing(object(number, version)),
                        None => FileChange::Delete(object(number, 0).key),
                    };
                    match version {
                        Some(version) => drop(on_disk.insert(number, version)),
                        None => drop(on_disk.remove(&number)),
                    }
                    files(&mut merged, vec![change]);
                }
            }
        }
        if in_gap {
            relist(&mut merged, &server, true);
        }
        let mut expected = Index::new("culvert-system");
        for (number, version) in on_disk.into_iter().chain(server) {
            expected.apply(&object(number, version).record.unwrap());
        }
        prop_assert_eq!(show(&merged.snapshot()), show(&expected.snapshot()));
    }
}
