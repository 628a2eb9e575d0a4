//! Pods that start, go and start again while their agent runs.

use std::process::{Command, Stdio};

use lab::{PATIENCE, eventually};
use serde_json::{Value, json};

use super::world::{World, succeeds, text};

#[test]
fn the_first_connection_of_a_pod_is_captured() {
    let world = World::new();
    let pod = world.manifest("default", "web", Some("enabled"));
    let sandbox = world.node.sandbox("web", &pod);
    let address = sandbox.add().unwrap();
    assert!(address.to_string().starts_with("10.1.200."), "{address}");
    // At once, and once: nothing here waits.
    let before = world.tunnelled();
    assert_eq!(sandbox.say(world.server.at(8080)).unwrap(), "hello\n");
    assert_eq!(world.tunnelled(), before + 1.0);
    sandbox.check().unwrap();

    sandbox.del();
    sandbox.del();
    eventually(PATIENCE, || world.a.logs().contains("the pod is in the mesh"));
}

#[test]
fn a_pod_that_is_not_to_be_enrolled_starts_untouched_and_joins_when_its_label_comes() {
    let world = World::new();
    let mut pod = world.manifest("default", "plain", None);
    let sandbox = world.node.sandbox("plain", &pod);
    let address = sandbox.add().unwrap();
    let before = world.tunnelled();
    sandbox.say(world.server.at(8080)).unwrap();
    assert_eq!(world.tunnelled(), before, "it is outside");
    sandbox.check().unwrap();

    pod.labels.insert(lab::manifest::MESH_LABEL.to_owned(), "enabled".to_owned());
    pod.addresses = vec![address];
    world.apply(&pod);
    eventually(PATIENCE, || {
        let before = world.tunnelled();
        sandbox.say(world.server.at(8080)).is_ok() && world.tunnelled() > before
    });
    sandbox.check().unwrap();
}

#[test]
fn a_pod_without_a_manifest_and_a_container_that_is_no_pod_start() {
    let world = World::new();
    let mut stranger = world.server.manifest();
    (stranger.name, stranger.uid) = ("stranger".to_owned(), "0-0".to_owned());
    world.node.sandbox("stranger", &stranger).add().unwrap();
    let output = world.node.cnitool(&["status", "pods", "/run/netns/none"], "");
    succeeds(&output);
}

#[test]
fn a_sandbox_that_is_made_anew_takes_the_place_of_the_old_one() {
    let world = World::new();
    let mut pod = world.manifest("default", "web", Some("enabled"));
    let old = world.node.sandbox("old", &pod);
    let address = old.add().unwrap();
    old.say(world.server.at(8080)).unwrap();
    // The API server has heard of the old address when the new sandbox comes.
    pod.addresses = vec![address];
    world.apply(&pod);
    eventually(PATIENCE, || {
        let dump: Value = serde_json::from_str(&world.a.get_private("/config_dump").unwrap().body).unwrap();
        let mut known = dump["workloads"].as_array().unwrap().iter();
        known.any(|known| known["uid"] == *pod.uid && known["addresses"][0] == address.to_string())
    });
    let new = world.node.sandbox("new", &pod);
    new.add().unwrap();
    let before = world.tunnelled();
    new.say(world.server.at(8080)).unwrap();
    assert_eq!(world.tunnelled(), before + 1.0);
    // The runtime sends the old one's DEL when it comes to it.
    old.del();
    new.check().unwrap();
    new.say(world.server.at(8080)).unwrap();
    assert_eq!(world.tunnelled(), before + 2.0);
    assert!(old.check().is_err());
}

#[test]
fn a_pod_that_cannot_be_enrolled_does_not_start_and_its_event_says_why() {
    let world = World::new();
    let mut pod = world.manifest("default", "web", Some("enabled"));
    pod.netns = Some("/run/netns/no-such-namespace".into());
    pod.addresses = vec!["10.1.200.250".parse().unwrap()];
    world.apply(&pod);
    eventually(PATIENCE, || world.readiness().contains("no-such-namespace"));
    let refused = world.node.sandbox("web", &pod).add().unwrap_err();
    assert!(refused.contains("default/web") && refused.contains("no-such-namespace"), "{refused}");
}

#[test]
fn a_restarted_agent_knows_what_it_was_told() {
    let world = World::new();
    let pod = world.manifest("default", "web", Some("enabled"));
    let sandbox = world.node.sandbox("web", &pod);
    sandbox.add().unwrap();
    sandbox.say(world.server.at(8080)).unwrap();
    world.a.kill9();
    assert!(sandbox.say(world.server.at(8080)).is_err(), "what is captured fails closed");
    world.a.restart().unwrap();
    world.a.wait_ready().unwrap();
    let before = world.tunnelled();
    sandbox.say(world.server.at(8080)).unwrap();
    assert_eq!(world.tunnelled(), before + 1.0);
    sandbox.check().unwrap();
}

#[test]
fn the_plugin_speaks_every_version_and_refuses_what_it_does_not_know() {
    let world = World::new();
    let plugin = world.node.binaries.join("culvert-cni");
    let run = |command: &str, config: &Value| {
        let mut child = Command::new(&plugin);
        child.env_clear().env("CNI_COMMAND", command).env("CNI_CONTAINERID", "x").env("CNI_IFNAME", "eth0");
        child.env("CNI_NETNS", "/run/netns/none").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = child.spawn().unwrap();
        // A broken pipe: it has said already what is wrong, and did not need to know more.
        let _ = serde_json::to_writer(child.stdin.take().unwrap(), config);
        let output = child.wait_with_output().unwrap();
        (output.status.success(), text(&output))
    };
    let (ok, version) = run("VERSION", &json!({ "cniVersion": "1.0.0" }));
    let version: Value = serde_json::from_str(&version).unwrap();
    assert!(ok && version["cniVersion"] == "1.0.0", "{version}");
    for expected in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        assert!(version["supportedVersions"].as_array().unwrap().contains(&json!(expected)), "{version}");
    }

    let list: Value = serde_json::from_str(&world.node.read("10-pods.conflist")).unwrap();
    let mut config = list["plugins"][1].clone();
    (config["cniVersion"], config["name"]) = (json!("1.0.0"), json!("pods"));
    let result = json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.1.200.9/24" }], "dns": {} });
    let mut chained = config.clone();
    chained["prevResult"] = result.clone();
    let (ok, same) = run("ADD", &chained);
    assert!(
        ok && serde_json::from_str::<Value>(&same).unwrap() == result,
        "no pod's container passes unchanged: {same}"
    );

    let code = |command: &str, config: &Value| {
        let (ok, answer) = run(command, config);
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(!ok && answer["msg"].is_string() && answer["cniVersion"].is_string(), "{answer}");
        answer["code"].as_u64().unwrap()
    };
    assert_eq!(code("ADD", &config), 7, "it is not the first of a chain");
    assert_eq!(code("ADD", &json!({ "cniVersion": "1.0.0" })), 6);
    assert_eq!(code("REBOOT", &config), 4);

    // GC and STATUS are of version 1.1.
    let pod = world.manifest("default", "plain", None);
    let sandbox = world.node.sandbox("plain", &pod);
    sandbox.add().unwrap();
    let saved = format!("/run/culvert/{}-attachments.json", world.mesh.node("node-a").unique_name());
    let saved = || serde_json::from_str::<Value>(&std::fs::read_to_string(&saved).unwrap()).unwrap();
    let container = saved()[0]["container"].clone();
    config["cniVersion"] = json!("1.1.0");
    assert_eq!(run("STATUS", &config), (true, String::new()));
    config["cni.dev/valid-attachments"] = json!([{ "containerID": container, "ifname": "eth0" }]);
    assert_eq!(run("GC", &config), (true, String::new()));
    assert_eq!(saved().as_array().unwrap().len(), 1);
    config["cni.dev/valid-attachments"] = json!([]);
    assert_eq!(run("GC", &config), (true, String::new()));
    assert_eq!(saved(), json!([]));

    config["cniVersion"] = json!("9.0.0");
    assert_eq!(code("ADD", &config), 1);
}
