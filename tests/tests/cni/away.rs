//! Pods that start while no agent runs, and no API server can be asked.

use lab::{PATIENCE, eventually};

use super::world::{World, succeeds, text};

#[test]
fn without_an_agent_a_pod_that_might_speak_plaintext_does_not_start_and_any_other_does() {
    let world = World::new();
    let enrolled = world.manifest("default", "enrolled", Some("enabled"));
    let plain = world.manifest("tools", "plain", None);
    eventually(PATIENCE, || world.saved().contains(&enrolled.uid) && world.saved().contains(&plain.uid));
    world.a.kill9();

    let sandbox = world.node.sandbox("enrolled", &enrolled);
    let refused = sandbox.add().unwrap_err();
    for expected in
        ["default/enrolled", "agent is away", "when the agent was last here the pod was to be in the mesh"]
    {
        assert!(refused.contains(expected), "{refused}");
    }
    world.node.sandbox("plain", &plain).add().unwrap();
    // New ones: of a namespace that is outside, of one that nobody knows, and Culvert's own.
    let named = |namespace: &str| {
        let mut pod = plain.clone();
        (pod.namespace, pod.uid) = (namespace.to_owned(), "1-2-3".to_owned());
        world.node.sandbox(namespace, &pod).add()
    };
    named("tools").unwrap();
    let refused = named("unheard-of").unwrap_err();
    assert!(refused.contains("did not know the pod"), "{refused}");
    named("culvert-system").unwrap();
    // The node stays ready for those.
    succeeds(&world.node.cnitool(&["status", "pods", "/run/netns/none"], ""));

    world.a.restart().unwrap();
    world.a.wait_ready().unwrap();
    // The runtime takes down what a failed ADD left, and tries again.
    sandbox.del();
    sandbox.add().unwrap();
    let before = world.tunnelled();
    sandbox.say(world.server.at(8080)).unwrap();
    assert_eq!(world.tunnelled(), before + 1.0);
}

#[test]
fn an_agent_that_drains_is_away_and_its_plugin_stays() {
    let world = World::new();
    let enrolled = world.manifest("default", "enrolled", Some("enabled"));
    eventually(PATIENCE, || world.saved().contains(&enrolled.uid));
    let before = world.node.read("10-pods.conflist");
    assert!(world.a.terminate().unwrap().success());
    assert_eq!(world.node.read("10-pods.conflist"), before);
    assert!(world.node.binaries.join("culvert-cni").exists());
    assert!(world.node.sandbox("enrolled", &enrolled).add().is_err());

    // After a reboot /run is empty: nothing says which pods may start.
    let node = world.mesh.node("node-a").unique_name();
    std::fs::remove_file(format!("/run/culvert/{node}-cni.json")).unwrap();
    let status = world.node.cnitool(&["status", "pods", "/run/netns/none"], "");
    // cnitool asks the plugins for their status from version 1.1 on; this chain is of 1.0.
    succeeds(&status);
    assert!(!text(&status).contains("error"), "{}", text(&status));
    let mut unknown = enrolled;
    unknown.uid = "1-2-3".to_owned();
    let refused = world.node.sandbox("unknown", &unknown).add().unwrap_err();
    assert!(refused.contains("cannot be read"), "{refused}");
}
