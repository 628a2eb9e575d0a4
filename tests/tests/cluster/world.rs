//! The shared cluster, and the pods that most tests ask for.

use std::sync::OnceLock;

use lab::{Cluster, cluster::images};

/// The suite's cluster.
pub(crate) fn cluster() -> &'static Cluster {
    static IMAGE: OnceLock<()> = OnceLock::new();
    let cluster = Cluster::shared("labcluster");
    IMAGE.get_or_init(|| cluster.add_image(&images::tools().unwrap()).unwrap());
    cluster
}

/// The names of the pods of a deployment `web` on both nodes, that serve HTTP and are ready.
pub(crate) fn web() -> &'static [String] {
    static WEB: OnceLock<Vec<String>> = OnceLock::new();
    WEB.get_or_init(|| {
        let cluster = cluster();
        cluster.apply(&WEB_OBJECTS.replace("IMAGE", images::TOOLS)).unwrap();
        cluster.wait_for("deployment/web", "jsonpath={.status.readyReplicas}=4").unwrap();
        let listed = cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", "name"], "").unwrap();
        let names: Vec<_> = listed.lines().map(str::to_owned).collect();
        assert_eq!(names.len(), 4, "{listed}");
        names
    })
}

/// A pod of one container that does nothing until it is told, and ends at once.
pub(crate) fn idle_pod(cluster: &Cluster, name: &str, node: &str) {
    let node = cluster.node(node).unique_name();
    cluster
        .apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  nodeName: {node}\n  \
             terminationGracePeriodSeconds: 0\n  containers:\n  - name: main\n    \
             image: {}\n    imagePullPolicy: Never\n    command: [sleep, infinity]\n",
            images::TOOLS
        ))
        .unwrap();
    cluster.wait_for(&format!("pod/{name}"), "condition=Ready").unwrap();
}

/// Waits until a node is ready, as the API server sees it.
pub(crate) fn wait_ready(cluster: &Cluster, node: &str) {
    let name = format!("node/{}", cluster.node(node).unique_name());
    cluster.wait_for(&name, "condition=Ready").unwrap();
}

const WEB_OBJECTS: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      dnsPolicy: Default
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: DoNotSchedule
        labelSelector: {matchLabels: {app: web}}
      containers:
      - name: web
        image: IMAGE
        imagePullPolicy: Never
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /probe, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";
