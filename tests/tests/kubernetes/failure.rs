//! What goes on while something of the cluster is away.

use std::{path::Path, time::Duration};

use lab::{Cluster, ClusterNode, ControlPlane, NodeDaemon, cluster::images, eventually};

use crate::world::{PATIENCE, ROOT, Shop, agent_pod, agent_process, alone, is_enrolled, rolled_out, settle};

/// The kubelet makes a sandbox anew after ten seconds and more.
const AGAIN: Duration = Duration::from_secs(90);

/// How long the API server is away.
const AWAY: Duration = Duration::from_secs(60);

/// While this lives no node has an agent: the DaemonSet's pods fit nowhere. Its end waits until they are back.
struct Nowhere(&'static Cluster);

impl Nowhere {
    fn send(cluster: &'static Cluster) -> Self {
        let nowhere = Self(cluster);
        let selector =
            r#"{"spec":{"template":{"spec":{"nodeSelector":{"kubernetes.io/hostname":"nowhere"}}}}}"#;
        cluster.kubectl(&["-n", ROOT, "patch", "daemonset", "culvert", "-p", selector], "").unwrap();
        nowhere
    }
}

impl Drop for Nowhere {
    fn drop(&mut self) {
        let back = r#"[{"op":"remove","path":"/spec/template/spec/nodeSelector/kubernetes.io~1hostname"}]"#;
        let args = ["-n", ROOT, "patch", "daemonset", "culvert", "--type=json", "-p", back];
        if let Err(error) = self.0.kubectl(&args, "") {
            println!("the agents stay away: {error:#}");
        }
        settle(self.0);
    }
}

/// A pod of the namespace `default`. Gone with this value.
struct Plain(&'static Cluster, &'static str);

impl Plain {
    fn run(cluster: &'static Cluster, name: &'static str) -> Self {
        let image = ["--image", images::TOOLS, "--image-pull-policy=Never"];
        let args = [&["run", name], &image[..], &["--command", "--", "sleep", "1000"]].concat();
        cluster.kubectl(&args, "").unwrap();
        Self(cluster, name)
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        let args = ["delete", "pod", self.1, "--grace-period=0", "--force", "--wait=false"];
        let _ = self.0.kubectl(&args, "");
    }
}

#[test]
fn a_pod_that_is_made_while_its_nodes_agent_is_away_speaks_no_plaintext_and_any_other_starts() {
    let (cluster, _alone) = alone();
    let shop = Shop::open(cluster, "away", true);
    let node = cluster.node("node-b");
    let agent = eventually(PATIENCE, || agent_process(cluster, node));
    let nowhere = Nowhere::send(cluster);
    eventually(AGAIN, || {
        // One that has no programs any more is not waited for.
        if let Some(pod) = agent_pod(cluster, node) {
            let _ = cluster.kubectl(&["-n", ROOT, "delete", "pod", &pod, "--grace-period=0", "--force"], "");
        }
        agent_pod(cluster, node).is_none()
    });
    // Until its process has ended it serves, whatever the API server has of it.
    eventually(AGAIN, || !Path::new("/proc").join(agent.to_string()).exists());
    let capture = cluster.capture(node).unwrap();
    shop.apply(&EARLY.replace("IMAGE", images::TOOLS).replace("NODE", &node.unique_name()));
    let refused = eventually(AGAIN, || {
        let events = shop.kubectl(&["get", "events", "--field-selector", "involvedObject.name=early"]);
        events.contains("FailedCreatePodSandBox").then_some(events.clone()).ok_or(events)
    });
    assert!(refused.contains("agent is away"), "it says why: {refused}");
    // A pod of a namespace that is not in the mesh starts as ever.
    let plain = Plain::run(cluster, "late");
    cluster.wait_for("pod/late", "condition=Ready").unwrap();
    drop(plain);
    drop(nowhere);
    rolled_out(cluster, ROOT, "daemonset/culvert");
    eventually(AGAIN, || is_enrolled(&cluster.get(&["-n", "away", "pod", "early"]).unwrap()));
    // It is enrolled before its container is started.
    let logs = || cluster.kubectl(&["-n", "away", "logs", "early"], "");
    eventually(PATIENCE, || logs().is_ok_and(|logs| logs.contains("greets")));
    let captured = capture.stop().unwrap();
    assert!(!captured.contains("from-the-early-pod"), "it was read on the wire");
}

/// While this lives a program of the control plane is away.
struct Killed(&'static Cluster, ControlPlane);

impl Killed {
    fn kill(cluster: &'static Cluster, program: ControlPlane) -> Self {
        let killed = Self(cluster, program);
        cluster.kill(program).unwrap();
        killed
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        if let Err(error) = self.0.start(self.1) {
            println!("it stays away: {error:#}");
        }
    }
}

/// Sees to it that a program of a node runs at the end of a test.
struct Running(&'static ClusterNode, NodeDaemon);

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.pid(self.1).is_none()
            && let Err(error) = self.0.start(self.1)
        {
            println!("{:?} of {} does not run: {error:#}", self.1, self.0.name());
        }
    }
}

#[test]
fn containerd_and_the_kubelet_may_be_started_again() {
    let (cluster, _alone) = alone();
    let shop = Shop::open(cluster, "restarted", true);
    let node = cluster.node("node-b");
    for daemon in [NodeDaemon::Containerd, NodeDaemon::Kubelet] {
        let _running = Running(node, daemon);
        node.restart(daemon).unwrap();
        shop.wait_answers(10);
    }
    shop.kubectl(&["scale", "deployment/web", "--replicas=4"]);
    rolled_out(cluster, "restarted", "deployment/web");
    shop.wait_enrolled(true);
    shop.wait_answers(20);
    shop.assert_no_failure();
}

#[test]
fn the_api_server_may_be_away_and_what_changed_is_caught_up_with() {
    let (cluster, _alone) = alone();
    let shop = Shop::open(cluster, "offline", true);
    let before = shop.answers().len();
    let killed = Killed::kill(cluster, ControlPlane::ApiServer);
    // Nothing is waited for: it is away for this long, whatever happens. The client cannot be asked either.
    std::thread::sleep(AWAY);
    drop(killed);
    shop.wait_answers(10);
    assert!(shop.answers().len() > before + 15, "it has asked all the while");
    shop.assert_no_failure();
    shop.kubectl(&["scale", "deployment/web", "--replicas=3"]);
    rolled_out(cluster, "offline", "deployment/web");
    shop.wait_enrolled(true);
    shop.wait_answers(20);
    shop.assert_no_failure();
    shop.assert_unharmed();
}

const EARLY: &str = "
apiVersion: v1
kind: Pod
metadata: {name: early}
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: IMAGE
    imagePullPolicy: Never
    command: [bash, -c, 'while true; do curl -sS -m 5 http://$WEB_SERVICE_HOST/from-the-early-pod 2>&1; sleep 1; done']
";
