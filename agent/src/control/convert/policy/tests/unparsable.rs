//! Policies that cannot be read: none opens anything.

use super::*;

/// Values of `rules` that spoil a policy.
fn bad_rules() -> Vec<Value> {
    let source = |fields: Value| json!([{"from": [{"source": fields}]}]);
    let operation = |fields: Value| json!([{"to": [{"operation": fields}]}]);
    let when = |condition: Value| json!([{"when": [condition]}]);
    vec![
        json!(5),
        json!({}),
        json!([null]),
        json!([{"form": []}]),
        json!([{"from": {}}]),
        json!([{"from": [null]}]),
        json!([{"from": [{"sauce": {}}]}]),
        json!([{"from": [{"source": []}]}]),
        source(json!({"principals": "a"})),
        source(json!({"principals": {}})),
        source(json!({"principals": [1]})),
        source(json!({"principals": [null]})),
        source(json!({"principals": [""]})),
        source(json!({"principals": ["spiffe://"]})),
        source(json!({"principals": ["**"]})),
        source(json!({"principals": ["*a*"]})),
        source(json!({"namespaces": ["a*b"]})),
        source(json!({"trustDomains": ["a", "*a*"]})),
        source(json!({"serviceAccounts": ["shop/*"]})),
        source(json!({"serviceAccounts": ["a/b/c"]})),
        source(json!({"serviceAccounts": ["/a"]})),
        source(json!({"serviceAccounts": ["a"], "principals": ["a"]})),
        source(json!({"notServiceAccounts": ["a"], "notNamespaces": ["a"]})),
        source(json!({"ipBlocks": ["10.0.0.0/33"]})),
        source(json!({"ipBlocks": ["10.0.0.0/+8"]})),
        source(json!({"ipBlocks": ["10.0.0.0/"]})),
        source(json!({"ipBlocks": ["10.0.0"]})),
        source(json!({"notIpBlocks": ["example.com"]})),
        source(json!({"requestPrincipals": "a"})),
        source(json!({"remoteIpBlocks": ["a"]})),
        operation(json!({"ports": [80]})),
        operation(json!({"ports": ["0"]})),
        operation(json!({"ports": ["65536"]})),
        operation(json!({"ports": ["+80"]})),
        operation(json!({"ports": ["http"]})),
        operation(json!({"ports": ["80-90"]})),
        operation(json!({"methods": [1]})),
        when(json!({})),
        when(json!({"values": ["a"]})),
        when(json!({"key": "", "values": ["a"]})),
        when(json!({"key": 1, "values": ["a"]})),
        when(json!({"key": "source.ip"})),
        when(json!({"key": "source.ip", "values": [], "notValues": null})),
        when(json!({"key": "source.ip", "values": ["a"]})),
        when(json!({"key": "source.namespace", "values": "a"})),
        when(json!({"key": "request.headers[x]", "values": [1]})),
        when(json!({"key": "destination.port", "values": ["80"], "colour": "red"})),
        // One bad value spoils the whole object.
        json!([{}, {"from": 1}]),
    ]
}

fn check(spec: &Value, expected: &str) {
    let world = World::new(&[authorization("shop/a", spec.clone())]);
    for from in ["shop/sa/front", "-"] {
        assert_eq!(world.verdict(from, "shop/web"), expected, "{spec}");
    }
    let errors: Vec<_> = world.notices.iter().filter(|notice| notice.severity == Severity::Error).collect();
    assert!(!errors.is_empty(), "{spec}");
}

#[test]
fn bad_rules_deny_where_the_policy_denies_and_permit_nothing_otherwise() {
    for rules in bad_rules() {
        check(&json!({"action": "DENY", "rules": rules.clone()}), "deny shop/a");
        check(&json!({"action": "CUSTOM", "rules": rules.clone()}), "deny shop/a");
        check(&json!({"action": "ALLOW", "rules": rules.clone()}), "deny none of shop/a");
        check(&json!({"action": "AUDIT", "rules": rules.clone()}), "deny none of shop/a");
        check(&json!({"rules": rules}), "deny none of shop/a");
    }
}

#[test]
fn unknown_actions_and_fields_spoil_the_policy() {
    for spec in [
        json!({"action": "deny", "rules": [{}]}),
        json!({"action": "", "rules": [{}]}),
        json!({"action": 1, "rules": [{}]}),
        json!({"action": [], "rules": [{}]}),
        json!({"rules": [{}], "colour": "red"}),
        json!({"rules": [{}], "mtls": {}}),
        json!("rules"),
        json!([]),
    ] {
        check(&spec, "deny none of shop/a");
    }
    check(&json!({"action": "DENY", "colour": null}), "deny shop/a");
}

#[test]
fn spoilt_policy_counts_for_what_it_selects() {
    let spec = json!({"action": "DENY", "rules": 5, "selector": {"matchLabels": {"app": "db"}}});
    let world = World::new(&[authorization("shop/a", spec)]);
    assert_eq!(world.verdict("-", "shop/db"), "deny shop/a");
    assert_eq!(world.verdict("-", "shop/web"), "allow -");
}

#[test]
fn spoilt_policy_of_unreadable_scope_counts_for_its_namespace_and_in_the_root_for_the_mesh() {
    for scope in [
        json!({"selector": {"matchExpressions": []}}),
        json!({"selector": {"matchLabels": {"app": "db"}, "matchExpressions": null}}),
        json!({"selector": {"matchLabels": {"app": 1}}}),
        json!({"selector": {"matchLabels": {"app": "*"}}}),
        json!({"selector": "db"}),
        json!({"selector": []}),
        json!({"targetRefs": [{"kind": "Service"}]}),
        json!({"targetRefs": [{"kind": "Service", "name": "db", "port": 1}]}),
        json!({"targetRefs": "db"}),
        json!({"targetRef": {"kind": "Service", "name": "a"}, "targetRefs": [{"kind": "Service", "name": "b"}]}),
        json!({"targetRefs": [{"kind": "Service", "name": "db"}], "selector": {"matchLabels": {"app": "db"}}}),
    ] {
        let mut spec = scope.clone();
        spec["action"] = "DENY".into();
        let world = World::new(&[authorization("shop/a", spec.clone())]);
        assert_eq!(world.verdict("-", "shop/web"), "deny shop/a", "{scope}");
        assert_eq!(world.verdict("-", "bank/web"), "allow -", "{scope}");
        let world = World::new(&[authorization("culvert-system/a", spec)]);
        assert_eq!(world.verdict("-", "bank/web"), "deny culvert-system/a", "{scope}");
    }
}

#[test]
fn custom_denies_and_audit_is_ignored_with_a_warning() {
    let world = World::new(&[authorization(
        "shop/a",
        json!({"action": "CUSTOM", "provider": {"name": "x"}, "rules": [{}]}),
    )]);
    assert_eq!(world.verdict("shop/sa/front", "shop/web"), "deny shop/a");
    assert_eq!(world.warnings().len(), 1);
    let world = World::new(&[authorization("shop/a", json!({"action": "AUDIT", "rules": [{}]}))]);
    assert_eq!(world.verdict("shop/sa/front", "shop/web"), "allow -");
    assert_eq!(world.warnings(), ["spec.action: AUDIT changes no verdict: the policy is ignored"]);
}

#[test]
fn absent_rules_never_match() {
    for rules in [json!({}), json!({"rules": []}), json!({"rules": null})] {
        let world = World::new(&[authorization("shop/a", rules.clone())]);
        assert_eq!(world.verdict("shop/sa/front", "shop/web"), "deny none of shop/a");
        let mut deny = rules;
        deny["action"] = "DENY".into();
        assert_eq!(World::new(&[authorization("shop/a", deny)]).verdict("-", "shop/web"), "allow -");
    }
    let mut bare = authorization("shop/a", json!({}));
    bare.as_object_mut().unwrap().remove("spec");
    assert_eq!(World::new(&[bare]).verdict("-", "shop/web"), "deny none of shop/a");
}

#[test]
fn fields_beside_spec_are_warned_of() {
    let mut policy = authorization("shop/a", json!({}));
    policy["rules"] = json!([{}]);
    assert_eq!(World::new(&[policy]).warnings(), ["rules: stands outside of spec, and means nothing there"]);
}
