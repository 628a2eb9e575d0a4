//! Connections that are refused: to the client it looks the same as with a tunnel, and both lines say why.

use lab::{AccessRecord, PATIENCE, eventually, tcp};

use crate::world::{PORT, World, connect_from, open, wait_refused};

#[test]
fn policy_refuses_before_the_application_sees_anything() {
    let world = World::start();
    let World { client, server, agent, .. } = &world;
    let serving = server.serve(PORT, tcp::echo).unwrap();
    let from =
        format!("{{source: {{principals: [{:?}]}}}}", client.identity().trim_start_matches("spiffe://"));
    world.apply("lockdown", &format!("{{action: DENY, rules: [{{from: [{from}]}}]}}"));
    wait_refused(client, server.at(PORT));
    // A client whose `connect` was reset does not know its address; this is the only connection.
    let address = eventually(PATIENCE, || agent.access_log().iter().find_map(AccessRecord::source));
    let [source, destination] = world.lines(address);
    assert_eq!(source.reason().as_deref(), Some("peer_denied"), "{source:?}");
    assert_eq!(destination.reason().as_deref(), Some("policy_denied"), "{destination:?}");
    assert_eq!(destination.field("policy").as_deref(), Some("default/lockdown"), "{destination:?}");
    assert_eq!(destination.source_identity(), Some(client.identity()));
    for line in [source, destination] {
        assert!(line.field("error").is_some_and(|error| error.contains("default/lockdown")), "{line:?}");
    }
    let denied = [("policy", "default/lockdown"), ("verdict", "deny"), ("mode", "enforced")];
    assert_eq!(agent.metrics().unwrap().sum("culvert_policy_verdicts_total", &denied), 1.0);
    assert_eq!(serving.accepted(), 0);
    world.assert_no_tunnel();
}

#[test]
fn what_is_on_trial_refuses_nothing_and_is_reported() {
    let world = World::start();
    let World { client, server, mesh, .. } = &world;
    let _echo = server.serve(PORT, tcp::echo).unwrap();
    let object = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                  metadata: {name: trial, namespace: default, annotations: {istio.io/dry-run: \"true\"}}\nspec: {}\n";
    mesh.apply("policies.yaml", object).unwrap();
    let line = eventually(PATIENCE, || {
        let stream = open(client, server.at(PORT));
        let address = stream.local_addr().unwrap();
        drop(stream);
        let line = world.line("inbound", address);
        line.field("dry_run").is_some().then_some(line)
    });
    assert!(line.is_ok(), "{line:?}");
    assert!(line.field("dry_run").unwrap().starts_with("deny"), "{line:?}");
}

#[test]
fn an_application_that_does_not_listen_is_told_from_a_refusal() {
    let world = World::start();
    let World { client, server, agent, .. } = &world;
    wait_refused(client, server.at(PORT));
    let metrics = || agent.metrics().unwrap();
    for (reporter, reason) in [("source", "peer_unavailable"), ("destination", "dial_failed")] {
        let labels = [("reporter", reporter), ("reason", reason)];
        eventually(PATIENCE, || metrics().sum("culvert_connections_failed_total", &labels) == 1.0);
    }
    world.assert_no_tunnel();
}

/// An address that a pod has given itself: across the network nothing would come back to it. Taken at its word, a pod
/// could be where `ipBlocks` let others in.
#[test]
fn an_address_that_is_not_the_pods_own_gets_no_further_than_through_a_tunnel() {
    let world = World::start();
    let World { client, other, server, agent, .. } = &world;
    let serving = server.serve(PORT, tcp::echo).unwrap();
    let stolen = other.ipv4();
    client.sh(&format!("ip addr add {stolen}/32 dev lo")).unwrap();
    let target = server.at_v4(PORT);
    let ending = connect_from(client, stolen, target).and_then(|mut stream| tcp::ping(&mut stream, "hello"));
    assert!(ending.is_err(), "it was taken at its word");
    assert_eq!(serving.accepted(), 0);
    let line = eventually(PATIENCE, || agent.access_log().into_iter().find(|line| line.is_from(stolen)));
    assert_eq!((line.field("same_node"), line.is_ok()), (None, false), "{line:?}");
    // The same socket with the pod's own address.
    open(client, target);
}

#[test]
fn room_is_shared_at_both_ends() {
    let world = World::with(|_| vec!["--max-connections".to_owned(), "16".to_owned()]);
    let World { client, other, server, agent, .. } = &world;
    let _echo = server.serve(PORT, tcp::echo).unwrap();
    let mut held = Vec::new();
    while held.len() < 16 {
        let Ok(mut stream) = client.connect(server.at(PORT)) else { break };
        if tcp::ping(&mut stream, "hello").is_err() {
            break;
        }
        held.push(stream);
    }
    // A connection takes a place at either end, and one client may hold no more than is free.
    assert!((2..=8).contains(&held.len()), "{}", held.len());
    let overload = [("reason", "overload")];
    eventually(PATIENCE, || {
        agent.metrics().unwrap().sum("culvert_connections_failed_total", &overload) >= 1.0
    });
    open(other, server.at(PORT));
    let most = held.len();
    drop(held);
    eventually(PATIENCE, || {
        let open: Vec<_> = (0..most).map_while(|_| client.connect(server.at(PORT)).ok()).collect();
        open.into_iter().all(|mut stream| tcp::ping(&mut stream, "again").is_ok())
    });
}
