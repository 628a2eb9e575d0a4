//! The plugin's place in the node's configuration: taken, kept, and given back.

use std::process::{Command, Stdio};

use lab::{Agent, PATIENCE, eventually, install};
use serde_json::Value;

use super::world::{World, text};

fn types(list: &str) -> Vec<String> {
    let list: Value = serde_json::from_str(list).unwrap_or_default();
    let plugins = list["plugins"].as_array().into_iter().flatten();
    plugins.filter_map(|plugin| plugin["type"].as_str().map(str::to_owned)).collect()
}

fn is_last(list: &str) -> bool {
    types(list).last().is_some_and(|last| last == "culvert-cni")
}

/// `culvert cleanup` of the node's agent, which must have ended.
fn cleanup(world: &World, agent: &Agent) -> String {
    let node = world.mesh.node("node-a").unique_name();
    let (configurations, binaries) =
        (world.node.configurations.display().to_string(), world.node.binaries.display().to_string());
    let output = agent.cli(&[
        "cleanup",
        "--node",
        node,
        "--cni-conf-dir",
        &configurations,
        "--cni-bin-dir",
        &binaries,
    ]);
    let output = output.unwrap();
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

#[test]
fn cleanup_after_a_kill_gives_back_every_byte() {
    let world = World::new();
    let list = world.node.list();
    assert!(is_last(&world.node.read("10-pods.conflist")));
    world.a.kill9();
    assert!(is_last(&world.node.read("10-pods.conflist")), "an agent's end is no reason to go");
    let said = cleanup(&world, &world.a);
    assert!(said.contains("10-pods.conflist") && said.contains("cni-bin/culvert-cni"), "{said}");
    assert_eq!(world.node.read("10-pods.conflist"), list);
    assert!(!world.node.binaries.join("culvert-cni").exists());
    let node = world.mesh.node("node-a").unique_name();
    let left = std::fs::read_dir("/run/culvert").into_iter().flatten().flatten();
    let left: Vec<_> =
        left.map(|entry| entry.file_name()).filter(|name| name.to_str().unwrap().starts_with(node)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_plugin_comes_back_when_the_networks_own_installer_writes_its_file_anew() {
    let world = World::new();
    let newer = world.node.list().replace("\"ipMasq\": false", "\"ipMasq\": true");
    for text in [&newer, &world.node.list()] {
        world.node.write("10-pods.conflist", text);
        eventually(PATIENCE, || is_last(&world.node.read("10-pods.conflist")));
    }
    // The runtime uses the first: another network that comes before.
    world.node.write("05-other.conflist", &newer);
    eventually(PATIENCE, || is_last(&world.node.read("05-other.conflist")));
    eventually(PATIENCE, || world.node.read("10-pods.conflist") == world.node.list());
}

#[test]
fn a_broken_configuration_is_reported_and_stays_as_it_is() {
    let world = World::new();
    let broken = "{ \"name\": \"pods\", \"plugins\": [ { \"type\": \"bridge\" }";
    world.node.write("10-pods.conflist", broken);
    eventually(PATIENCE, || {
        let text = world.readiness();
        let note = text.lines().find(|line| line.contains("CNI plugin is not in the chain"));
        note.is_some_and(|note| note.contains("10-pods.conflist") && note.contains("nothing was changed"))
    });
    assert_eq!(world.node.read("10-pods.conflist"), broken);
    world.a.ready().unwrap();

    world.node.write("10-pods.conflist", &world.node.list());
    eventually(PATIENCE, || is_last(&world.node.read("10-pods.conflist")));
    eventually(PATIENCE, || !world.readiness().contains("CNI plugin"));
}

/// A host may have another libc than the agent was built with, or none.
#[test]
fn the_plugin_needs_no_library_of_the_host() {
    let world = World::new();
    let plugin = world.node.binaries.join("culvert-cni");
    assert!(
        lab::image::is_static(&plugin).unwrap(),
        "the program under test is not linked as it is shipped: `cargo xtask build` instead of `cargo build`"
    );
    let host = world.mesh.directory().join("host");
    std::fs::create_dir(&host).unwrap();
    install(&plugin, &host.join("culvert-cni"));
    let mut command = Command::new("chroot");
    command.arg(&host).arg("/culvert-cni").env("CNI_COMMAND", "VERSION").stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success() && text(&output).contains("supportedVersions"), "{}", text(&output));
}

#[test]
fn the_configuration_of_one_plugin_becomes_a_list_and_comes_back() {
    let world = World::new();
    let single = "{\"cniVersion\":\"0.4.0\",  \"name\":\"one\", \"type\":\"bridge\"}\n";
    world.node.write("05-one.conf", single);
    eventually(PATIENCE, || is_last(&world.node.read("05-one.conflist")));
    assert_eq!(types(&world.node.read("05-one.conflist")), ["bridge", "culvert-cni"]);
    eventually(PATIENCE, || !world.node.configurations.join("05-one.conf").exists());
    assert!(world.a.terminate().unwrap().success());
    cleanup(&world, &world.a);
    assert_eq!(world.node.read("05-one.conf"), single);
    let mut left: Vec<_> = std::fs::read_dir(&world.node.configurations)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["05-one.conf", "10-pods.conflist"]);
}
