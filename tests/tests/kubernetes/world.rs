//! The shared cluster with Culvert installed, and the namespaces of the tests in it.

use std::{
    fs,
    sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use lab::{
    Cluster,
    cluster::{ClusterNode, images},
    culvert, eventually,
};
use serde_json::Value;

use crate::traces;

/// What every request of a client has in it, followed by the name of its namespace.
pub(crate) const MARKER: &str = "what-only-the-application-reads";

/// How long to wait for what a cluster does: its programs, kubelets and agents have to have their turns.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Where Culvert itself is.
pub(crate) const ROOT: &str = "culvert-system";

/// Whoever takes something of the cluster away has it alone.
static IN_USE: RwLock<()> = RwLock::new(());

/// The cluster, for a test that leaves it as it is.
pub(crate) fn shared() -> (&'static Cluster, RwLockReadGuard<'static, ()>) {
    let guard = IN_USE.read().unwrap_or_else(PoisonError::into_inner);
    (installed(), guard)
}

/// The cluster, for a test that disturbs what others count on, and puts it right again.
pub(crate) fn alone() -> (&'static Cluster, RwLockWriteGuard<'static, ()>) {
    let guard = IN_USE.write().unwrap_or_else(PoisonError::into_inner);
    (installed(), guard)
}

fn installed() -> &'static Cluster {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    let cluster = Cluster::shared("labmesh");
    INSTALLED.get_or_init(|| {
        traces::look_before(cluster);
        cluster.add_image(&images::tools().unwrap()).unwrap();
        cluster.add_image(&images::culvert(images::CULVERT, &culvert().unwrap()).unwrap()).unwrap();
        install(cluster);
    });
    cluster
}

/// Installs Culvert as docs/install.md says.
pub(crate) fn install(cluster: &Cluster) {
    cluster
        .apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {ROOT}\n  labels: \
             {{pod-security.kubernetes.io/enforce: privileged}}\n"
        ))
        .unwrap();
    helm(cluster, &["install", "culvert", CHART, "--namespace", ROOT, "--set", "image.pullPolicy=Never"]);
    for workload in ["deployment/culvert-ca", "daemonset/culvert"] {
        rolled_out(cluster, ROOT, workload);
    }
}

/// Runs helm, which must succeed, and returns what it printed.
pub(crate) fn helm(cluster: &Cluster, args: &[&str]) -> String {
    let output = cluster.helm_command().args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "helm {args:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until a rollout is complete.
pub(crate) fn rolled_out(cluster: &Cluster, namespace: &str, workload: &str) {
    let args = ["-n", namespace, "rollout", "status", workload, "--timeout=180s"];
    if let Err(error) = cluster.kubectl(&args, "") {
        let pods = cluster.kubectl(&["-n", namespace, "describe", "pods"], "").unwrap_or_default();
        let log = cluster.kubectl(&["-n", namespace, "logs", workload, "--tail=50"], "").unwrap_or_default();
        panic!("{workload} is not rolled out: {error:#}\n{pods}\n{log}");
    }
}

/// Waits, in a test that has perhaps failed already, until Culvert is all there again for the next one; what is wrong is printed.
pub(crate) fn settle(cluster: &Cluster) {
    for workload in ["deployment/culvert-ca", "daemonset/culvert"] {
        let args = ["-n", ROOT, "rollout", "status", workload, "--timeout=180s"];
        if let Err(error) = cluster.kubectl(&args, "") {
            println!("{workload} is not put right: {error:#}");
        }
    }
}

/// Does so at the end of a test.
pub(crate) struct Settled(pub(crate) &'static Cluster);

impl Drop for Settled {
    fn drop(&mut self) {
        settle(self.0);
    }
}

/// A namespace of one test: `web`, two replicas on two nodes behind a service, and `client` on the first node, which asks them
/// without end. Gone with this value.
pub(crate) struct Shop {
    pub(crate) cluster: &'static Cluster,
    pub(crate) namespace: String,
}

impl Shop {
    /// Opens it, enrolled or not, and waits until everything runs.
    pub(crate) fn open(cluster: &'static Cluster, namespace: &str, enrolled: bool) -> Self {
        let shop = Self { cluster, namespace: namespace.to_owned() };
        let label = if enrolled { "labels: {culvert.dev/mesh: enabled}" } else { "" };
        cluster
            .apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n  {label}\n"))
            .unwrap();
        // Pods are refused until there is an account for them.
        shop.kubectl(&["wait", "--for=create", "serviceaccount/default", "--timeout=180s"]);
        let first = cluster.node("node-a").unique_name();
        shop.apply(
            &OBJECTS
                .replace("IMAGE", images::TOOLS)
                .replace("FIRST", &first)
                .replace("MARKER", &format!("{MARKER}-{namespace}")),
        );
        rolled_out(cluster, namespace, "deployment/web");
        shop.kubectl(&["wait", "--for=condition=Ready", "pod/client", "--timeout=180s"]);
        if enrolled {
            shop.wait_enrolled(true);
        }
        // Before there was anybody to answer it was refused: also by whoever had not heard yet that the pods are ready.
        eventually(PATIENCE, || {
            let answers = shop.answers();
            let last = answers.last().cloned().unwrap_or_default();
            last.starts_with("200 ").then_some(()).ok_or(last)
        });
        shop.wait_served_outside_the_mesh();
        shop.exec("client", ": > /tmp/answers");
        shop.wait_answers(5);
        shop
    }

    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        self.cluster.kubectl(&[&["-n", &self.namespace], args].concat(), "").unwrap()
    }

    pub(crate) fn apply(&self, yaml: &str) {
        self.cluster.kubectl(&["-n", &self.namespace, "apply", "-f", "-"], yaml).unwrap();
    }

    pub(crate) fn pods(&self) -> Vec<Value> {
        let list = self.cluster.get(&["-n", &self.namespace, "pods"]).unwrap();
        list["items"].as_array().unwrap().clone()
    }

    /// Waits until the status of every pod says that it is enrolled, or of none.
    pub(crate) fn wait_enrolled(&self, enrolled: bool) {
        eventually(PATIENCE, || {
            let wrong = self.pods().into_iter().find(|pod| is_enrolled(pod) != enrolled);
            wrong.map_or(Ok(()), |pod| Err(format!("{}", pod["metadata"]["annotations"])))
        });
    }

    /// Waits until kube-proxy on the client's node serves `web`. In the mesh nobody asks it; who leaves the mesh does, and it may
    /// still be trying to reach an API server that was away.
    fn wait_served_outside_the_mesh(&self) {
        let service = self.cluster.get(&["-n", &self.namespace, "service", "web"]).unwrap();
        let address = service["spec"]["clusterIP"].as_str().unwrap().to_owned();
        let node = self.cluster.node("node-a");
        eventually(PATIENCE, || {
            let mut curl = node.enter_command("curl").map_err(|error| format!("{error:#}"))?;
            let said = curl.args(["-sS", "-m", "2", "-o", "/dev/null", &format!("http://{address}")]);
            let said = said.output().map_err(|error| error.to_string())?;
            said.status
                .success()
                .then_some(())
                .ok_or_else(|| String::from_utf8_lossy(&said.stderr).into_owned())
        });
    }

    pub(crate) fn exec(&self, pod: &str, command: &str) -> String {
        self.kubectl(&["exec", pod, "--", "bash", "-c", command])
    }

    /// Every answer that the client has had, or what went wrong.
    pub(crate) fn answers(&self) -> Vec<String> {
        self.exec("client", "cat /tmp/answers").lines().map(str::to_owned).collect()
    }

    /// Waits until the client has asked some more times.
    pub(crate) fn wait_answers(&self, more: usize) {
        let count = || {
            let args = ["-n", &self.namespace, "exec", "client", "--", "wc", "-l", "/tmp/answers"];
            let said = self.cluster.kubectl(&args, "").map_err(|error| format!("{error:#}"))?;
            said.split(' ').next().and_then(|number| number.parse::<usize>().ok()).ok_or(said)
        };
        let before = eventually(PATIENCE, count);
        eventually(PATIENCE, || {
            (count()? >= before + more).then_some(()).ok_or_else(|| "still waits".to_owned())
        });
    }

    /// Asserts that each of the client's requests was answered with success, since it began.
    pub(crate) fn assert_no_failure(&self) {
        let answers = self.answers();
        let failed: Vec<_> = answers.iter().filter(|answer| !answer.starts_with("200 ")).collect();
        if !failed.is_empty() {
            for node in self.cluster.nodes() {
                if agent_pod(self.cluster, node).is_none() {
                    continue;
                }
                let log = agent_log(self.cluster, node);
                let wrong = log.lines().filter(|line| !line.contains("\"result\":\"ok\""));
                let last: Vec<_> = wrong.collect::<Vec<_>>().into_iter().rev().take(30).collect();
                println!("--- {}, the last first:\n{}", node.name(), last.join("\n"));
            }
        }
        assert!(
            failed.is_empty(),
            "{} of {} failed, each with when it came:\n{}",
            failed.len(),
            answers.len(),
            answers.join("\n")
        );
    }

    /// Asserts that no container was started again and no probe made a pod unready.
    pub(crate) fn assert_unharmed(&self) {
        for pod in self.pods() {
            for container in pod["status"]["containerStatuses"].as_array().unwrap() {
                assert_eq!(container["restartCount"], 0, "{pod:#}");
                assert_eq!(container["ready"], true, "{pod:#}");
            }
        }
    }

    /// What the agents say of connections to this namespace's `web`, as the client's own node saw them begin.
    pub(crate) fn access_log(&self) -> Vec<Value> {
        agent_log(self.cluster, self.cluster.node("node-a"))
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| {
                line["direction"] == "outbound" && line["src.namespace"] == self.namespace.as_str()
            })
            .collect()
    }

    /// What the agents say of connections to this namespace that a policy denied, as the servers' nodes saw them.
    pub(crate) fn denials(&self) -> Vec<Value> {
        let logs = self.cluster.nodes().iter().map(|node| agent_log(self.cluster, node));
        logs.flat_map(|log| {
            log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect::<Vec<_>>()
        })
        .filter(|line: &Value| {
            line["direction"] == "inbound"
                && line["dst.namespace"] == self.namespace.as_str()
                && line["result"] != "ok"
        })
        .collect()
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        let _ = self.cluster.kubectl(&["delete", "namespace", &self.namespace, "--wait=false"], "");
    }
}

/// Whether a pod's status says that it is enrolled.
pub(crate) fn is_enrolled(pod: &Value) -> bool {
    pod["metadata"]["annotations"]["culvert.dev/enrolled"] == "true"
}

/// The agent's pod of a node.
pub(crate) fn agent_pod(cluster: &Cluster, node: &ClusterNode) -> Option<String> {
    let field = format!("spec.nodeName={}", node.unique_name());
    let selector = "app.kubernetes.io/name=culvert";
    let list = cluster.get(&["-n", ROOT, "pods", "-l", selector, "--field-selector", &field]).unwrap();
    let pods = list["items"].as_array().unwrap();
    let living = pods.iter().find(|pod| pod["metadata"]["deletionTimestamp"].is_null())?;
    Some(living["metadata"]["name"].as_str()?.to_owned())
}

/// The process of a node's agent: of the pod that [`agent_pod`] finds.
pub(crate) fn agent_process(cluster: &Cluster, node: &ClusterNode) -> Option<i32> {
    let pod = cluster.get(&["-n", ROOT, "pod", &agent_pod(cluster, node)?]).ok()?;
    let uid = pod["metadata"]["uid"].as_str()?;
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let process = entry.file_name().to_str()?.parse().ok()?;
        // Probes are run in the same cgroup.
        (read("cmdline").starts_with("/usr/bin/culvert\0agent\0") && read("cgroup").contains(uid))
            .then_some(process)
    })
}

pub(crate) fn agent_log(cluster: &Cluster, node: &ClusterNode) -> String {
    let pod = agent_pod(cluster, node).expect("the node's agent");
    cluster.kubectl(&["-n", ROOT, "logs", &pod], "").unwrap()
}

pub(crate) const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/chart/culvert");

const OBJECTS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 5
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}
      containers:
      - name: web
        image: IMAGE
        imagePullPolicy: Never
        ports: [{containerPort: 8080, name: http}]
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1, timeoutSeconds: 5}
        livenessProbe: {tcpSocket: {port: http}, periodSeconds: 1, timeoutSeconds: 5}
        # A pod's end takes a moment to be known everywhere, in any cluster.
        lifecycle: {preStop: {sleep: {seconds: 3}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  nodeName: FIRST
  terminationGracePeriodSeconds: 0
  containers:
  - name: client
    image: IMAGE
    imagePullPolicy: Never
    command: [bash, -c, "while sleep 0.1; do said=$(curl -s -m 5 -o /dev/null -w '%{http_code} %{errormsg}' http://web/MARKER); printf '%s, at %(%T)T\\n' \"$said\" >> /tmp/answers; done"]
"#;
