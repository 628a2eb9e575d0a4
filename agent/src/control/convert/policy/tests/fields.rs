//! The fields of rules: strings, addresses, ports, identities, and what cannot be seen.

use super::*;

/// Connections by which fields are told apart: identity, source and port.
const ATTEMPTS: [(&str, &str, u16); 6] = [
    ("shop/sa/front", "10.0.0.9", 80),
    ("bank/sa/teller", "10.1.0.9", 8080),
    ("shop/sa/other", "::ffff:10.0.0.9", 8080),
    ("shop/sa/front", "fd00::9", 443),
    ("-", "10.0.0.9", 80),
    ("-", "2001:db8::1", 443),
];

/// The attempts (counted from 0) that a rule of an ALLOW policy matches.
fn allowed(rule: Value) -> Vec<usize> {
    let mut spec = json!({"rules": [null]});
    spec["rules"][0] = rule;
    let world = World::new(&[authorization("shop/a", spec)]);
    assert!(world.notices.iter().all(|notice| notice.severity == Severity::Warning), "{:?}", world.notices);
    (0..ATTEMPTS.len())
        .filter(|at| {
            let (from, source, port) = ATTEMPTS[*at];
            world.decide_at(from, source, "shop/web", port).verdict.is_ok()
        })
        .collect()
}

fn source(fields: &Value) -> Vec<usize> {
    allowed(json!({"from": [{"source": fields}]}))
}

fn operation(fields: &Value) -> Vec<usize> {
    allowed(json!({"to": [{"operation": fields}]}))
}

fn when(key: &str, name: &str, values: &Value) -> Vec<usize> {
    allowed(json!({"when": [{"key": key, name: values}]}))
}

#[test]
fn strings_are_exact_prefixes_suffixes_or_present() {
    let principals = |text: &str| source(&json!({"principals": [text]}));
    assert_eq!(principals("cluster.local/ns/shop/sa/front"), [0, 3]);
    assert_eq!(principals("spiffe://cluster.local/ns/shop/sa/front"), [0, 3]);
    assert_eq!(principals("cluster.local/ns/shop/*"), [0, 2, 3]);
    assert_eq!(principals("*/teller"), [1]);
    assert_eq!(principals("*"), [0, 1, 2, 3]);
    assert!(principals("cluster.local/ns/shop/sa/fron").is_empty());
    assert!(principals("Cluster.local/ns/shop/sa/front").is_empty());
    assert_eq!(principals("cluster.local/ns/shop/sa/front*"), [0, 3]);
}

#[test]
fn identity_fields_compare_their_part() {
    assert_eq!(source(&json!({"namespaces": ["bank"]})), [1]);
    assert_eq!(source(&json!({"namespaces": ["b*", "x"]})), [1]);
    assert_eq!(source(&json!({"trustDomains": ["cluster.local"]})), [0, 1, 2, 3]);
    assert!(source(&json!({"trustDomains": ["other"]})).is_empty());
    assert_eq!(source(&json!({"serviceAccounts": ["front", "bank/teller"]})), [0, 1, 3]);
    assert!(source(&json!({"serviceAccounts": ["bank/front", "teller"]})).is_empty());
}

#[test]
fn plaintext_matches_no_positive_identity_field_and_every_negative_one() {
    assert_eq!(source(&json!({"notPrincipals": ["*"]})), [4, 5]);
    assert_eq!(source(&json!({"notNamespaces": ["shop"]})), [1, 4, 5]);
    assert_eq!(source(&json!({"notServiceAccounts": ["front"]})), [1, 2, 4, 5]);
    assert_eq!(source(&json!({"notTrustDomains": ["cluster.local"]})), [4, 5]);
    assert_eq!(when("source.principal", "values", &json!(["*"])), [0, 1, 2, 3]);
    assert_eq!(when("source.principal", "notValues", &json!(["*"])), [4, 5]);
}

#[test]
fn addresses_are_compared_within_their_family() {
    assert_eq!(source(&json!({"ipBlocks": ["10.0.0.9"]})), [0, 2, 4]);
    assert_eq!(source(&json!({"ipBlocks": ["10.0.0.0/15"]})), [0, 1, 2, 4]);
    assert_eq!(source(&json!({"ipBlocks": ["::ffff:10.0.0.0/112"]})), [0, 2, 4]);
    assert_eq!(source(&json!({"ipBlocks": ["::/0"]})), [3, 5]);
    assert_eq!(source(&json!({"ipBlocks": ["0.0.0.0/0"]})), [0, 1, 2, 4]);
    assert_eq!(source(&json!({"notIpBlocks": ["::/0"]})), [0, 1, 2, 4]);
    assert_eq!(source(&json!({"ipBlocks": ["10.0.0.77/24"]})), [0, 2, 4]);
    assert_eq!(when("source.ip", "values", &json!(["fd00::/8"])), [3]);
    assert_eq!(when("destination.ip", "values", &json!(["10.0.0.1"])), [0, 1, 2, 3, 4, 5]);
    assert!(when("destination.ip", "notValues", &json!(["10.0.0.0/24"])).is_empty());
}

#[test]
fn ports_are_the_applications() {
    assert_eq!(operation(&json!({"ports": ["80", "443"]})), [0, 3, 4, 5]);
    assert_eq!(operation(&json!({"notPorts": ["80", "443"]})), [1, 2]);
    assert_eq!(operation(&json!({"ports": ["80", "443"], "notPorts": ["443"]})), [0, 4]);
    assert_eq!(when("destination.port", "values", &json!(["443"])), [3, 5]);
}

#[test]
fn conditions_take_the_values_of_the_field_of_their_name() {
    assert_eq!(when("source.namespace", "values", &json!(["sh*"])), [0, 2, 3]);
    assert_eq!(when("source.serviceAccount", "values", &json!(["front"])), [0, 3]);
    assert_eq!(when("source.trustDomain", "notValues", &json!(["*.local"])), [4, 5]);
    let both = json!({"when": [{"key": "source.namespace", "values": ["*"], "notValues": ["bank"]}]});
    assert_eq!(allowed(both), [0, 2, 3]);
}

#[test]
fn clauses_are_anded_and_entries_ored() {
    let from = json!([{"source": {"namespaces": ["bank"]}}, {"source": {"principals": ["*/front"], "ipBlocks": ["10.0.0.0/8"]}}]);
    let mut rule = json!({"to": [{"operation": {"ports": ["80"]}}, {"operation": {"ports": ["8080"]}}]});
    rule["from"] = from;
    assert_eq!(allowed(rule.clone()), [0, 1]);
    rule["when"] = json!([{"key": "source.ip", "values": ["10.0.0.0/8"]}, {"key": "destination.port", "notValues": ["80"]}]);
    assert_eq!(allowed(rule), [1]);
}

#[test]
fn empty_objects_never_match_and_empty_lists_are_absent() {
    let all = [0, 1, 2, 3, 4, 5];
    assert_eq!(allowed(json!({})), all);
    assert_eq!(allowed(json!({"from": [], "to": null, "when": []})), all);
    for rule in [
        json!({"from": [{}]}),
        json!({"from": [{"source": null}]}),
        json!({"from": [{"source": {}}]}),
        json!({"from": [{"source": {"principals": []}}]}),
        json!({"from": [{"source": {"principals": null, "colour": []}}]}),
        json!({"to": [{}]}),
        json!({"to": [{"operation": {"ports": [], "methods": []}}]}),
    ] {
        assert!(allowed(rule.clone()).is_empty(), "{rule}");
    }
    assert_eq!(source(&json!({"principals": [], "ipBlocks": ["10.1.0.9"]})), [1]);
    assert_eq!(allowed(json!({"from": [{}, {"source": {"ipBlocks": ["10.1.0.9"]}}]})), [1]);
}

/// Rules with something that cannot be seen beside something that can.
fn unseen() -> Vec<Value> {
    vec![
        json!({"to": [{"operation": {"methods": ["GET"]}}, {"operation": {"ports": ["80"]}}]}),
        json!({"to": [{"operation": {"paths": ["/*"], "ports": ["80"]}}]}),
        json!({"to": [{"operation": {"notHosts": ["a.example"]}}]}),
        json!({"from": [{"source": {"requestPrincipals": ["*"]}}]}),
        json!({"from": [{"source": {"notRemoteIpBlocks": ["10.0.0.0/8"]}}]}),
        json!({"from": [{"source": {"colour": "red"}}]}),
        json!({"when": [{"key": "request.headers[x]", "values": ["*y*"]}]}),
        json!({"when": [{"key": "colour", "notValues": ["red"]}]}),
    ]
}

#[test]
fn rule_of_an_allow_policy_with_what_cannot_be_seen_never_matches() {
    for rule in unseen() {
        assert!(allowed(rule.clone()).is_empty(), "{rule}");
        let world = World::new(&[authorization("shop/a", json!({"rules": [rule.clone()]}))]);
        assert_eq!(world.warnings().len(), 1, "{rule}");
    }
}

#[test]
fn condition_of_a_deny_policy_that_cannot_be_seen_counts_as_matching() {
    for action in ["DENY", "CUSTOM"] {
        for rule in unseen() {
            let world = World::new(&[authorization("shop/a", json!({"action": action, "rules": [rule]}))]);
            assert_eq!(
                short(&world.decide_at("-", "10.0.0.9", "shop/web", 80).verdict),
                "deny shop/a",
                "{rule}"
            );
            assert!(!world.warnings().is_empty());
        }
    }
    // What can be seen is still compared.
    let rule = json!({"to": [{"operation": {"paths": ["/*"], "ports": ["80"]}}]});
    let world = World::new(&[authorization("shop/a", json!({"action": "DENY", "rules": [rule]}))]);
    assert_eq!(world.verdict("-", "shop/web"), "allow -");
}

#[test]
fn what_is_read_otherwise_than_it_is_written_is_warned_of() {
    let from = json!([{"source": {"principals": ["a", "spiffe://a/*"], "ipBlocks": ["10.0.0.9/8"]}}]);
    let world = World::new(&[authorization("shop/a", json!({"rules": [{"from": from}]}))]);
    assert_eq!(
        world.warnings(),
        [
            "spec.rules[0].from[0].source.ipBlocks[0]: 10.0.0.9/8 has bits after its prefix: it counts as 10.0.0.0/8",
            "spec.rules[0].from[0].source.principals[1]: principals are written without spiffe://, which is left out",
        ]
    );
}

#[test]
fn warnings_about_one_policy_have_a_bound() {
    let principals: Vec<_> = (0..1000).map(|number| format!("spiffe://a/{number}")).collect();
    let world = World::new(&[authorization(
        "shop/a",
        json!({"rules": [{"from": [{"source": {"principals": principals}}]}]}),
    )]);
    assert_eq!(world.warnings().len(), 17);
    assert!(world.warnings()[16].contains("984 more"), "{:?}", world.warnings());
}
