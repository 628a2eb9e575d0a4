//! Whom rules name.

use super::*;

#[test]
fn rules_for_anybody_are_found() {
    check(&policy("p", "rules: [{}]"), &["allows-everybody shop/p spec.rules[0]"]);
    check(&policy("p", "rules: [{to: [{operation: {ports: [\"80\"]}}]}]"), &[]);
    for field in ["principals", "namespaces", "trustDomains"] {
        let rule = |action: &str| {
            policy("p", &format!("{action}rules: [{{from: [{{source: {{{field}: [\"*\"]}}}}]}}]"))
        };
        check(&rule(""), &[&format!("any-identity shop/p spec.rules[0].from[0].source.{field}")]);
    }
    check(&policy("p", "action: DENY, rules: [{from: [{source: {notPrincipals: [\"*\"]}}]}]"), &[]);
    check(
        &policy("p", "rules: [{when: [{key: source.principal, values: [\"*\"]}]}]"),
        &["any-identity shop/p spec.rules[0].when[0].values"],
    );
}

#[test]
fn identities_that_nobody_has_are_found() {
    let source = |field: &str| policy("p", &format!("rules: [{{from: [{{source: {{{field}}}}}]}}]"));
    let at = |code: &str, field: &str| format!("{code} shop/p spec.rules[0].from[0].source.{field}");
    check(&source("principals: [other.org/ns/shop/sa/front]"), &[&at("foreign-trust-domain", "principals")]);
    check(&source("principals: [\"other.org/*\"]"), &[&at("foreign-trust-domain", "principals")]);
    check(&source("principals: [\"cluster.local/ns/shop/*\"]"), &[]);
    check(&source("principals: [\"*/sa/front\"]"), &[]);
    check(&source("trustDomains: [other.org]"), &[&at("foreign-trust-domain", "trustDomains")]);
    check(&source("trustDomains: [cluster.local]"), &[]);
    check(&source("principals: [cluster.local/ns/shop/sa/nobody]"), &[&at("unknown-identity", "principals")]);
    check(&source("serviceAccounts: [nobody]"), &[&at("unknown-identity", "serviceAccounts")]);
    check(&source("serviceAccounts: [front]"), &[]);
    check(&source("namespaces: [nowhere]"), &[&at("unknown-identity", "namespaces")]);
    check(&source("namespaces: [shop]"), &[]);
    check(
        &source("principals: [cluster.local/ns/shop/sa/legacy]"),
        &[&at("client-not-enrolled", "principals")],
    );
    check(&source("serviceAccounts: [legacy]"), &[&at("client-not-enrolled", "serviceAccounts")]);
}

#[test]
fn deny_rules_that_plaintext_goes_round_are_found() {
    let rule = "selector: {matchLabels: {app: web}}, action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/front]}}]}]";
    let deny = policy("p", rule);
    // Behind a default deny, plaintext is permitted nowhere.
    check(&deny, &[]);
    let open = WORLD.replace("spec: {}", "spec: {rules: [{to: [{operation: {ports: [\"80\"]}}]}]}");
    let found = &["deny-misses-plaintext shop/p spec.rules[0]"];
    check_alone(&(open.clone() + &deny), found);
    check_alone(&(open.clone() + &deny + &peers("strict", "mtls: {mode: STRICT}")), &[]);
    let of_port =
        |port: &str| deny.replace("}]}]", &format!("}}], to: [{{operation: {{ports: [\"{port}\"]}}}}]}}]"));
    check_alone(&(open.clone() + &of_port("80")), found);
    check_alone(&(open.clone() + &of_port("81")), &[]);
    check_alone(
        &(open + &policy("p", "action: DENY, rules: [{from: [{source: {ipBlocks: [10.0.0.2]}}]}]")),
        &[],
    );
    // Without pods, by what the policies say of such as they are for.
    check_alone(
        &format!("\n{deny}"),
        &["no-pods", "deny-misses-plaintext shop/p spec.rules[0]", "no-default-deny shop/p metadata"],
    );
}

#[test]
fn allow_rules_by_identity_for_disabled_ports_are_found() {
    let found = &["disable-hides-identity shop/p spec.rules[0]"];
    let disable = peers("off", "mtls: {mode: DISABLE}");
    check(&(disable.clone() + &good("")), found);
    check(&(peers("on", "mtls: {mode: PERMISSIVE}") + &good("")), &[]);
    check(&(disable + &policy("p", "rules: [{from: [{source: {ipBlocks: [10.0.0.2]}}]}]")), &[]);
    let port = peers("off", "selector: {matchLabels: {app: web}}, portLevelMtls: {80: {mode: DISABLE}}");
    let of = |ports: &str| {
        policy(
            "p",
            &format!(
                "selector: {{matchLabels: {{app: web}}}}, rules: [{{from: [{{source: {{namespaces: [shop]}}}}], to: [{{operation: {{ports: [{ports}]}}}}]}}]"
            ),
        )
    };
    check(&(port.clone() + &of("\"80\"")), found);
    check(&(port + &of("\"80\", \"81\"")), &[]);
}
