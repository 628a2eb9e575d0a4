//! What people see of it: lines, metrics, and the pages of the agent.

use std::io::ErrorKind;

use lab::{PATIENCE, eventually, tcp};
use serde_json::Value;

use crate::{
    objects::{allow, deny, from, mode},
    world::{PORT, World, open, refusal},
};

#[test]
fn a_denial_names_both_ends_and_what_did_not_match() {
    let world = World::start();
    let _server = world.server.serve(PORT, tcp::echo).unwrap();
    let rules = from("principals", &["cluster.local/ns/front/sa/client"]);
    world.apply(&[allow("clients", &rules)]);
    assert_eq!(refusal(&world.other, world.server.at(PORT)), ErrorKind::ConnectionReset);
    let line = eventually(PATIENCE, || world.lines_of(&world.other).pop());
    assert_eq!(line.reason().as_deref(), Some("policy_denied"), "{line:?}");
    assert_eq!(line.source_identity().as_deref(), Some("spiffe://cluster.local/ns/back/sa/other"));
    assert_eq!(line.field("src.workload").as_deref(), Some("other"));
    assert_eq!(line.destination(), Some(world.server.at(PORT)));
    assert_eq!(line.field("dst.workload").as_deref(), Some("server"));
    let error = line.field("error").unwrap_or_default();
    assert!(error.contains("shop/clients"), "{error}");
    assert!(error.contains("rules[0].from[0].source.principals"), "{error}");
    world.wait_verdicts("none", "deny", "enforced", 1.0);

    // The other side is told no more than that.
    let line =
        eventually(PATIENCE, || world.a.access_log().into_iter().find(|line| line.is_from(world.other.ip())));
    assert_eq!(line.reason().as_deref(), Some("peer_denied"), "{line:?}");
    let error = line.field("error").unwrap_or_default();
    assert!(error.contains("policy") && !error.contains("shop/clients"), "{error}");

    let stream = open(&world.client, world.server.at(PORT));
    let line = world.line_from_closed(stream);
    assert_eq!(line.field("policy").as_deref(), Some("shop/clients"));
    world.wait_verdicts("shop/clients", "allow", "enforced", 1.0);
}

#[test]
fn a_policy_on_trial_is_counted_and_logged_and_not_enforced() {
    let world = World::start();
    let _server = world.server.serve(PORT, tcp::echo).unwrap();
    world.apply(&[deny("trial", "[{}]").dry_run()]);
    for pod in [&world.client, &world.stranger] {
        let stream = open(pod, world.server.at(PORT));
        let line = world.line_from_closed(stream);
        assert!(line.is_ok(), "{line:?}");
        assert_eq!(line.field("dry_run").as_deref(), Some("deny shop/trial"), "{line:?}");
    }
    world.wait_verdicts("shop/trial", "deny", "dry_run", 2.0);
    world.wait_verdicts("none", "allow", "enforced", 2.0);
    // Control: the same in earnest.
    world.apply(&[deny("earnest", "[{}]")]);
    assert_eq!(refusal(&world.client, world.server.at(PORT)), ErrorKind::ConnectionReset);
    assert_eq!(refusal(&world.stranger, world.server.at(PORT)), ErrorKind::ConnectionRefused);
}

#[test]
fn the_agent_says_what_a_pod_is_held_to_and_why() {
    let world = World::start();
    let rules = from("principals", &["cluster.local/ns/front/sa/client"]);
    world.apply(&[mode("strict", "STRICT"), allow("clients", &rules)]);
    let dump: Value = serde_json::from_str(&world.b.get_private("/config_dump").unwrap().body).unwrap();
    let pods = dump["pods"].as_array().unwrap();
    let [pod] = pods.as_slice() else { panic!("{pods:?}") };
    assert_eq!(pod["policy"]["mode"], "STRICT", "{pod}");
    assert_eq!(pod["policy"]["plaintext"]["otherwise"], "refuse", "{pod}");
    assert_eq!(pod["policy"]["policies"], serde_json::json!(["shop/clients", "shop/strict"]), "{pod}");

    let explain = |agent: &lab::Agent, from: &str| {
        agent.get_private(&format!("/policy/explain?from={from}&to=shop/server:8080")).unwrap()
    };
    let denied = explain(&world.b, "back/other");
    assert_eq!(denied.status, 200, "{}", denied.body);
    assert!(denied.body.contains("shop/clients") || denied.body.contains("clients"), "{}", denied.body);
    assert_ne!(explain(&world.b, "front/client").body, denied.body);
    assert_eq!(explain(&world.b, "no/body").status, 400);
    let socket = world.b.socket().display().to_string();
    let ask = ["policy", "explain", "--from", "back/other", "--to", "shop/server:8080", "--agent", &socket];
    let shown = String::from_utf8(world.b.cli(&ask).unwrap().stdout).unwrap();
    assert!(
        shown.contains("shop/clients") && shown.contains("rules[0].from[0].source.principals"),
        "{shown}"
    );
    // Not for anybody.
    assert_eq!(world.b.get("/policy/explain?from=front/client&to=shop/server:8080").unwrap().status, 404);
}
