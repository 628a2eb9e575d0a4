//! Pods that start while no agent runs, and a real API server can be asked.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use lab::{ApiServer, PATIENCE, eventually, manifest::PodManifest};
use serde_json::{Value, json};

use super::world::World;

/// A world whose `node-a` has its objects from an API server. Its agent has a pod there, to which its token is bound.
pub(crate) struct Kube {
    pub(crate) server: ApiServer,
    pub(crate) world: World,
}

impl Kube {
    pub(crate) fn new() -> Self {
        let (server, world) = World::of_api_server(|server| {
            for namespace in ["culvert-system", "shop"] {
                apply(
                    server,
                    &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace,
                    "labels": {"culvert.dev/mesh": if namespace == "shop" { "enabled" } else { "disabled" }}}}),
                );
            }
            for (namespace, name) in
                [("culvert-system", "culvert"), ("culvert-system", "culvert-cni"), ("shop", "default")]
            {
                apply(
                    server,
                    &json!({"apiVersion": "v1", "kind": "ServiceAccount",
                    "metadata": {"name": name, "namespace": namespace}}),
                );
            }
            // The chart's own rules.
            server.apply(&chart_roles()).unwrap();
            apply(
                server,
                &json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "agent", "namespace": "culvert-system"},
                "spec": {"serviceAccountName": "culvert", "automountServiceAccountToken": false, "nodeName": "somewhere",
                    "containers": [{"name": "agent", "image": "lab"}]}}),
            );
            let bound = [
                "create",
                "token",
                "culvert",
                "-n",
                "culvert-system",
                "--bound-object-kind=Pod",
                "--bound-object-name=agent",
            ];
            kubeconfig_with(server, server.kubectl(&bound, "").unwrap().trim())
        });
        Self { server, world }
    }

    /// The API server's pod, and what a container runtime says of it.
    pub(crate) fn pod(&self, name: &str, label: &str) -> PodManifest {
        apply(
            &self.server,
            &json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "labels": {"culvert.dev/mesh": label}},
            "spec": {"nodeName": self.world.mesh.node("node-a").unique_name(), "automountServiceAccountToken": false,
                "containers": [{"name": "app", "image": "lab"}]}}),
        );
        let uid = ["get", "pod", name, "-n", "shop", "-o", "jsonpath={.metadata.uid}"];
        let uid = self.server.kubectl(&uid, "").unwrap();
        PodManifest {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid,
            ..self.world.server.manifest()
        }
    }

    /// The plugin's kubeconfig.
    fn kubeconfig(&self) -> PathBuf {
        format!("/run/culvert/{}-kubeconfig", self.world.mesh.node("node-a").unique_name()).into()
    }
}

/// A kubeconfig as the administrator's, with another token.
fn kubeconfig_with(server: &ApiServer, token: &str) -> PathBuf {
    let text = fs::read_to_string(server.kubeconfig()).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["users"][0]["user"] = json!({ "token": token });
    let path = server.kubeconfig().with_file_name("bound.kubeconfig");
    fs::write(&path, config.to_string()).unwrap();
    path
}

/// The roles of the agents and of the plugin, and who has them, as the chart renders them.
fn chart_roles() -> String {
    let rendered =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/culvert.yaml")).unwrap();
    let has = |object: &str, line: &str| object.lines().any(|found| found == line);
    let is_role =
        |object: &str| object.lines().any(|line| line.starts_with("kind:") && line.contains("Role"));
    let wanted = |object: &&str| {
        is_role(object) && (has(object, "  name: culvert") || has(object, "  name: culvert-cni"))
    };
    let roles: Vec<_> = rendered.split("\n---\n").filter(wanted).collect();
    assert_eq!(roles.len(), 6, "{roles:?}");
    roles.join("\n---\n")
}

fn apply(server: &ApiServer, object: &Value) {
    server.apply(&object.to_string()).unwrap();
}

/// Whether the API server knows who shows the token of a kubeconfig.
fn is_known(server: &ApiServer, kubeconfig: &Path) -> bool {
    let args = ["auth", "whoami", "--kubeconfig", kubeconfig.to_str().unwrap()];
    server.kubectl_output(&args, "").unwrap().status.success()
}

#[test]
fn the_plugin_still_asks_the_api_server_when_the_agents_pod_has_been_deleted() {
    let kube = Kube::new();
    let (world, server) = (&kube.world, &kube.server);
    let (own, agents) = (kube.kubeconfig(), server.kubeconfig().with_file_name("bound.kubeconfig"));
    eventually(PATIENCE, || own.exists());
    assert_eq!(fs::metadata(&own).unwrap().permissions().mode() & 0o777, 0o600);
    world.a.kill9();
    server
        .kubectl(&["delete", "pod", "agent", "-n", "culvert-system", "--force", "--grace-period=0"], "")
        .unwrap();
    eventually(PATIENCE, || !is_known(server, &agents));
    assert!(is_known(server, &own));

    // Neither is in what the agent saved, which never saw them.
    let enrolled = kube.pod("enrolled", "enabled");
    let refused = world.node.sandbox("enrolled", &enrolled).add().unwrap_err();
    assert!(refused.contains("it is to be in the mesh"), "{refused}");
    let plain = kube.pod("plain", "disabled");
    world.node.sandbox("plain", &plain).add().unwrap();
}

#[test]
fn without_the_right_to_a_token_the_agent_says_which_it_lacks() {
    let kube = Kube::new();
    eventually(PATIENCE, || kube.kubeconfig().exists());
    assert!(!kube.world.readiness().contains("cannot ask the API server"));
    kube.server.kubectl(&["delete", "rolebinding", "culvert", "-n", "culvert-system"], "").unwrap();
    let says = |part: &str| {
        eventually(PATIENCE, || {
            let text = kube.world.readiness();
            let note = text.lines().find(|line| line.contains("the CNI plugin cannot ask the API server"));
            note.is_some_and(|note| note.contains(part)).then_some(()).ok_or(text)
        });
    };
    kube.world.a.restart().unwrap();
    kube.world.a.wait_ready().unwrap();
    says("verb create of serviceaccounts/token, for the resourceName culvert-cni");
    kube.world.a.ready().unwrap();

    kube.server.apply(&chart_roles()).unwrap();
    eventually(PATIENCE, || !kube.world.readiness().contains("cannot ask the API server"));
}
