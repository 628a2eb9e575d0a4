//! The cluster with Culvert in it and the shop (`shop.yaml`), and what can be asked of them.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use anyhow::{Context as _, Result, ensure};
use lab::{AccessRecord, Cluster, ClusterConfig, ClusterNode, PATIENCE, cluster::images, try_eventually};
use serde_json::Value;

use crate::report::{Report, row};
use crate::{cluster::tell, layout};

/// The demo's own cluster, beside whatever others there are. Not `demo`: the plain demo's namespaces begin so.
pub(super) const CLUSTER: &str = "kubedemo";

/// Where Culvert is installed.
pub(super) const ROOT: &str = "culvert-system";

/// The namespaces of `shop.yaml`.
pub(super) const SHOP: &str = "shop";
pub(super) const LEGACY: &str = "legacy";

/// Where the objects are that the demo applies, in the checkout.
pub(super) const FOLDER: &str = "xtask/src/demo/kubernetes";

const CHART: &str = "deploy/chart/culvert";

/// The selector of the agents' pods.
pub(super) const AGENTS: &str = "app.kubernetes.io/name=culvert";

/// Everything that is there. Dropping it takes the cluster down.
pub(super) struct Shop {
    cluster: Cluster,
    /// The probes that had failed when the tour began: an application takes a moment to listen.
    failed_probes: u64,
}

impl Shop {
    /// Brings the cluster up, installs Culvert in it as docs/install.md says, and opens the shop, outside the mesh.
    pub(super) fn open() -> Result<Self> {
        // The commands that are shown name files as they are called in the checkout.
        std::env::set_current_dir(layout::root()).context("going to the root of the checkout")?;
        tell("a control plane and two nodes, in namespaces of this machine");
        let cluster = Cluster::up(ClusterConfig::named(CLUSTER).progress(tell))?;
        tell("two images: Culvert's, and one with curl, nginx and a shell");
        cluster.add_image(&images::culvert(images::CULVERT, &lab::culvert()?)?)?;
        cluster.add_image(&images::tools()?)?;
        let mut shop = Self { cluster, failed_probes: 0 };
        shop.install()?;
        tell(&format!("kubectl apply -f {FOLDER}/shop.yaml"));
        shop.apply("shop.yaml")?;
        shop.kubectl(&["-n", SHOP, "rollout", "status", "deployment/web", LIMIT])?;
        for namespace in [SHOP, LEGACY] {
            shop.kubectl(&["-n", namespace, "wait", "--for=condition=Ready", "pod", "--all", LIMIT])?;
        }
        tell("everything runs");
        // What it asked before there was anybody to answer does not count.
        shop.exec(SHOP, "client", ": > /tmp/answers")?;
        shop.wait_answers(5)?;
        shop.failed_probes = shop.failed_probes()?;
        Ok(shop)
    }

    fn install(&self) -> Result<()> {
        tell(&format!("helm install culvert {CHART} --namespace {ROOT}"));
        self.kubectl(&["create", "namespace", ROOT])?;
        self.kubectl(&["label", "namespace", ROOT, "pod-security.kubernetes.io/enforce=privileged"])?;
        let mut helm = self.cluster.helm_command();
        helm.args(["install", "culvert", CHART, "--namespace", ROOT, "--set", "image.pullPolicy=Never"]);
        let output = helm.output().context("starting helm")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "helm install: {}", complaint.trim());
        for workload in ["deployment/culvert-ca", "daemonset/culvert"] {
            self.kubectl(&["-n", ROOT, "rollout", "status", workload, LIMIT])?;
        }
        Ok(())
    }

    /// Who is where.
    pub(super) fn describe(&self, report: &mut Report) -> Result<()> {
        let mut rows = vec![row(["NODE", "NAMESPACE", "POD", "ADDRESS", "WHAT IT DOES"])];
        for pod in self.pods(None)? {
            let does = match text(&pod["metadata"]["labels"]["app"]) {
                "web" => "nginx, behind the service web",
                "client" => "asks http://web.shop/ all the while, ten times a second at most",
                "batch" => "nothing, until it is told to",
                "outsider" => "never in the mesh",
                _ if pod["metadata"]["labels"]["app.kubernetes.io/name"] == "culvert" => {
                    "Culvert's agent, one a node"
                }
                _ => "Culvert's certificate authority",
            };
            let (metadata, address) = (&pod["metadata"], text(&pod["status"]["podIP"]));
            let node = text(&pod["spec"]["nodeName"]);
            rows.push(row([node, text(&metadata["namespace"]), text(&metadata["name"]), address, does]));
        }
        rows[1..].sort();
        report.table(&rows);
        Ok(())
    }

    /// The node of the client; half of what it asks goes to the other.
    pub(super) fn client_node(&self) -> &ClusterNode {
        self.cluster.node("node-a")
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    pub(super) fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.cluster.kubectl(args, "")
    }

    /// Shows a command of kubectl's, and runs it.
    pub(super) fn command(&self, report: &Report, args: &[&str]) -> Result<String> {
        report.command(&format!("kubectl {}", args.join(" ")));
        self.kubectl(args)
    }

    /// Applies one of the files beside this one.
    pub(super) fn apply(&self, file: &str) -> Result<()> {
        let path = Path::new(FOLDER).join(file);
        self.kubectl(&["apply", "-f", &path.to_string_lossy()]).map(drop)
    }

    /// Runs a line of a shell's in a pod, and returns what it printed.
    pub(super) fn exec(&self, namespace: &str, pod: &str, line: &str) -> Result<String> {
        self.kubectl(&["-n", namespace, "exec", pod, "--", "bash", "-c", line])
    }

    /// Has a pod ask for a path of the web server as many times, and returns the answers: a line each, empty where there was
    /// none.
    pub(super) fn ask(
        &self,
        (namespace, pod): (&str, &str),
        path: &str,
        times: usize,
    ) -> Result<Vec<String>> {
        let line = format!("for i in {{1..{times}}}; do curl -s -m 5 http://web.shop/{path} || echo; done");
        Ok(self.exec(namespace, pod, &line)?.lines().map(str::to_owned).collect())
    }

    /// What curl complains of in a pod that asks once; `None` where it is answered.
    pub(super) fn complaint(&self, (namespace, pod): (&str, &str)) -> Result<Option<String>> {
        let said =
            self.exec(namespace, pod, "curl -s -m 5 -o /dev/null -w '%{errormsg}' http://web.shop/ || true")?;
        Ok(Some(said).filter(|said| !said.is_empty()))
    }

    /// Waits until a pod is refused as often as it asks, whichever replica it comes to, and returns what curl says.
    pub(super) fn wait_refused(&self, (namespace, pod): (&str, &str)) -> Result<String> {
        let once = "curl -s -m 5 -o /dev/null -w '%{errormsg}\\n' http://web.shop/ || true";
        let line = format!("for i in {{1..{SEVERAL}}}; do {once}; done");
        try_eventually(PATIENCE, || {
            let said = self.exec(namespace, pod, &line)?;
            let answered = said.lines().filter(|line| line.is_empty()).count();
            ensure!(answered == 0, "{answered} of {SEVERAL} requests are answered");
            said.lines().next().map(str::to_owned).context("curl says nothing")
        })
    }

    /// Waits until a request of the client's has arrived at each replica through a tunnel.
    pub(super) fn wait_tunnelled(&self) -> Result<()> {
        try_eventually(PATIENCE, || {
            let arrivals = self.arrivals()?;
            let tunnelled =
                arrivals.iter().filter(|record| record.field("security").as_deref() == Some("mutual_tls"));
            let replicas: BTreeSet<_> = tunnelled.filter_map(|record| record.field("dst.workload")).collect();
            ensure!(replicas.len() == 2, "so far {replicas:?}");
            Ok(())
        })
        .context("no connection through a tunnel to each replica")
    }

    /// The address of a pod.
    pub(super) fn address(&self, pod: &str) -> Result<IpAddr> {
        let address = self.kubectl(&["-n", SHOP, "get", "pod", pod, "-o", "jsonpath={.status.podIP}"])?;
        address.parse().with_context(|| format!("the address of {pod}: {address:?}"))
    }

    /// The name of the first pod on the client's node that a selector selects.
    pub(super) fn pod_of_client_node(&self, namespace: &str, selector: &str) -> Result<String> {
        let node = format!("--field-selector=spec.nodeName={}", self.client_node().unique_name());
        let first = "jsonpath={.items[0].metadata.name}";
        self.kubectl(&["-n", namespace, "get", "pods", "-l", selector, &node, "-o", first])
    }

    /// Waits until every pod of the shop says that it is in the mesh, or none does.
    pub(super) fn wait_enrolled(&self, enrolled: bool) -> Result<()> {
        try_eventually(PATIENCE, || {
            let pods = self.pods(Some(SHOP))?;
            let wrong = pods.iter().find(|pod| is_enrolled(pod) != enrolled);
            wrong.map_or(Ok(()), |pod| Err(anyhow::anyhow!("not yet {}", pod["metadata"]["name"])))
        })
    }

    /// Every answer that the client has had: a status and what went wrong.
    pub(super) fn answers(&self) -> Result<Vec<String>> {
        Ok(self.exec(SHOP, "client", "cat /tmp/answers")?.lines().map(str::to_owned).collect())
    }

    /// Waits until the client has asked some more times.
    pub(super) fn wait_answers(&self, more: usize) -> Result<()> {
        let before = self.answers()?.len();
        try_eventually(PATIENCE, || {
            let now = self.answers()?.len();
            ensure!(now >= before + more, "{now} answers, {before} before");
            Ok(())
        })
        .context("the client does not go on")
    }

    /// The lines of both agents' logs that are about connections to the shop's pods, from their destination's side.
    pub(super) fn arrivals(&self) -> Result<Vec<AccessRecord>> {
        let log = self.kubectl(&["-n", ROOT, "logs", "-l", AGENTS, "--tail=-1"])?;
        let to_shop = |record: &AccessRecord| {
            record.direction() == "inbound" && record.field("dst.namespace").as_deref() == Some(SHOP)
        };
        Ok(AccessRecord::parse(&log).into_iter().filter(to_shop).collect())
    }

    /// Says what holds for all of the time.
    pub(super) fn sum_up(&self, report: &mut Report) -> Result<()> {
        report.heading("All the while");
        let answers = self.answers()?;
        let failed: BTreeSet<_> = answers.iter().filter(|answer| !answer.starts_with("200 ")).collect();
        report.check(
            failed.is_empty(),
            &format!("the client asked {} times, and not one request failed", answers.len()),
        );
        for answer in failed {
            report.line(answer);
        }
        let pods = self.pods(None)?;
        let containers =
            || pods.iter().filter_map(|pod| pod["status"]["containerStatuses"].as_array()).flatten();
        let restarted = containers().filter(|container| container["restartCount"] != 0).count();
        report.check(restarted == 0, "no container was started again, neither the shop's nor Culvert's");
        let unready = containers().filter(|container| container["ready"] != true).count();
        let probes = self.failed_probes()? - self.failed_probes;
        report.check(
            unready == 0 && probes == 0,
            "the kubelets' probes of the shop's pods went on, and none failed",
        );
        Ok(())
    }

    /// How often a probe in the shop has failed, as the events say.
    fn failed_probes(&self) -> Result<u64> {
        let events = self.cluster.get(&["-n", SHOP, "events", "--field-selector=reason=Unhealthy"])?;
        let counts = events["items"].as_array().into_iter().flatten();
        Ok(counts.map(|event| event["count"].as_u64().unwrap_or(1)).sum())
    }

    fn pods(&self, namespace: Option<&str>) -> Result<Vec<Value>> {
        let args =
            namespace.map_or(vec!["pods", "--all-namespaces"], |namespace| vec!["pods", "-n", namespace]);
        let mut list = self.cluster.get(&args)?;
        match list["items"].take() {
            Value::Array(pods) => Ok(pods),
            other => anyhow::bail!("kubectl names no pods, but {other}"),
        }
    }
}

fn is_enrolled(pod: &Value) -> bool {
    pod["metadata"]["annotations"]["culvert.dev/enrolled"] == "true"
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// How long Kubernetes may take for what ought to take seconds.
const LIMIT: &str = "--timeout=120s";

/// How often to ask to have asked both replicas: but once in five hundred times that is so.
const SEVERAL: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_applied_names_the_image_and_the_node_that_there_are() {
        let objects = include_str!("shop.yaml");
        let values = |key: &str| -> BTreeSet<_> {
            objects.split(key).skip(1).filter_map(|rest| rest.split([',', '\n']).next()).collect()
        };
        assert_eq!(values("image: "), BTreeSet::from([images::TOOLS]));
        assert_eq!(values("nodeName: "), BTreeSet::from([format!("{CLUSTER}-node-a").as_str()]));
    }
}
