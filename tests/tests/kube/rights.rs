//! Rights that are missing.

use lab::{PATIENCE, eventually};

use crate::world::{World, readiness};

#[test]
fn an_agent_without_rights_is_not_ready_and_says_which_it_needs() {
    let world = World::without_definitions();
    let agent = world.agent("node-a").start().unwrap();
    eventually(PATIENCE, || {
        let (status, body) = readiness(&agent);
        status != 200 && body.contains("cannot watch resource \"pods\"")
    });
    let (_, body) = readiness(&agent);
    for part in
        ["waiting for the first list of", "verbs list and watch of endpointslices", "\"discovery.k8s.io\""]
    {
        assert!(body.contains(part), "{part} is not in {body}");
    }
    world.grant();
    agent.wait_ready().unwrap();
}
