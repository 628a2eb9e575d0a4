//! Connections that live while policy changes: each is cut where it is permitted no longer, and left alone where it is.

use std::{thread, time::Duration};

use lab::{PATIENCE, eventually, tcp};

use crate::{
    objects::{allow, deny, deny_tier, from, mode},
    world::{PORT, World, open, wait_cut, works},
};

const CLIENT: &str = "cluster.local/ns/front/sa/client";
const OTHER: &str = "cluster.local/ns/back/sa/other";

#[test]
fn a_tunnel_is_cut_when_its_permission_ends_and_another_goes_on() {
    let world = World::start();
    let server = world.server.serve(PORT, tcp::echo).unwrap();
    world.apply(&[allow("both", &from("principals", &[CLIENT, OTHER]))]);
    let mut kept = open(&world.client, world.server.at(PORT));
    let lost = open(&world.other, world.server.at(PORT));
    let address = lost.local_addr().unwrap();
    world.apply(&[allow("one", &from("principals", &[CLIENT]))]);
    wait_cut(lost);
    tcp::ping(&mut kept, "still here").unwrap();
    // The application has lost it too.
    eventually(PATIENCE, || server.open() == 1);
    let line = world.line_from(address);
    assert_eq!(line.reason().as_deref(), Some("policy_revoked"), "{line:?}");
    assert_eq!(line.field("policy"), None, "it was another one that permitted it: {line:?}");
    assert!(line.field("error").is_some_and(|error| error.contains("shop/one")), "{line:?}");
    assert_eq!(line.bytes_sent(), "hello".len() as u64);
}

#[test]
fn inspected_plaintext_is_cut_when_its_permission_ends_and_another_goes_on() {
    let world = World::start();
    let server = world.server.serve(PORT, tcp::echo).unwrap();
    world.apply(&[deny("nobody", &from("ipBlocks", &["192.0.2.1"]))]);
    let mut kept = open(&world.neighbour, world.server.at(PORT));
    let lost = open(&world.stranger, world.server.at(PORT));
    let address = lost.local_addr().unwrap();
    world.apply(&[deny("stranger", &from("ipBlocks", &[&address.ip().to_string()]))]);
    wait_cut(lost);
    tcp::ping(&mut kept, "still here").unwrap();
    eventually(PATIENCE, || server.open() == 1);
    let line = world.line_from(address);
    assert_eq!(line.reason().as_deref(), Some("policy_revoked"), "{line:?}");
    assert_eq!(line.field("policy").as_deref(), Some("shop/stranger"), "{line:?}");
    assert_eq!(line.bytes_sent(), "hello".len() as u64);
    world.wait_verdicts("shop/stranger", "deny", "enforced", 1.0);
}

#[test]
fn an_agent_that_drains_goes_on_to_hold_connections_to_policy() {
    let world = World::start();
    let _server = world.server.serve(PORT, tcp::echo).unwrap();
    let mut kept = open(&world.client, world.server.at(PORT));
    let lost = open(&world.other, world.server.at(PORT));
    let address = lost.local_addr().unwrap();
    world.b.begin_terminate();
    eventually(PATIENCE, || world.b.ready().is_err());
    tcp::ping(&mut kept, "still here").unwrap();
    world.write(&[allow("one", &from("principals", &[CLIENT]))]);
    wait_cut(lost);
    // Not by the end of the grace period.
    assert_eq!(world.line_from(address).reason().as_deref(), Some("policy_revoked"));
    tcp::ping(&mut kept, "still here").unwrap();
}

#[test]
fn a_change_of_the_pods_labels_counts_as_one_of_policy() {
    let world = World::start();
    let _server = world.server.serve(PORT, tcp::echo).unwrap();
    world.apply(&[deny_tier("closed", "closed")]);
    let tunnel = open(&world.client, world.server.at(PORT));
    let plaintext = open(&world.stranger, world.server.at(PORT));
    let relabel = |tier: &str| {
        let tier = tier.to_owned();
        world.server.update(move |pod| drop(pod.labels.insert("tier".to_owned(), tier))).unwrap();
    };
    relabel("closed");
    wait_cut(tunnel);
    wait_cut(plaintext);
    relabel("open");
    eventually(PATIENCE, || works(&world.client, world.server.at(PORT)));
}

#[test]
fn what_is_on_trial_cuts_nothing() {
    let world = World::start();
    let _server = world.server.serve(PORT, tcp::echo).unwrap();
    let mut streams =
        [open(&world.client, world.server.at(PORT)), open(&world.stranger, world.server.at(PORT))];
    world.apply(&[deny("trial", "[{}]").dry_run()]);
    for stream in &mut streams {
        tcp::ping(stream, "still here").unwrap();
    }
    // Control: what cuts them reaches them.
    world.apply(&[deny("earnest", "[{}]")]);
    streams.into_iter().for_each(wait_cut);
}

#[test]
fn a_pods_connection_to_itself_goes_on_whatever_changes() {
    let world = World::start();
    let _server = world.server.serve(PORT, tcp::echo).unwrap();
    let mut own = open(&world.server, world.service.address(80));
    let other = open(&world.other, world.server.at(PORT));
    world.apply(&[mode("strict", "STRICT"), allow("clients", &from("principals", &[CLIENT]))]);
    wait_cut(other);
    tcp::ping(&mut own, "still here").unwrap();
}

#[test]
fn a_pod_that_leaves_takes_plaintext_and_its_tunnels_are_still_held_to_policy() {
    let world = World::start();
    let _server = world.server.serve(PORT, tcp::echo).unwrap();
    let both = || [mode("strict", "STRICT"), allow("both", &from("principals", &[CLIENT, OTHER]))];
    world.apply(&both());
    let mut kept = open(&world.client, world.server.at(PORT));
    let lost = open(&world.other, world.server.at(PORT));
    world.server.unenroll().unwrap();
    eventually(PATIENCE, || works(&world.stranger, world.server.at(PORT)));
    world.write(&[mode("strict", "STRICT"), allow("one", &from("principals", &[CLIENT]))]);
    wait_cut(lost);
    tcp::ping(&mut kept, "still here").unwrap();
    // Back in the mesh, it is as at first, and what came meanwhile goes on as what is older than any enrolment does.
    let mut meanwhile = open(&world.stranger, world.server.at(PORT));
    world.server.enroll().unwrap();
    eventually(PATIENCE, || match works(&world.stranger, world.server.at(PORT)) {
        Err(_) => Ok(()),
        Ok(()) => Err("plaintext still comes in"),
    });
    // Also after the two seconds in which connections are looked at again that came just before a change of policy.
    thread::sleep(Duration::from_secs(3));
    tcp::ping(&mut meanwhile, "still here").unwrap();
    tcp::ping(&mut kept, "still here").unwrap();
}
