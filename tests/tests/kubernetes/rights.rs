//! The service accounts can do what they need, and nothing else.

use lab::Cluster;
use serde_json::Value;

use crate::world::{ROOT, shared};

/// What a service account may do: verbs, resource, and where it is limited to one, the object's name.
fn rights(cluster: &Cluster, account: &str, namespace: &str) -> Vec<String> {
    let user = format!("system:serviceaccount:{ROOT}:{account}");
    let review = serde_json::json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": namespace},
    });
    let args = [
        "create",
        "--validate=false",
        "-f",
        "-",
        "-o",
        "json",
        "--as",
        &user,
        "--as-group=system:serviceaccounts",
        "--as-group=system:authenticated",
    ];
    let said = cluster.kubectl(&args, &review.to_string()).unwrap();
    let said: Value = serde_json::from_str(&said).unwrap();
    let words = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|word| Some(word.as_str()?.to_owned())).collect()
    };
    let mut rights = Vec::new();
    for rule in said["status"]["resourceRules"].as_array().unwrap() {
        for resource in words(&rule["resources"]) {
            let mut verbs = words(&rule["verbs"]);
            verbs.sort();
            let names = words(&rule["resourceNames"]).join(",");
            let names = if names.is_empty() { String::new() } else { format!(" {names}") };
            rights.push(format!("{resource}{names}: {}", verbs.join(" ")));
        }
    }
    rights.sort();
    rights.dedup();
    // Everybody may ask who he is and what he may.
    rights.retain(|right| !right.starts_with("selfsubject"));
    rights
}

#[test]
fn the_agents_may_do_what_they_need_and_nothing_else() {
    let (cluster, _used) = shared();
    let everywhere = [
        "authorizationpolicies/status: patch",
        "authorizationpolicies: get list watch",
        "endpointslices: get list watch",
        "events: create patch",
        "namespaces: get list watch",
        "nodes: get list watch",
        "peerauthentications/status: patch",
        "peerauthentications: get list watch",
        "pods/status: patch",
        "pods: get list watch",
        "services: get list watch",
    ];
    assert_eq!(rights(cluster, "culvert", "default"), everywhere);
    let mut at_home: Vec<_> = everywhere.map(str::to_owned).to_vec();
    at_home.extend(
        [
            "leases culvert-policy-status: get update",
            "leases: create",
            "serviceaccounts/token culvert-cni: create",
        ]
        .map(str::to_owned),
    );
    at_home.sort();
    assert_eq!(rights(cluster, "culvert", ROOT), at_home);
}

#[test]
fn the_cni_plugin_may_look_at_the_pod_that_starts_and_nothing_else() {
    let (cluster, _used) = shared();
    for namespace in ["default", ROOT] {
        assert_eq!(rights(cluster, "culvert-cni", namespace), ["namespaces: get", "pods: get"]);
    }
}

#[test]
fn the_authority_may_do_what_it_needs_and_nothing_else() {
    let (cluster, _used) = shared();
    let everywhere = rights(cluster, "culvert-ca", "default");
    assert_eq!(everywhere, ["pods: get list watch", "tokenreviews: create"]);
    let at_home = rights(cluster, "culvert-ca", ROOT);
    for right in &at_home {
        let secret = right.starts_with("secrets");
        assert!(!secret || right.contains("culvert-ca") || right == "secrets: create", "{at_home:?}");
        assert!(!right.contains('*'), "{at_home:?}");
    }
}
