//! Each kind of finding, where it is due and where it is not.

mod clients;
mod cover;

use std::{collections::BTreeSet, fs};

use super::*;
use crate::control::{Readiness, Settings, Source};

/// A mesh in which nothing is odd: every test adds to it.
const WORLD: &str = r#"
- {apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, spec: {serviceAccountName: web}, status: {podIP: 10.0.0.1}}
- {apiVersion: v1, kind: Pod, metadata: {name: front, namespace: shop, labels: {app: front}}, spec: {serviceAccountName: front}, status: {podIP: 10.0.0.2}}
- {apiVersion: v1, kind: Pod, metadata: {name: legacy, namespace: shop, labels: {app: legacy, culvert.dev/mesh: disabled}}, spec: {serviceAccountName: legacy}, status: {podIP: 10.0.0.3}}
- {apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80}]}}
- {apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: nobody, namespace: shop}, spec: {}}
"#;

fn findings(items: &str) -> Vec<Finding> {
    lint(&objects(items))
}

fn objects(items: &str) -> Objects {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("objects.yaml");
    fs::write(&path, format!("apiVersion: v1\nkind: List\nitems:{items}")).unwrap();
    let mut objects = Objects::new(Settings {
        trust_domain: "cluster.local".parse().unwrap(),
        root_namespace: "culvert-system".to_owned(),
        readiness: Readiness::Enrollment,
    });
    objects.read(&Source::read(path).unwrap()).unwrap();
    objects
}

/// Checks what is found in the world with some items more, each as `code object field`, or `code` for no single object.
fn check(items: &str, expected: &[&str]) {
    check_alone(&format!("{WORLD}{items}"), expected);
}

fn check_alone(items: &str, expected: &[&str]) {
    let shown: Vec<_> = findings(items).iter().map(show).collect();
    assert_eq!(shown, expected, "{items}");
}

fn show(finding: &Finding) -> String {
    let object = finding.object.as_deref().and_then(|object| object.split_once(' ')).map(|(_, name)| name);
    [finding.code.as_str(), object.unwrap_or(""), &finding.field].join(" ").trim_end().to_owned()
}

/// An AuthorizationPolicy of the namespace `shop`.
fn policy(name: &str, spec: &str) -> String {
    format!(
        "- {{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: {name}, namespace: shop}}, spec: {{{spec}}}}}\n"
    )
}

/// A PeerAuthentication of the namespace `shop`.
fn peers(name: &str, spec: &str) -> String {
    format!(
        "- {{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: {name}, namespace: shop}}, spec: {{{spec}}}}}\n"
    )
}

/// A policy that permits a client that is there.
fn good(extra: &str) -> String {
    policy(
        "p",
        &format!("rules: [{{from: [{{source: {{principals: [cluster.local/ns/shop/sa/front]{extra}}}}}]}}]"),
    )
}

#[test]
fn nothing_is_found_where_nothing_is_odd() {
    check("", &[]);
    check(&good(""), &[]);
    check(&peers("strict", "mtls: {mode: STRICT}"), &[]);
}

#[test]
fn what_cannot_be_read_is_an_error_with_its_line() {
    check(
        &policy("p", "rules: [{from: [{source: {ipBlocks: [x]}}]}]"),
        &["unparsable shop/p spec.rules[0].from[0].source.ipBlocks[0]"],
    );
    check(&peers("p", "mtls: {mode: STRCIT}"), &["unparsable shop/p spec.mtls.mode"]);
    check(
        "- {apiVersion: v1, kind: Pod, metadata: {name: p, namespace: shop}, status: {podIP: x}}\n",
        &["invalid-object shop/p"],
    );
    let found = findings(&format!("{WORLD}{}", policy("p", "\n    action: PERMIT")));
    assert_eq!((found[0].line, found[0].severity), (Some(10), crate::control::Severity::Error));
}

#[test]
fn what_conversion_warns_of_is_found() {
    let source = |field: &str| policy("p", &format!("rules: [{{from: [{{source: {{{field}}}}}]}}]"));
    check(&source("colour: [red]"), &["unknown-field shop/p spec.rules[0].from[0].source.colour"]);
    check(
        &policy("p", "rules: [{when: [{key: weather, values: [fine]}]}]"),
        &["unknown-field shop/p spec.rules[0].when[0].values"],
    );
    check(
        &source("requestPrincipals: [\"*\"]"),
        &["unseen-by-l4 shop/p spec.rules[0].from[0].source.requestPrincipals"],
    );
    check(
        &policy("p", "rules: [{when: [{key: \"request.headers[x]\", values: [y]}]}]"),
        &["unseen-by-l4 shop/p spec.rules[0].when[0].values"],
    );
    check(&source("ipBlocks: [10.0.0.1/8]"), &["host-bits shop/p spec.rules[0].from[0].source.ipBlocks[0]"]);
    check(&source("ipBlocks: [10.0.0.0/8]"), &[]);
    check(
        &source("principals: [\"spiffe://cluster.local/ns/shop/sa/front\"]"),
        &["spiffe-scheme shop/p spec.rules[0].from[0].source.principals[0]"],
    );
    check(&policy("p", "action: AUDIT"), &["audit-ignored shop/p spec.action"]);
    check(
        &policy("p", "action: CUSTOM, rules: [{to: [{operation: {ports: [\"80\"]}}]}]"),
        &["custom-denies shop/p spec.action"],
    );
    check(
        &policy(
            "p",
            "targetRefs: [{kind: Service, group: \"\", name: web}], rules: [{to: [{operation: {ports: [\"80\"]}}]}]",
        ),
        &["target-refs shop/p spec.targetRefs[0]"],
    );
    check(&good("").replace(", spec", ", rules: [], spec"), &["stray-field shop/p rules"]);
}

#[test]
fn the_dry_run_annotation_is_explained() {
    let annotated = |value: &str, text: String| {
        text.replace(
            "namespace: shop",
            &format!("namespace: shop, annotations: {{istio.io/dry-run: \"{value}\"}}"),
        )
    };
    let field = "metadata.annotations[istio.io/dry-run]";
    check(&annotated("true", good("")), &[&format!("dry-run shop/p {field}")]);
    check(&annotated("yes", good("")), &[&format!("dry-run-value shop/p {field}")]);
    check(&annotated("false", good("")), &[]);
    check(
        &annotated("true", peers("p", "mtls: {mode: PERMISSIVE}")),
        &[&format!("dry-run-peer-authentication shop/p {field}")],
    );
}

#[test]
fn objects_that_do_not_count_are_found() {
    check(&(good("") + &good("")), &["duplicate-object shop/p"]);
    let old = peers("old", "mtls: {mode: STRICT}")
        .replace("shop}", "shop, creationTimestamp: \"2026-01-01T00:00:00Z\"}");
    check(
        &(peers("a-young", "mtls: {mode: STRICT}") + &old),
        &["ignored-peer-authentication shop/a-young spec"],
    );
    let web = |name| peers(name, "selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}");
    check(&(web("a") + &web("b")), &["ignored-peer-authentication shop/b spec"]);
    // Another level, and another selector.
    let front = peers("c", "selector: {matchLabels: {app: front}}, mtls: {mode: STRICT}");
    check(&(web("a") + &old + &front), &[]);
}

#[test]
fn policies_for_nobody_are_found() {
    let selecting = |app: &str| policy("p", &format!("selector: {{matchLabels: {{app: {app}}}}}"));
    check(&selecting("nothing"), &["selects-nothing shop/p spec.selector"]);
    check(&selecting("web"), &[]);
    check(&selecting("legacy"), &["not-enforced shop/p spec.selector"]);
    check(
        &policy("p", "targetRefs: [{kind: Service, group: \"\", name: nobody}]"),
        &["target-refs shop/p spec.targetRefs[0]", "selects-nothing shop/p spec.targetRefs"],
    );
    check(
        &peers("p", "selector: {matchLabels: {app: nothing}}, mtls: {mode: STRICT}"),
        &["selects-nothing shop/p spec.selector"],
    );
    check(
        &peers("p", "selector: {matchLabels: {app: legacy}}, mtls: {mode: STRICT}"),
        &["not-enforced shop/p spec.selector"],
    );
    // In the root namespace, a PeerAuthentication's selector selects in it alone.
    let root = peers("p", "selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}")
        .replace("shop", "culvert-system");
    check(&root, &["selects-nothing culvert-system/p spec.selector"]);
}

#[test]
fn rules_that_match_nothing_are_found() {
    let rule = |rule: &str| policy("p", &format!("rules: [{rule}]"));
    let found = &["never-matches shop/p spec.rules[0]"];
    check(&rule("{from: [{}]}"), found);
    check(&rule("{to: [{operation: {}}]}"), found);
    check(&rule("{from: [{source: {namespaces: [shop], notNamespaces: [\"sh*\"]}}]}"), found);
    check(&rule("{from: [{source: {ipBlocks: [10.1.0.0/16], notIpBlocks: [10.0.0.0/8]}}]}"), found);
    check(
        &rule(
            "{when: [{key: destination.port, values: [\"80\"]}, {key: destination.port, notValues: [\"80\"]}]}",
        ),
        found,
    );
    check(&policy("p", "action: DENY"), &["never-matches shop/p spec"]);
    check(
        &rule("{from: [{source: {principals: [front]}}]}"),
        &["never-matches shop/p spec.rules[0].from[0].source.principals"],
    );
    check(&rule("{from: [{}, {source: {namespaces: [shop]}}]}"), &[]);
    check(&rule("{from: [{source: {namespaces: [\"sh*\"], notNamespaces: [shopping]}}]}"), &[]);
    check(&rule("{from: [{source: {ipBlocks: [10.0.0.0/8], notIpBlocks: [10.1.0.0/16]}}]}"), &[]);
}

#[test]
fn rules_that_another_says_already_are_found() {
    let rules = |rules: &str| policy("p", &format!("rules: [{rules}]"));
    let ports = |ports: &str| format!("{{to: [{{operation: {{ports: [{ports}]}}}}]}}");
    let (narrow, wide) = (ports("\"80\""), ports("\"80\", \"81\""));
    check(&rules(&format!("{wide}, {narrow}")), &["shadowed-rule shop/p spec.rules[1]"]);
    check(&rules(&format!("{narrow}, {wide}")), &["shadowed-rule shop/p spec.rules[0]"]);
    check(&rules(&format!("{narrow}, {narrow}")), &["duplicate-rule shop/p spec.rules[1]"]);
    check(&rules(&format!("{narrow}, {}", ports("\"81\""))), &[]);
    let from = |source: &str| format!("{{from: [{{source: {{{source}}}}}]}}");
    let pair = |one: &str, other: &str| rules(&format!("{}, {}", from(one), from(other)));
    check(&pair("namespaces: [\"sh*\"]", "namespaces: [shop]"), &["shadowed-rule shop/p spec.rules[1]"]);
    check(
        &pair("namespaces: [\"sh*\"]", "namespaces: [shop], ipBlocks: [10.0.0.2]"),
        &["shadowed-rule shop/p spec.rules[1]"],
    );
    check(
        &pair("ipBlocks: [10.0.0.0/8]", "ipBlocks: [10.1.0.0/16]"),
        &["shadowed-rule shop/p spec.rules[1]"],
    );
    check(
        &pair("notIpBlocks: [10.1.0.0/16]", "notIpBlocks: [10.0.0.0/8]"),
        &["shadowed-rule shop/p spec.rules[1]"],
    );
    check(&pair("ipBlocks: [\"::/0\"]", "ipBlocks: [10.1.0.0/16]"), &[]);
    check(&pair("namespaces: [shop]", "ipBlocks: [10.1.0.0/16]"), &[]);
    // Between policies, as far as one reaches all pods of the other.
    let web = policy("web", &format!("selector: {{matchLabels: {{app: web}}}}, rules: [{narrow}]"));
    check(&(rules(&wide) + &web), &["shadowed-rule shop/web spec.rules[0]"]);
    check(&(rules(&narrow) + &web.replace(&narrow, &wide)), &[]);
    let deny = policy("deny", &format!("action: DENY, rules: [{wide}]"));
    check(&(deny + &good("")), &[]);
}

#[test]
fn allow_rules_that_deny_policies_undo_are_found() {
    let deny = |rules: &str| policy("deny", &format!("action: DENY, rules: [{rules}]"));
    check(&(deny("{}") + &good("")), &["moot-allow shop/p spec.rules[0]"]);
    check(
        &(deny("{from: [{source: {ipBlocks: [10.0.0.0/8]}}]}") + &good(", ipBlocks: [10.0.0.2]")),
        &["moot-allow shop/p spec.rules[0]"],
    );
    check(&(deny("{from: [{source: {ipBlocks: [10.0.0.2]}}]}") + &good(", ipBlocks: [10.0.0.0/8]")), &[]);
    // What L4 cannot see counts as matching in a DENY policy.
    check(
        &(deny("{to: [{operation: {methods: [GET]}}]}") + &good("")),
        &["unseen-by-l4 shop/deny spec.rules[0].to[0].operation.methods", "moot-allow shop/p spec.rules[0]"],
    );
}

#[test]
fn namespaces_without_a_default_deny_are_found() {
    let bare = WORLD.lines().filter(|line| !line.contains("nobody")).collect::<Vec<_>>().join("\n") + "\n";
    check_alone(&bare, &["no-default-deny shop/front metadata"]);
    let namespace =
        "- {apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {culvert.dev/mesh: enabled}}}\n";
    let found = findings(&format!("{bare}{namespace}"));
    assert_eq!(found[0].object.as_deref(), Some("Namespace shop"));
    let of_web = policy("p", "selector: {matchLabels: {app: web}}");
    check_alone(&format!("{bare}{of_web}"), &["no-default-deny shop/p metadata"]);
    check_alone(
        &format!(
            "{bare}{}",
            of_web.replace("shop", "culvert-system").replace("selector: {matchLabels: {app: web}}", "")
        ),
        &[],
    );
    check_alone(&format!("{bare}{}", policy("p", "action: DENY, rules: [{}]")), &[]);
    let dry = policy("p", "").replace("shop}", "shop, annotations: {istio.io/dry-run: \"true\"}}");
    check_alone(
        &format!("{bare}{dry}"),
        &["no-default-deny shop/p metadata", "dry-run shop/p metadata.annotations[istio.io/dry-run]"],
    );
}

#[test]
fn strict_without_clients_is_found() {
    let alone = WORLD.lines().filter(|line| !line.contains("front")).collect::<Vec<_>>().join("\n") + "\n";
    let found = &["strict-without-clients shop/strict spec.mtls"];
    check_alone(&format!("{alone}{}", peers("strict", "mtls: {mode: STRICT}")), found);
    check_alone(&format!("{alone}{}", peers("strict", "mtls: {mode: PERMISSIVE}")), &[]);
    check(&peers("strict", "mtls: {mode: STRICT}"), &[]);
}

#[test]
fn files_without_pods_say_so() {
    check_alone(&format!("\n{}", policy("p", "")), &["no-pods"]);
    check_alone(" []\n", &[]);
}

#[test]
fn codes_are_documented_with_their_severity_and_have_names_of_their_own() {
    let docs = include_str!("../../../../../docs/policy.md");
    for code in Code::ALL {
        let row = format!("| `{}` | {} |", code.as_str(), code.severity().as_str());
        assert!(docs.contains(&row), "docs/policy.md has no row {row}");
    }
    let names: BTreeSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(names.len(), Code::ALL.len());
}
