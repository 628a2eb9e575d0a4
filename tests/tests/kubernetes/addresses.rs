//! An address that one pod after another has.

use std::{fs, net::Ipv4Addr};

use lab::{ClusterNode, cluster::images, eventually};
use serde_json::Value;

use crate::world::{PATIENCE, Shop, agent_log, alone, is_enrolled};

/// Where host-local keeps the addresses of a node that are taken, and the one that it gave last.
fn leases(node: &ClusterNode) -> std::path::PathBuf {
    node.path("/var/lib/cni/networks").join(node.unique_name())
}

/// Has a node's next pod get this address, once it is free: host-local gives the one after the last.
fn give_next(node: &ClusterNode, address: Ipv4Addr) {
    let leases = leases(node);
    eventually(PATIENCE, || !leases.join(address.to_string()).exists());
    let before = Ipv4Addr::from_bits(address.to_bits() - 1);
    fs::write(leases.join("last_reserved_ip.0"), before.to_string()).unwrap();
}

/// Makes the pod that has the address now, and waits until it runs.
fn run(shop: &Shop, node: &ClusterNode, name: &str, mesh: &str) -> Ipv4Addr {
    let pod = POD.replace("NAME", name).replace("NODE", &node.unique_name()).replace("MESH", mesh);
    shop.apply(&pod.replace("IMAGE", images::TOOLS));
    shop.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=180s"]);
    let pod = shop.cluster.get(&["-n", &shop.namespace, "pod", name]).unwrap();
    assert_eq!(is_enrolled(&pod), mesh == "enabled", "{pod:#}");
    pod["status"]["podIP"].as_str().unwrap().parse().unwrap()
}

/// Ends a pod at once.
fn end(shop: &Shop, name: &str) {
    shop.kubectl(&["delete", "pod", name, "--grace-period=0", "--force", "--wait=false"]);
}

/// The access log's lines about a connection between a pod and what has the address, by their direction.
fn lines(shop: &Shop, node: &ClusterNode, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
    let log = agent_log(shop.cluster, node);
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(|line| wanted(line)).collect()
}

/// What the client is answered at an address: the name of the pod, or curl's status.
fn greeting(shop: &Shop, address: Ipv4Addr, marker: &str) -> String {
    shop.exec("client", &format!("curl -s -m 5 http://{address}:8080/{marker} || echo failed $?"))
}

/// What a pod is answered by `web`, which lets in nobody but `first`.
fn answered(shop: &Shop, name: &str) -> String {
    shop.exec(name, "curl -s -m 5 http://web/ || echo failed $?")
}

#[test]
fn a_pod_that_gets_anothers_address_gets_nothing_else_of_it() {
    let (cluster, _alone) = alone();
    let shop = Shop::open(cluster, "reused", true);
    let (a, b) = (cluster.node("node-a"), cluster.node("node-b"));
    shop.apply(POLICY);
    let address = run(&shop, b, "first", "enabled");
    let outcome = |name: &str, wanted: &dyn Fn(&str) -> bool| {
        eventually(PATIENCE, || {
            let said = answered(&shop, name);
            wanted(&said).then_some(()).ok_or(said)
        });
    };
    let identity = |account: &str| format!("spiffe://cluster.local/ns/reused/sa/{account}");
    // The client's agent says whose certificate it has seen at the address.
    let reached = |name: &str, marker: &str| {
        eventually(PATIENCE, || {
            let said = greeting(&shop, address, marker);
            said.starts_with(&format!("{name} greets")).then_some(()).ok_or(said)
        });
    };
    let seen = |account: &str| {
        let wanted = identity(account);
        let about = |line: &Value| line["dst.identity"] == wanted.as_str() && line["direction"] == "outbound";
        lines(&shop, a, about).len()
    };

    outcome("first", &|said| said.contains("greets"));
    reached("first", "to-the-first");
    eventually(PATIENCE, || seen("first") > 0);

    end(&shop, "first");
    give_next(b, address);
    assert_eq!(run(&shop, b, "second", "enabled"), address, "the address is the first one's");
    // From its first word on the second one is itself.
    let said = answered(&shop, "second");
    assert!(said.contains("failed"), "web lets the second one in: {said}");
    let denied = |line: &Value| {
        line["reason"] == "policy_denied" && line["src.identity"] == identity("second").as_str()
    };
    eventually(PATIENCE, || [a, b].iter().any(|node| !lines(&shop, node, denied).is_empty()));
    reached("second", "to-the-second");
    eventually(PATIENCE, || seen("second") > 0);
    let first = seen("first");

    end(&shop, "second");
    give_next(b, address);
    let capture = cluster.capture(b).unwrap();
    assert_eq!(run(&shop, b, "third", "disabled"), address, "the address is the first one's");
    let said = answered(&shop, "third");
    assert!(said.contains("failed"), "web lets in who has no identity: {said}");
    reached("third", "to-the-third");
    let captured = capture.stop().unwrap();
    assert!(captured.contains("to-the-third"), "who is outside is spoken to in plaintext");
    assert_eq!(seen("first"), first, "nobody was taken for the first one again");
}

const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: first-only}
spec:
  selector: {matchLabels: {app: web}}
  rules:
  - from:
    - source: {principals: [cluster.local/ns/reused/sa/first, cluster.local/ns/reused/sa/default]}
";

const POD: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: NAME}
---
apiVersion: v1
kind: Pod
metadata: {name: NAME, labels: {culvert.dev/mesh: MESH}}
spec:
  nodeName: NODE
  serviceAccountName: NAME
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: IMAGE
    imagePullPolicy: Never
    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
";
