//! Connections that bypass the agent while policy changes: the kernel ends what is permitted no longer.

use std::io::ErrorKind;

use lab::{PATIENCE, eventually, tcp};

use crate::{
    objects::{allow, deny, from, mode},
    world::{PORT, World, open, refusal, wait_cut, works},
};

#[test]
fn direct_plaintext_is_cut_when_its_permission_ends_and_another_goes_on() {
    let world = World::start();
    let server = world.server.serve(PORT, tcp::echo).unwrap();
    let mut kept = open(&world.neighbour, world.server.at_v4(PORT));
    let mut probe = world.mesh.node("node-b").connect(world.server.at_v4(PORT)).unwrap();
    let lost =
        [open(&world.stranger, world.server.at_v4(PORT)), open(&world.stranger, world.server.at_v6(PORT))];
    let addresses = lost.each_ref().map(|stream| stream.local_addr().unwrap());
    // Control: none of them is the agent's.
    assert_eq!(world.lines_of(&world.stranger).len(), 0);
    let neighbour = world.neighbour.ipv4().to_string();
    world.apply(&[allow("neighbour", &from("ipBlocks", &[&neighbour]))]);
    for (stream, address) in lost.into_iter().zip(addresses) {
        wait_cut(stream);
        let line = world.line_from(address);
        assert_eq!(line.reason().as_deref(), Some("policy_revoked"), "{line:?}");
        assert_eq!(line.destination().map(|target| target.port()), Some(PORT));
        assert!(line.field("error").is_some_and(|error| error.contains("shop/neighbour")), "{line:?}");
    }
    tcp::ping(&mut kept, "still here").unwrap();
    tcp::ping(&mut probe, "still here").unwrap();
    eventually(PATIENCE, || server.open() == 2);
    eventually(PATIENCE, || {
        world.b.metrics().unwrap().sum("culvert_policy_unenforced_connections", &[]) == 0.0
    });
    // From strict no plaintext is kept; the node's own is none of policy's business.
    world.apply(&[mode("strict", "STRICT")]);
    wait_cut(kept);
    tcp::ping(&mut probe, "still here").unwrap();
}

#[test]
fn enrolment_leaves_connections_alone_and_a_change_of_policy_does_not() {
    let world = World::start();
    let late = world.mesh.pod("late").namespace("shop").on("node-b").start().unwrap();
    let _server = late.serve(PORT, tcp::echo).unwrap();
    world.apply(&[mode("strict", "STRICT")]);
    let mut old = open(&world.stranger, late.at(PORT));
    late.enroll().unwrap();
    eventually(PATIENCE, || match works(&world.stranger, late.at(PORT)) {
        Err(_) => Ok(()),
        Ok(()) => Err("plaintext still comes in"),
    });
    assert_eq!(refusal(&world.stranger, late.at(PORT)), ErrorKind::ConnectionRefused);
    tcp::ping(&mut old, "older than enrolment").unwrap();
    world.apply(&[mode("strict", "STRICT"), deny("everybody", "[{}]")]);
    wait_cut(old);
}

#[test]
fn a_policy_that_changed_while_no_agent_ran_is_made_up_for() {
    let world = World::start();
    let _server = world.server.serve(PORT, tcp::echo).unwrap();
    let mut kept = open(&world.neighbour, world.server.at_v4(PORT));
    let lost = open(&world.stranger, world.server.at_v4(PORT));
    world.b.kill9();
    world.write(&[allow("neighbour", &from("ipBlocks", &[&world.neighbour.ipv4().to_string()]))]);
    world.b.restart().unwrap();
    wait_cut(lost);
    tcp::ping(&mut kept, "still here").unwrap();
}
