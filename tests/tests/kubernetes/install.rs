//! Installing, upgrading and removing.

use lab::{PATIENCE, eventually};

use crate::world::{CHART, ROOT, Shop, alone, before, helm, install, rolled_out, shared, traces};

#[test]
fn the_manifest_for_kubectl_is_taken_without_a_warning() {
    let (cluster, _used) = shared();
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/culvert.yaml");
    let args = ["apply", "--dry-run=server", "--server-side", "--force-conflicts", "-f", manifest];
    let output = cluster.kubectl_output(&args, "").unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // What helm has made was not applied before.
    let odd =
        said.lines().find(|line| line.contains("Warning") && !line.contains("last-applied-configuration"));
    assert_eq!(odd, None);
}

#[test]
fn it_is_upgraded_and_removed_and_a_node_is_as_it_was() {
    let (cluster, _alone) = alone();
    let shop = Shop::open(cluster, "removed", true);
    helm(
        cluster,
        &["upgrade", "culvert", CHART, "--namespace", ROOT, "--reuse-values", "--set", "agent.log=debug"],
    );
    rolled_out(cluster, ROOT, "daemonset/culvert");
    shop.wait_answers(10);
    shop.assert_no_failure();

    // As docs/install.md says: out of the mesh, the programs, what is left on the nodes.
    shop.kubectl(&["label", "namespace", "removed", "culvert.dev/mesh-"]);
    shop.wait_enrolled(false);
    helm(cluster, &["uninstall", "culvert", "--namespace", ROOT]);
    let agents =
        ["-n", ROOT, "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=culvert", "--timeout=90s"];
    cluster.kubectl(&agents, "").unwrap();
    let cleanup = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/cleanup.yaml");
    cluster.kubectl(&["apply", "-f", cleanup], "").unwrap();
    eventually(PATIENCE, || {
        let now = traces(cluster);
        (now == *before()).then_some(()).ok_or_else(|| format!("{:?}", now.keys()))
    });
    shop.wait_answers(10);
    shop.assert_unharmed();
    cluster.kubectl(&["delete", "-f", cleanup, "--wait"], "").unwrap();

    // The others find it as they left it.
    install(cluster);
    shop.kubectl(&["label", "namespace", "removed", "culvert.dev/mesh=enabled"]);
    shop.wait_enrolled(true);
}
