//! A node that starts again: `/run` is empty, the kernel holds nothing, no agent is there yet, and the plugin is still in the
//! chain, since /etc is a disk.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lab::{PATIENCE, eventually};

use super::{
    apiserver::Kube,
    world::{Sandbox, World, succeeds},
};

/// Leaves what a reboot leaves: the container runtime's directories alone.
fn reboot(world: &World) {
    world.a.kill9();
    let node = world.mesh.node("node-a").unique_name();
    let nowhere = world.mesh.directory().display().to_string();
    let args = ["cleanup", "--node", node, "--cni-conf-dir", &nowhere, "--cni-bin-dir", &nowhere];
    succeeds(&world.a.cli(&args).unwrap());
    assert!(!Path::new("/sys/fs/bpf/culvert").join(node).exists());
    assert!(files(node).is_empty(), "{:?}", files(node));
    assert!(world.node.read("10-pods.conflist").contains("culvert-cni"));
}

fn files(node: &str) -> Vec<PathBuf> {
    let all = fs::read_dir("/run/culvert").into_iter().flatten().flatten().map(|entry| entry.path());
    all.filter(|path| path.file_name().is_some_and(|name| name.to_str().unwrap().starts_with(node))).collect()
}

/// As the container runtime does it that is refused: it takes down what is there, and tries again.
fn add_again(sandbox: &Sandbox<'_>) -> Result<(), String> {
    sandbox.del();
    sandbox.add().map(drop)
}

#[test]
fn after_a_reboot_no_pod_but_culverts_own_starts_before_the_agent_knows_and_then_each_does() {
    let mut kube = Kube::new();
    let (enrolled, plain) = (kube.pod("enrolled", "enabled"), kube.pod("plain", "disabled"));
    let mut own = plain.clone();
    (own.namespace, own.name, own.uid) =
        ("culvert-system".to_owned(), "culvert-ca".to_owned(), "1-2-3".to_owned());
    reboot(&kube.world);
    {
        let node = &kube.world.node;
        let [enrolled, plain, own] = [("enrolled", &enrolled), ("plain", &plain), ("own", &own)]
            .map(|(name, pod)| node.sandbox(name, pod));
        for sandbox in [&enrolled, &plain] {
            let refused = sandbox.add().unwrap_err();
            assert!(refused.contains("agent is away") && refused.contains("cannot be asked"), "{refused}");
        }
        own.add().unwrap();
    }

    // The agent is there, and nobody tells it of pods.
    kube.server.stop();
    kube.world.a.restart().unwrap();
    let sandbox = kube.world.node.sandbox("plain", &plain);
    eventually(PATIENCE, || {
        let refused = add_again(&sandbox).unwrap_err();
        refused.contains("it does not know the pod yet").then_some(()).ok_or(refused)
    });
    kube.world.node.sandbox("own", &own).add().unwrap();

    kube.server.start().unwrap();
    // Its watches ask again after up to half a minute.
    eventually(3 * PATIENCE, || add_again(&sandbox));
    let sandbox = kube.world.node.sandbox("enrolled", &enrolled);
    eventually(3 * PATIENCE, || add_again(&sandbox));
    // It is enrolled with this namespace.
    sandbox.check().unwrap();
}
