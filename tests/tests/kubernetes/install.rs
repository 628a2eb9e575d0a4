//! Installing, upgrading and removing.

use std::{fs, path::Path};

use lab::{Cluster, eventually};
use serde_json::Value;

use crate::{
    traces::{KINDS, before, is_in_kernel, kernel_objects, traces},
    world::{CHART, PATIENCE, ROOT, Shop, alone, helm, install, rolled_out, settle, shared},
};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/culvert.yaml");
const CLEANUP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/cleanup.yaml");

/// Has the API server look at manifests and keep nothing of them; it must take them, and warn of nothing.
fn assert_taken_without_a_warning(cluster: &Cluster, manifests: &str) {
    let args = ["apply", "--dry-run=server", "--server-side", "--force-conflicts", "-f", "-"];
    let output = cluster.kubectl_output(&args, manifests).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // What helm has made was not applied before.
    let odd =
        said.lines().find(|line| line.contains("Warning") && !line.contains("last-applied-configuration"));
    assert_eq!(odd, None);
}

#[test]
fn the_manifest_for_kubectl_is_taken_without_a_warning() {
    let (cluster, _used) = shared();
    assert_taken_without_a_warning(cluster, &fs::read_to_string(MANIFEST).unwrap());
}

/// As docs/install.md has it: an overlay gives the image another name.
#[test]
fn the_manifest_is_a_base_for_kustomize() {
    let (cluster, _used) = shared();
    let folder = tempfile::tempdir().unwrap();
    for file in ["culvert.yaml", "kustomization.yaml"] {
        let copy = folder.path().join("base").join(file);
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(Path::new(DEPLOY).join(file), copy).unwrap();
    }
    let overlay = "resources: [base]\nimages: [{name: culvert.dev/culvert, newName: registry.example/culvert, newTag: '7'}]\n";
    fs::write(folder.path().join("kustomization.yaml"), overlay).unwrap();
    let manifests = cluster.kubectl(&["kustomize", &folder.path().display().to_string()], "").unwrap();
    assert!(manifests.contains("registry.example/culvert:7"), "{manifests}");
    assert!(!manifests.contains("image: culvert.dev"), "{manifests}");
    assert_taken_without_a_warning(cluster, &manifests);
}

/// What helm makes of the chart with values of a user's own.
fn rendered(cluster: &Cluster, values: &[&str]) -> String {
    // Without a cluster helm takes a Kubernetes of its own choice.
    let mut args = vec!["template", "culvert", CHART, "--namespace", ROOT, "--kube-version", "1.36.0"];
    args.extend(values.iter().flat_map(|value| ["--set", value]));
    helm(cluster, &args)
}

#[test]
fn the_chart_with_values_of_a_users_own_is_taken_without_a_warning() {
    let (cluster, _used) = shared();
    // The second one asks an authority elsewhere, and shares the node's CNI with nobody.
    for values in [IN_THE_CLUSTER, ELSEWHERE] {
        let manifests = rendered(cluster, values);
        assert_taken_without_a_warning(cluster, &manifests);
        for value in values {
            let word = value.split_once('=').map_or("", |(_, word)| word).trim_matches(['{', '}']);
            let said = matches!(word, "true" | "false") || manifests.contains(word);
            assert!(said, "{value} makes no difference");
        }
    }
    let manifests = rendered(cluster, ELSEWHERE);
    for absent in ["culvert-ca-root-key", "kind: Deployment", "CustomResourceDefinition", "--cni-conf-dir"] {
        assert!(!manifests.contains(absent), "{absent} is there");
    }
}

const IN_THE_CLUSTER: &[&str] = &[
    "image.repository=registry.example/culvert",
    "image.tag=tagged",
    "image.pullPolicy=Always",
    "image.pullSecrets[0].name=for-the-registry",
    "trustDomain=mesh.example",
    "namespace.create=true",
    "agent.extraArgs={--leave-period=2m}",
    "agent.log=debug",
    "agent.logFormat=text",
    "agent.accessLog=off",
    "agent.admin=0.0.0.0:15021",
    "agent.podRanges={10.244.0.0/16}",
    "agent.gracePeriodSeconds=77",
    "agent.certificateLifetime=90m",
    "agent.cni.confDir=/somewhere/net.d",
    "agent.cni.binDir=/somewhere/bin",
    "agent.resources.limits.memory=321Mi",
    "agent.nodeSelector.disk=fast-one",
    "agent.tolerations[0].key=only-this-taint",
    "agent.podAnnotations.note=on-agents",
    "ca.replicas=3",
    "ca.audience=other-audience",
    "ca.secretName=of-cert-manager",
    "ca.maxLifetime=91m",
    "ca.extraArgs={--requests-per-node=7}",
    "ca.resources.limits.memory=123Mi",
    "ca.nodeSelector.disk=slow-one",
    "ca.tolerations[0].key=only-that-taint",
    "ca.podAnnotations.note=on-servers",
];

const ELSEWHERE: &[&str] = &[
    "ca.enabled=false",
    "ca.address=https://ca.example:15012",
    "crds.install=false",
    "agent.cni.enabled=false",
];

/// Has Culvert installed as before where a test that removes it fails half-way.
struct Installed(&'static Cluster);

impl Drop for Installed {
    fn drop(&mut self) {
        let Self(cluster) = self;
        if !std::thread::panicking() {
            return;
        }
        let _ = cluster.kubectl(&["delete", "-f", CLEANUP, "--ignore-not-found", "--timeout=180s"], "");
        let status = cluster.helm_command().args(["status", "culvert", "--namespace", ROOT]).output();
        let there = status.is_ok_and(|output| output.status.success());
        // A second panic would end the process: what is wrong then, the next test says.
        let _ = std::panic::catch_unwind(|| match there {
            true => {
                let values = ["--reset-values", "--set", "image.pullPolicy=Never"];
                helm(cluster, &[&["upgrade", "culvert", CHART, "--namespace", ROOT], &values[..]].concat());
                settle(cluster);
            }
            false => install(cluster),
        });
    }
}

/// What is left in a pod of a connection's way through the mesh: listeners that are not the application's.
fn odd_listeners(shop: &Shop, pod: &str) -> Vec<String> {
    let listed = shop.exec(pod, "ss -Hltn");
    let odd = listed.lines().filter(|line| !line.contains(":8080 "));
    odd.map(str::to_owned).collect()
}

#[test]
fn it_is_upgraded_and_removed_and_a_node_is_as_it_was() {
    let (cluster, _alone) = alone();
    let shop = Shop::open(cluster, "removed", true);
    let web: Vec<_> = shop.pods().iter().filter_map(|pod| name_of(pod, "web-")).collect();
    // The control: there is something to remove.
    assert_ne!(traces(cluster), *before());
    assert!(web.iter().all(|pod| !odd_listeners(&shop, pod).is_empty()));
    let _installed = Installed(cluster);
    let mut upgrade = vec!["upgrade", "culvert", CHART, "--namespace", ROOT, "--reuse-values"];
    upgrade.extend(OTHERWISE.iter().flat_map(|value| ["--set", value]));
    helm(cluster, &upgrade);
    for workload in ["deployment/culvert-ca", "daemonset/culvert"] {
        rolled_out(cluster, ROOT, workload);
    }
    shop.wait_answers(10);
    shop.assert_no_failure();

    // As docs/install.md says: out of the mesh, the programs, what is left on the nodes.
    shop.kubectl(&["label", "namespace", "removed", "culvert.dev/mesh-"]);
    shop.wait_enrolled(false);
    let objects = kernel_objects(cluster);
    assert!(KINDS.iter().all(|kind| objects.iter().any(|(known, _)| known == kind)), "{objects:?}");
    helm(cluster, &["uninstall", "culvert", "--namespace", ROOT]);
    let agents = ["-n", ROOT, "get", "pods", "-l", "app.kubernetes.io/part-of=culvert", "-o", "name"];
    eventually(3 * PATIENCE, || match cluster.kubectl(&agents, "") {
        Ok(left) if left.is_empty() => Ok(()),
        Ok(left) => Err(left),
        Err(error) => Err(format!("{error:#}")),
    });
    cluster.kubectl(&["apply", "-f", CLEANUP], "").unwrap();
    eventually(3 * PATIENCE, || {
        let now = traces(cluster);
        (now == *before())
            .then_some(())
            .ok_or_else(|| format!("{:?} and not {:?}", now.keys(), before().keys()))
    });
    for (kind, id) in objects {
        eventually(PATIENCE, || !is_in_kernel(kind, id));
    }
    shop.wait_answers(10);
    shop.assert_no_failure();
    shop.assert_unharmed();
    for pod in &web {
        assert_eq!(odd_listeners(&shop, pod), [""; 0]);
    }
    for pod in shop.pods() {
        let annotations = pod["metadata"]["annotations"].to_string();
        assert!(!annotations.contains("culvert.dev"), "{annotations}");
    }
    // A pod that is made now is nobody's business.
    shop.kubectl(&["delete", "pod", &web[0]]);
    rolled_out(cluster, "removed", "deployment/web");
    cluster.kubectl(&["delete", "-f", CLEANUP, "--wait"], "").unwrap();

    // The others find it as they left it.
    install(cluster);
    shop.kubectl(&["label", "namespace", "removed", "culvert.dev/mesh=enabled"]);
    shop.wait_enrolled(true);
    shop.wait_answers(10);
    shop.assert_no_failure();
}

/// What a running mesh may be given anew.
const OTHERWISE: &[&str] = &[
    "agent.log=debug",
    "agent.logFormat=text",
    "agent.podRanges={10.244.0.0/16}",
    "agent.certificateLifetime=1h",
    "agent.gracePeriodSeconds=20",
    "agent.podAnnotations.note=upgraded",
    "ca.maxLifetime=2h",
];

/// The name of a pod, where it begins so.
fn name_of(pod: &Value, prefix: &str) -> Option<String> {
    let name = pod["metadata"]["name"].as_str()?;
    name.starts_with(prefix).then(|| name.to_owned())
}
