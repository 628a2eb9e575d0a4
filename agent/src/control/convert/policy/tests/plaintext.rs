//! What the kernel does with plaintext, by port.

use super::*;
use PlaintextAction::{Inspect, Pass, Refuse};

/// What happens at `shop/web` at any other port, and where it is something else.
fn check(policies: &[Value], otherwise: PlaintextAction, ports: &[(u16, PlaintextAction)]) {
    let world = World::new(policies);
    let plaintext = world.snapshot.policies().plaintext(world.workload("shop/web"));
    let expected = Plaintext { otherwise, ports: ports.iter().copied().collect() };
    assert_eq!(plaintext, expected, "{policies:?}");
}

fn allow(rules: Value) -> Value {
    let mut spec = json!({});
    spec["rules"] = rules;
    authorization("shop/allow", spec)
}

fn deny(rules: Value) -> Value {
    let mut spec = json!({"action": "DENY"});
    spec["rules"] = rules;
    authorization("shop/deny", spec)
}

#[test]
fn passes_where_no_policy_can_refuse_it() {
    check(&[], Pass, &[]);
    check(&[authentication("shop/a", json!({"mtls": {"mode": "DISABLE"}}))], Pass, &[]);
    check(&[allow(json!([{}]))], Pass, &[]);
    check(&[allow(json!([{"from": [{"source": {"notPrincipals": ["a"]}}]}]))], Pass, &[]);
    check(&[deny(json!([]))], Pass, &[]);
    check(&[deny(json!([{"from": [{"source": {"principals": ["*"]}}]}]))], Pass, &[]);
    check(&[allow(json!([{"from": [{"source": {"ipBlocks": ["0.0.0.0/0", "::/0"]}}]}]))], Pass, &[]);
}

#[test]
fn is_refused_where_no_source_can_be_permitted() {
    check(&[authentication("shop/a", json!({"mtls": {"mode": "STRICT"}}))], Refuse, &[]);
    check(&[allow(json!([]))], Refuse, &[]);
    check(&[allow(json!([{"from": [{"source": {"principals": ["*"]}}]}]))], Refuse, &[]);
    check(&[deny(json!([{}]))], Refuse, &[]);
    check(&[deny(json!([{"when": [{"key": "source.namespace", "notValues": ["shop"]}]}]))], Refuse, &[]);
    check(&[deny(json!([{"from": [{"source": {"ipBlocks": ["0.0.0.0/0", "::/0"]}}]}]))], Refuse, &[]);
}

#[test]
fn is_inspected_where_it_depends_on_the_addresses() {
    check(&[deny(json!([{"from": [{"source": {"ipBlocks": ["10.0.0.0/8"]}}]}]))], Inspect, &[]);
    check(&[allow(json!([{"from": [{"source": {"notIpBlocks": ["10.0.0.0/8"]}}]}]))], Inspect, &[]);
    // The pod may have more addresses than its status says.
    check(&[allow(json!([{"when": [{"key": "destination.ip", "values": ["10.0.0.1"]}]}]))], Inspect, &[]);
}

#[test]
fn ports_are_told_apart() {
    let at = |port: &str| json!([{"to": [{"operation": {"ports": [port]}}]}]);
    check(&[deny(at("80"))], Pass, &[(80, Refuse)]);
    check(&[allow(at("80"))], Refuse, &[(80, Pass)]);
    check(
        &[deny(json!([{"when": [{"key": "destination.port", "notValues": ["80"]}]}]))],
        Refuse,
        &[(80, Pass)],
    );
    let from = json!([{"from": [{"source": {"ipBlocks": ["10.0.0.0/8"]}}], "to": [{"operation": {"ports": ["80", "81"]}}]}]);
    check(&[deny(from)], Pass, &[(80, Inspect), (81, Inspect)]);
    let strict = json!({"selector": {"matchLabels": {"app": "web"}}, "mtls": {"mode": "STRICT"},
        "portLevelMtls": {"80": {"mode": "PERMISSIVE"}, "81": {"mode": "STRICT"}}});
    check(&[authentication("shop/a", strict.clone())], Refuse, &[(80, Pass)]);
    check(&[authentication("shop/a", strict), deny(at("80"))], Refuse, &[]);
}

#[test]
fn dry_run_is_inspected_where_it_may_be_permitted() {
    let mut dry = authorization("shop/dry", json!({"action": "DENY", "rules": [{}]}));
    dry["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"});
    check(&[dry.clone()], Inspect, &[]);
    check(&[dry, allow(json!([]))], Refuse, &[]);
}

#[test]
fn more_ports_than_fit_into_the_kernels_table_are_inspected() {
    let ports = |count: u16| {
        let ports: Vec<_> = (1..=count).map(|port| port.to_string()).collect();
        json!([{"to": [{"operation": {"ports": ports}}]}])
    };
    let all: Vec<_> = (1..=64).map(|port| (port, Refuse)).collect();
    check(&[deny(ports(64))], Pass, &all);
    check(&[deny(ports(65))], Inspect, &[]);
    // They are no exceptions where the same happens everywhere; but nobody looks at thousands to find out.
    check(&[deny(ports(1000)), allow(json!([]))], Refuse, &[]);
    check(&[deny(ports(2000)), allow(json!([]))], Inspect, &[]);
}
