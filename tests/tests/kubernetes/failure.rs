//! What goes on while something of the cluster is away.

use std::time::Duration;

use lab::{
    Cluster, PATIENCE,
    cluster::{ControlPlane, NodeDaemon, images},
    eventually,
};

use crate::world::{ROOT, Shop, agent_pod, alone, is_enrolled, rolled_out};

/// The kubelet makes a sandbox anew after ten seconds and more.
const AGAIN: Duration = Duration::from_secs(90);

/// While this lives no node has an agent: the DaemonSet's pods fit nowhere.
struct Nowhere(&'static Cluster);

impl Nowhere {
    fn send(cluster: &'static Cluster) -> Self {
        let selector =
            r#"{"spec":{"template":{"spec":{"nodeSelector":{"kubernetes.io/hostname":"nowhere"}}}}}"#;
        cluster.kubectl(&["-n", ROOT, "patch", "daemonset", "culvert", "-p", selector], "").unwrap();
        Self(cluster)
    }
}

impl Drop for Nowhere {
    fn drop(&mut self) {
        let back = r#"[{"op":"remove","path":"/spec/template/spec/nodeSelector/kubernetes.io~1hostname"}]"#;
        let args = ["-n", ROOT, "patch", "daemonset", "culvert", "--type=json", "-p", back];
        if let Err(error) = self.0.kubectl(&args, "") {
            println!("the agents stay away: {error:#}");
        }
    }
}

#[test]
fn a_pod_that_is_made_while_its_nodes_agent_is_away_speaks_no_plaintext() {
    let (cluster, _alone) = alone();
    let shop = Shop::open(cluster, "away", true);
    let node = cluster.node("node-b");
    let nowhere = Nowhere::send(cluster);
    if let Some(pod) = agent_pod(cluster, node) {
        let _ = cluster.kubectl(&["-n", ROOT, "delete", "pod", &pod, "--grace-period=0", "--force"], "");
    }
    eventually(PATIENCE, || agent_pod(cluster, node).is_none());
    let capture = cluster.capture(node).unwrap();
    shop.apply(&POD.replace("IMAGE", images::TOOLS).replace("NODE", &node.unique_name()));
    let refused = eventually(AGAIN, || {
        let events = shop.kubectl(&["get", "events", "--field-selector", "involvedObject.name=early"]);
        events.contains("FailedCreatePodSandBox").then_some(events.clone()).ok_or(events)
    });
    assert!(refused.contains("agent is away"), "it says why: {refused}");
    // A pod of a namespace that is not in the mesh starts as ever.
    let plain = [
        "run",
        "late",
        "--image",
        images::TOOLS,
        "--image-pull-policy=Never",
        "--command",
        "--",
        "sleep",
        "1000",
    ];
    cluster.kubectl(&plain, "").unwrap();
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/late", "--timeout=60s"], "").unwrap();
    cluster.kubectl(&["delete", "pod", "late", "--grace-period=0", "--force"], "").unwrap();
    drop(nowhere);
    rolled_out(cluster, ROOT, "daemonset/culvert");
    eventually(AGAIN, || is_enrolled(&cluster.get(&["-n", "away", "pod", "early"]).unwrap()));
    eventually(PATIENCE, || shop.kubectl(&["logs", "early"]).contains("greets"));
    let captured = capture.stop().unwrap();
    assert!(!captured.contains("from-the-early-pod"), "it was read on the wire");
}

#[test]
fn the_api_server_may_be_away_and_what_changed_is_caught_up_with() {
    let (cluster, _alone) = alone();
    let shop = Shop::open(cluster, "offline", true);
    cluster.stop(ControlPlane::ApiServer).unwrap();
    // The client cannot be asked either: what it wrote meanwhile is read afterwards.
    std::thread::sleep(Duration::from_secs(20));
    cluster.start(ControlPlane::ApiServer).unwrap();
    shop.wait_answers(10);
    shop.assert_no_failure();
    shop.kubectl(&["scale", "deployment/web", "--replicas=3"]);
    rolled_out(cluster, "offline", "deployment/web");
    shop.wait_enrolled(true);
    shop.wait_answers(20);
    shop.assert_no_failure();
    shop.assert_unharmed();
}

#[test]
fn containerd_and_the_kubelet_may_be_started_again() {
    let (cluster, _alone) = alone();
    let shop = Shop::open(cluster, "restarted", true);
    let node = cluster.node("node-b");
    for daemon in [NodeDaemon::Containerd, NodeDaemon::Kubelet] {
        node.restart(daemon).unwrap();
        shop.wait_answers(10);
    }
    shop.kubectl(&["scale", "deployment/web", "--replicas=4"]);
    rolled_out(cluster, "restarted", "deployment/web");
    shop.wait_enrolled(true);
    shop.assert_no_failure();
}

const POD: &str = "
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
