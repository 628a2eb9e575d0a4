//! Whose policy it is: the root namespace, selectors, `targetRefs`.

use super::*;

/// The pods that a policy which denies everything is for.
fn denied_by(policy: Value) -> Vec<String> {
    denied_among(policy, &[])
}

fn denied_among(policy: Value, others: &[Value]) -> Vec<String> {
    let world = World::with(&[policy], others);
    let pods = world.snapshot.workloads().iter().map(ToString::to_string);
    pods.filter(|pod| world.verdict("shop/sa/front", pod).starts_with("deny")).collect()
}

fn deny(name: &str, mut spec: Value) -> Value {
    spec["action"] = "DENY".into();
    spec["rules"] = json!([{}]);
    authorization(name, spec)
}

#[test]
fn policy_without_a_selector_is_for_its_namespace() {
    assert_eq!(denied_by(deny("shop/a", json!({}))), ["shop/db", "shop/web"]);
    assert_eq!(denied_by(deny("shop/a", json!({"selector": {}}))), ["shop/db", "shop/web"]);
    assert_eq!(denied_by(deny("shop/a", json!({"selector": {"matchLabels": {}}}))), ["shop/db", "shop/web"]);
}

#[test]
fn selector_wants_all_of_its_labels() {
    let select = |labels: Value| denied_by(deny("shop/a", json!({"selector": {"matchLabels": labels}})));
    assert_eq!(select(json!({"app": "web"})), ["shop/web"]);
    assert_eq!(select(json!({"app": "web", "tier": "front"})), ["shop/web"]);
    assert!(select(json!({"app": "web", "tier": "back"})).is_empty());
    assert!(select(json!({"app": "db", "tier": "front"})).is_empty());
    assert!(select(json!({"team": "web"})).is_empty());
}

#[test]
fn root_namespace_is_the_whole_mesh() {
    let all = ["bank/web", "culvert-system/console", "shop/db", "shop/web"];
    assert_eq!(denied_by(deny("culvert-system/a", json!({}))), all);
    let selected = deny("culvert-system/a", json!({"selector": {"matchLabels": {"app": "web"}}}));
    assert_eq!(denied_by(selected), ["bank/web", "culvert-system/console", "shop/web"]);
}

#[test]
fn selector_of_a_peer_authentication_in_the_root_namespace_selects_only_there() {
    let strict = json!({"mtls": {"mode": "STRICT"}, "selector": {"matchLabels": {"app": "web"}}});
    let world = World::new(&[authentication("culvert-system/a", strict)]);
    assert_eq!(world.verdict("-", "culvert-system/console"), "deny culvert-system/a");
    assert_eq!(world.verdict("-", "shop/web"), "allow -");
}

#[test]
fn target_references_select_the_pods_behind_a_service_of_the_namespace() {
    let service = |namespace, name, selector| {
        json!({"kind": "Service", "metadata": {"name": name, "namespace": namespace},
            "spec": {"selector": selector, "ports": [{"port": 80}]}})
    };
    let slice = json!({"kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "bare-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "bare"}},
        "endpoints": [{"addresses": ["10.0.0.2"]}, {"addresses": ["10.0.0.3"]},
            {"addresses": ["10.0.0.77"], "targetRef": {"kind": "Pod", "name": "web", "namespace": "shop"}}]});
    let others = [
        service("shop", "web", json!({"app": "web"})),
        service("shop", "bare", json!({})),
        service("bank", "teller", json!({"app": "web"})),
        slice,
    ];
    let target =
        |field: &str, references: Value| denied_among(deny("shop/a", json!({field: references})), &others);
    let reference = |kind, name| json!({"kind": kind, "group": "", "name": name});
    assert_eq!(target("targetRefs", json!([reference("Service", "web")])), ["shop/web"]);
    assert_eq!(target("targetRef", reference("Service", "web")), ["shop/web"]);
    // Without a selector, those behind its endpoints: by name where they say one, and none of another namespace.
    assert_eq!(target("targetRefs", json!([reference("Service", "bare")])), ["shop/db", "shop/web"]);
    assert!(target("targetRefs", json!([reference("Service", "teller")])).is_empty());
    assert!(target("targetRefs", json!([reference("Gateway", "web")])).is_empty());
    assert!(
        target("targetRefs", json!([{"kind": "Service", "name": "teller", "namespace": "bank"}])).is_empty()
    );
    assert_eq!(target("targetRefs", json!([])), ["shop/db", "shop/web"]);
}

#[test]
fn target_references_are_warned_of() {
    let references =
        json!({"targetRefs": [{"kind": "Gateway", "name": "a"}, {"kind": "Service", "name": "b"}]});
    let world = World::new(&[deny("shop/a", references)]);
    assert_eq!(
        world.warnings(),
        [
            "spec.targetRefs[0]: Gateway a is no Service of the policy's namespace: it selects nothing",
            "spec.targetRefs[1]: there are no waypoints: it selects the pods behind the Service b",
        ]
    );
}
