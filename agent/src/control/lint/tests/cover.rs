//! Whatever a rule matches that another is said to cover, that other one matches: asked of the evaluation itself.

use super::*;
use crate::mesh::Answer;

const SOURCES: [&str; 18] = [
    "",
    "namespaces: [shop]",
    "namespaces: [\"sh*\"]",
    "namespaces: [\"*\"]",
    "notNamespaces: [shop]",
    "notNamespaces: [shop, blog]",
    "principals: [cluster.local/ns/shop/sa/front]",
    "principals: [\"*/sa/front\"]",
    "principals: [\"cluster.local/*\"], notPrincipals: [\"*/back\"]",
    "ipBlocks: [10.0.0.0/8]",
    "ipBlocks: [10.1.0.0/16]",
    "ipBlocks: [\"::/0\"]",
    "notIpBlocks: [10.0.0.0/8]",
    "notIpBlocks: [10.1.0.0/16]",
    "requestPrincipals: [x]",
    "namespaces: [shop], requestPrincipals: [x]",
    "serviceAccounts: [front]",
    "trustDomains: [cluster.local]",
];
const OPERATIONS: [&str; 5] =
    ["", "ports: [\"80\"]", "ports: [\"80\", \"81\"]", "notPorts: [\"80\"]", "methods: [GET]"];
const CONDITIONS: [&str; 3] =
    ["", "key: source.namespace, values: [shop]", "key: source.namespace, values: [shop, blog]"];
const CLIENTS: [&str; 7] = [
    "10.1.0.1",
    "10.2.0.1",
    "192.0.2.1",
    "spiffe://cluster.local/ns/shop/sa/front@10.1.0.1",
    "spiffe://cluster.local/ns/shop/sa/back@192.0.2.1",
    "spiffe://cluster.local/ns/blog/sa/front@10.2.0.1",
    "spiffe://cluster.local/ns/far/sa/x@10.1.0.1",
];

/// A policy for each action, each with one rule, of each source with each operation and each condition.
fn policies() -> String {
    let mut items = String::new();
    for (at, source) in SOURCES.iter().enumerate() {
        for (beside, operation) in OPERATIONS.iter().enumerate() {
            for (under, condition) in CONDITIONS.iter().enumerate() {
                let clause = |name: &str, entry: String, fields: &str| {
                    if fields.is_empty() { String::new() } else { format!("{name}: [{{{entry}}}], ") }
                };
                let rule = clause("from", format!("source: {{{source}}}"), source)
                    + &clause("to", format!("operation: {{{operation}}}"), operation)
                    + &clause("when", (*condition).to_owned(), condition);
                for action in ["ALLOW", "DENY"] {
                    let name = format!("{}-{at}-{beside}-{under}", action.to_lowercase());
                    items += &policy(&name, &format!("action: {action}, rules: [{{{rule}}}]"));
                }
            }
        }
    }
    items
}

#[test]
fn rules_that_cover_others_match_what_they_match() {
    let snapshot = objects(&format!("{WORLD}{}", policies())).snapshot_enrolling_by_default();
    let asked =
        CLIENTS.iter().flat_map(|client| [80, 81, 82].map(|port| (client, format!("shop/web:{port}"))));
    let answers: Vec<_> =
        asked.map(|(client, server)| Answer::find(client, &server, &snapshot).unwrap()).collect();
    let policies: Vec<_> =
        snapshot.policies().authorization().iter().filter(|policy| policy.rules().len() == 1).collect();
    // Both are in the order of the names; `nobody` has no rule.
    let matched = |answer: &Answer| -> Vec<bool> {
        let explained = answer.explanation.policies.iter().filter(|policy| policy.rules.len() == 1);
        explained.map(|policy| policy.matches).collect()
    };
    let matched: Vec<_> = answers.iter().map(matched).collect();
    assert!(matched.iter().all(|matched| matched.len() == policies.len()));
    let mut covered = 0;
    for (at, one) in policies.iter().enumerate() {
        for (beside, other) in policies.iter().enumerate() {
            if !one.rules()[0].covers(one.action, &other.rules()[0], other.action) {
                continue;
            }
            covered += 1;
            let holds = matched.iter().all(|matched| matched[at] || !matched[beside]);
            assert!(holds, "{} is said to cover {}", one.name, other.name);
        }
    }
    assert!(covered > 5000, "only {covered} pairs");
}
