//! The definitions of policies: ours at a real API server, and their absence.

use lab::{Agent, PATIENCE, eventually};
use serde_json::{Value, json};

use crate::world::{World, definitions, readiness};

/// An object of `security.istio.io` in `shop`.
fn policy(version: &str, kind: &str, name: &str, spec: &Value) -> String {
    json!({"apiVersion": format!("security.istio.io/{version}"), "kind": kind,
        "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
    .to_string()
}

/// Waits until the detail of an agent's readiness is as wanted.
fn eventually_says(agent: &Agent, wanted: impl Fn(&str) -> bool) {
    eventually(PATIENCE, || {
        let (_, body) = readiness(agent);
        if wanted(&body) { Ok(()) } else { Err(body) }
    });
}

#[test]
fn policies_count_once_their_definitions_are_installed_without_a_restart() {
    let world = World::without_definitions();
    world.grant();
    let agent = world.ready_agent("node-a");
    // Each kind is asked for on its own: one may be known not to be there before the other.
    eventually_says(&agent, |body| body.contains("does not know PeerAuthentication, AuthorizationPolicy"));
    world.install_definitions();
    world.server.apply(&policy("v1", "AuthorizationPolicy", "late", &json!({}))).unwrap();
    eventually(PATIENCE, || agent.get_private("/config_dump").unwrap().body.contains("shop/late"));
    eventually_says(&agent, |body| !body.contains("does not know"));
}

#[test]
fn definitions_take_every_documented_form_and_refuse_a_wrong_word() {
    let world = World::without_definitions();
    world.server.kubectl(&["apply", "--dry-run=server", "-f", "-"], &definitions()).unwrap();
    world.install_definitions();
    let selector = json!({"matchLabels": {"app": "web"}});
    let source = json!({"namespaces": ["shop"], "notServiceAccounts": ["shop/batch"], "principals": ["*"],
        "trustDomains": ["cluster.local"], "ipBlocks": ["10.0.0.0/8"], "remoteIpBlocks": ["10.0.0.0/8"],
        "requestPrincipals": ["*"]});
    let operation = json!({"ports": ["8080"], "methods": ["GET"], "hosts": ["*"], "notPaths": ["/x"]});
    let rule = json!({"from": [{"source": source}], "to": [{"operation": operation}],
        "when": [{"key": "source.namespace", "values": ["shop"]}, {"key": "destination.port", "notValues": ["1"]}]});
    let target = json!({"group": "", "kind": "Service", "name": "web"});
    let authorization = [
        json!({}),
        json!({"rules": [{}]}),
        json!({"action": "DENY", "selector": selector, "rules": [rule]}),
        json!({"action": "CUSTOM", "provider": {"name": "ext"}, "rules": [{}]}),
        json!({"action": "AUDIT", "targetRefs": [target]}),
        json!({"targetRef": target}),
    ];
    let mode = |mode: &str| json!({"mode": mode});
    let authentication = [
        json!({}),
        json!({"mtls": mode("STRICT")}),
        json!({"mtls": mode("UNSET"), "selector": selector,
            "portLevelMtls": {"9090": mode("PERMISSIVE"), "80": mode("DISABLE")}}),
    ];
    let kinds = [("AuthorizationPolicy", &authorization[..]), ("PeerAuthentication", &authentication[..])];
    for (kind, specs) in kinds {
        for (number, spec) in specs.iter().enumerate() {
            for version in ["v1", "v1beta1"] {
                world.server.apply(&policy(version, kind, &format!("p{number}"), spec)).unwrap();
            }
        }
    }
    let wrong = [
        policy("v1", "AuthorizationPolicy", "wrong", &json!({"action": "PERMIT"})),
        policy("v1", "PeerAuthentication", "wrong", &json!({"mtls": {"mode": "SOMETIMES"}})),
        policy(
            "v1",
            "AuthorizationPolicy",
            "wrong",
            &json!({"rules": [{"to": [{"operation": {"ports": [80]}}]}]}),
        ),
    ];
    for wrong in wrong {
        assert!(world.server.apply(&wrong).is_err(), "{wrong} was taken");
    }
    // What is not known must reach the agents, which fail closed for it.
    let typo = json!({"rules": [{"from": [{"source": {"principal": ["x"]}}]}]});
    let typo = policy("v1", "AuthorizationPolicy", "typo", &typo);
    world.server.kubectl(&["create", "--validate=false", "-f", "-"], &typo).unwrap();
    let kept = world.field("authorizationpolicy", "typo", "{.spec.rules[0].from[0].source.principal[0]}");
    assert_eq!(kept, "x");
}
