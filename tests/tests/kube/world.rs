//! A mesh whose objects are in a real API server.

use std::{fs, path::PathBuf};

use lab::{Agent, AgentBuilder, ApiServer, Mesh, PATIENCE, Pod, eventually};
use serde_json::{Value, json};

/// Two nodes, an API server on one of them, and the enrolled namespace `shop`.
pub(crate) struct World {
    pub(crate) mesh: Mesh,
    pub(crate) server: ApiServer,
}

impl World {
    /// Everything that an agent needs, definitions of policies included.
    pub(crate) fn new() -> Self {
        let world = Self::without_definitions();
        world.grant();
        world.install_definitions();
        world
    }

    /// An API server that knows no policies, and an agent's service account that may do nothing.
    pub(crate) fn without_definitions() -> Self {
        let mesh = Mesh::new().unwrap();
        let server = ApiServer::start_on(&mesh, "node-b").unwrap();
        let world = Self { mesh, server };
        world
            .apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "culvert-system"}}));
        let labels = json!({"culvert.dev/mesh": "enabled"});
        let shop = json!({"name": "shop", "labels": labels});
        world.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": shop}));
        for (namespace, name) in [("culvert-system", "culvert"), ("shop", "default")] {
            world.apply(&json!({"apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": name, "namespace": namespace}}));
        }
        world
    }

    /// Gives the agents' service account the rights that it needs.
    pub(crate) fn grant(&self) {
        let rule = |group: &str, resources: &[&str], verbs: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
        let read = ["get", "list", "watch"];
        let rules = [
            rule("", &["namespaces", "pods", "services", "nodes"], &read),
            rule("discovery.k8s.io", &["endpointslices"], &read),
            rule("security.istio.io", &["peerauthentications", "authorizationpolicies"], &read),
            rule("", &["pods/status"], &["patch"]),
            rule(
                "security.istio.io",
                &["peerauthentications/status", "authorizationpolicies/status"],
                &["patch"],
            ),
            rule("events.k8s.io", &["events"], &["create", "patch"]),
            rule("coordination.k8s.io", &["leases"], &["get", "create", "update"]),
        ];
        let group = "rbac.authorization.k8s.io";
        let version = format!("{group}/v1");
        self.apply(&json!({"apiVersion": version, "kind": "ClusterRole",
            "metadata": {"name": "culvert"}, "rules": rules}));
        self.apply(&json!({"apiVersion": version, "kind": "ClusterRoleBinding",
            "metadata": {"name": "culvert"},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "culvert"},
            "subjects": [{"kind": "ServiceAccount", "name": "culvert", "namespace": "culvert-system"}]}));
    }

    /// Installs the definitions that the binary itself prints.
    pub(crate) fn install_definitions(&self) {
        self.server.apply(&definitions()).unwrap();
        let wait = ["wait", "--for=condition=Established", "--timeout=120s", "crd", "--all"];
        self.server.kubectl(&wait, "").unwrap();
        // What is established is served, and listed among what is served, a moment later.
        for kind in ["authorizationpolicies", "peerauthentications"] {
            for version in ["v1", "v1beta1"] {
                let resource = format!("{kind}.{version}.security.istio.io");
                eventually(PATIENCE, || self.server.kubectl(&["get", &resource, "-A"], ""));
            }
        }
    }

    /// An agent with the rights of its service account, and without manifests.
    pub(crate) fn agent(&self, node: &str) -> AgentBuilder {
        let empty = self.mesh.directory().join("no-manifests");
        fs::create_dir_all(&empty).unwrap();
        let agent = self.mesh.agent(node).manifests(empty);
        agent.arg("--kube").arg("--kubeconfig").arg(self.kubeconfig())
    }

    pub(crate) fn ready_agent(&self, node: &str) -> Agent {
        let agent = self.agent(node).start().unwrap();
        agent.wait_ready().unwrap();
        agent
    }

    fn kubeconfig(&self) -> PathBuf {
        self.server.service_account_kubeconfig("culvert-system", "culvert").unwrap()
    }

    pub(crate) fn apply(&self, object: &Value) {
        self.server.apply(&object.to_string()).unwrap();
    }

    /// A pod, there and in the API server.
    pub(crate) fn pod(&self, name: &str, node: &str) -> Pod {
        let pod = self.mesh.pod(name).namespace("shop").on(node).start().unwrap();
        let netns = pod.netns().path().display().to_string();
        self.write_pod(
            &pod.manifest().name,
            (self.mesh.node(node).unique_name(), &netns),
            &pod.ip().to_string(),
        );
        pod
    }

    /// Writes a pod's object into the API server, and what a kubelet says of it.
    pub(crate) fn write_pod(&self, name: &str, (node, netns): (&str, &str), address: &str) {
        self.apply(&json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "annotations": {"culvert.dev/netns": netns}},
            "spec": {"nodeName": node, "automountServiceAccountToken": false,
                "containers": [{"name": "app", "image": "lab"}]}}));
        let status = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]});
        self.patch_status("pod", name, &json!({"status": status}));
    }

    fn patch_status(&self, kind: &str, name: &str, patch: &Value) {
        let patch = patch.to_string();
        let args = ["patch", kind, name, "-n", "shop", "--subresource=status", "--type=merge", "-p", &patch];
        self.server.kubectl(&args, "").unwrap();
    }

    /// Sets, or with a `-` at its end removes, a pod's label.
    pub(crate) fn label(&self, pod: &str, label: &str) {
        self.server.kubectl(&["label", "pod", pod, "-n", "shop", "--overwrite", label], "").unwrap();
    }

    /// What a pod's annotation says of its enrolment.
    pub(crate) fn enrolled(&self, pod: &str) -> String {
        self.field("pod", pod, r"{.metadata.annotations.culvert\.dev/enrolled}")
    }

    pub(crate) fn wait_enrolled(&self, pods: &[&Pod]) {
        for pod in pods {
            let name = pod.manifest().name;
            eventually(PATIENCE, || self.enrolled(&name) == "true");
        }
    }

    /// A field of an object in `shop`.
    pub(crate) fn field(&self, kind: &str, name: &str, path: &str) -> String {
        let path = format!("jsonpath={path}");
        self.server.kubectl(&["get", kind, name, "-n", "shop", "-o", &path], "").unwrap()
    }
}

/// What `culvert crds` prints.
pub(crate) fn definitions() -> String {
    let output = std::process::Command::new(lab::culvert().unwrap()).arg("crds").output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// The status and the text of the readiness page; nothing while nobody answers yet.
pub(crate) fn readiness(agent: &Agent) -> (u16, String) {
    agent.get("/healthz/ready").map_or((0, String::new()), |answer| (answer.status, answer.body))
}

pub(crate) fn metric(agent: &Agent, name: &str) -> f64 {
    agent.metrics().map_or(-1.0, |metrics| metrics.sum(name, &[]))
}
