//! Rights that are missing.

use lab::{PATIENCE, eventually};

use crate::world::{World, readiness};

#[test]
fn an_agent_without_rights_is_not_ready_and_says_which_it_needs() {
    let world = World::without_definitions();
    let agent = world.agent("node-a").start().unwrap();
    // Each kind is asked for on its own, and answered when its turn comes.
    for part in [
        "cannot watch resource \"pods\"",
        "waiting for the first list of",
        "verbs list and watch of endpointslices",
        "\"discovery.k8s.io\"",
    ] {
        eventually(PATIENCE, || match readiness(&agent) {
            (status, body) if status != 200 && body.contains(part) => Ok(()),
            other => Err(format!("{part} is not in {other:?}")),
        });
    }
    world.grant();
    agent.wait_ready().unwrap();
}
