//! What the agent writes into the API server.

use lab::{PATIENCE, eventually};
use serde_json::json;

use crate::world::World;

#[test]
fn a_pod_that_cannot_be_enrolled_has_an_event_that_says_why() {
    let world = World::new();
    let _agent = world.ready_agent("node-a");
    world.write_pod("lost", (world.mesh.node("node-a").unique_name(), "/run/netns/nowhere"), "10.9.9.9");
    let events = || {
        let args = ["get", "events", "-n", "shop", "--field-selector", "involvedObject.name=lost", "-o"];
        world.server.kubectl(&[&args[..], &["jsonpath={.items[*].message}"]].concat(), "").unwrap()
    };
    eventually(PATIENCE, || events().contains("/run/netns/nowhere"));
    assert!(world.enrolled("lost").is_empty());
}

#[test]
fn an_annotation_that_an_earlier_agent_left_goes_when_the_pod_is_not_enrolled() {
    let world = World::new();
    let node = world.mesh.node("node-a").unique_name().to_owned();
    for (name, node) in [("stale", node.as_str()), ("elsewhere", "another-node")] {
        world.write_pod(name, (node, "/run/netns/nowhere"), "10.9.9.9");
        let annotate = ["annotate", "pod", name, "-n", "shop", "culvert.dev/enrolled=true"];
        world.server.kubectl(&annotate, "").unwrap();
        world.label(name, "culvert.dev/mesh=disabled");
    }
    let _agent = world.ready_agent("node-a");
    eventually(PATIENCE, || world.enrolled("stale").is_empty());
    assert_eq!(world.enrolled("elsewhere"), "true", "that is another agent's");
}

#[test]
fn a_policys_status_says_whether_it_could_be_read_and_whom_it_is_for() {
    let world = World::new();
    let pod = world.pod("web", "node-a");
    let _agents = (world.ready_agent("node-a"), world.ready_agent("node-b"));
    world.wait_enrolled(&[&pod]);
    let policy = |name: &str, spec| {
        world.apply(&json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": name, "namespace": "shop"}, "spec": spec}));
    };
    policy("odd", json!({"rules": [{"to": [{"operation": {"paths": ["/x"]}}]}]}));
    policy("broken", json!({"rules": [{"when": [{"key": "source.ip"}]}]}));
    policy("nobody", json!({"selector": {"matchLabels": {"app": "nobody"}}, "rules": [{}]}));
    let condition = |name: &str, kind: &str| {
        let path = format!(r#"{{.status.conditions[?(@.type=="culvert.dev/{kind}")].status}}"#);
        world.field("authorizationpolicy", name, &path)
    };
    for (name, accepted, as_written, in_effect) in [
        ("odd", "True", "False", "True"),
        ("broken", "False", "True", "True"),
        ("nobody", "True", "True", "False"),
    ] {
        let expected = [accepted, as_written, in_effect];
        let conditions = || ["Accepted", "AsWritten", "InEffect"].map(|kind| condition(name, kind));
        eventually(PATIENCE, || conditions() == expected);
    }
    let version = || world.field("authorizationpolicy", "odd", "{.metadata.resourceVersion}");
    let before = version();
    policy("one-more", json!({"rules": [{}]}));
    eventually(PATIENCE, || condition("one-more", "Accepted") == "True");
    assert_eq!(version(), before, "what did not change is not written again");
}
