//! Nodes are two: each has its own files and its own network, and its programs can be ended and started.

use std::{fs, process::Command};

use lab::{Cluster, NodeDaemon};

use crate::world::{cluster, idle_pod, wait_ready};

/// What a command on a node prints.
fn on(cluster: &Cluster, node: &str, script: &str) -> String {
    let mut command = cluster.node(node).enter_command("sh").unwrap();
    let output = command.args(["-euc", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn two_nodes_are_ready() {
    let cluster = cluster();
    let listed = cluster.get(&["nodes"]).unwrap();
    let names: Vec<_> =
        listed["items"].as_array().unwrap().iter().map(|node| &node["metadata"]["name"]).collect();
    assert_eq!(names, ["labcluster-node-a", "labcluster-node-b"]);
    for node in ["node-a", "node-b"] {
        wait_ready(cluster, node);
        assert_eq!(listed["items"][0]["status"]["nodeInfo"]["kubeletVersion"], "v1.36.3");
    }
}

#[test]
fn a_nodes_files_are_its_own_and_where_any_node_has_them() {
    let cluster = cluster();
    for file in ["/etc/cni/net.d/00-mine", "/opt/cni/bin/mine", "/run/mine", "/var/lib/kubelet/mine"] {
        on(cluster, "node-a", &format!("echo of-a > {file}"));
        assert_eq!(on(cluster, "node-b", &format!("test -e {file} || echo none")), "none", "{file}");
        assert!(!fs::exists(file).unwrap(), "{file} is the machine's too");
        on(cluster, "node-a", &format!("rm {file}"));
    }
    let node = cluster.node("node-b");
    fs::write(node.cni_conf_dir().join("99-seen.conf"), "seen").unwrap();
    assert_eq!(on(cluster, "node-b", "cat /etc/cni/net.d/99-seen.conf"), "seen");
    fs::remove_file(node.cni_conf_dir().join("99-seen.conf")).unwrap();
}

#[test]
fn a_node_sees_its_own_network_and_the_machines_cgroups() {
    let cluster = cluster();
    for node in cluster.nodes() {
        let shown = on(cluster, node.name(), "ip -brief address show dev eth0; cat /proc/self/cgroup");
        for address in node.addresses() {
            assert!(shown.contains(&address.to_string()), "{shown}");
        }
        assert!(shown.contains("0::/"), "{shown}");
    }
    let links = Command::new("ip").args(["-brief", "link"]).output().unwrap();
    assert!(
        !String::from_utf8_lossy(&links.stdout).contains("cni0"),
        "the machine's own network has a bridge"
    );
}

#[test]
fn pods_go_on_while_the_programs_of_their_node_are_restarted() {
    let cluster = cluster();
    idle_pod(cluster, "stays", "node-a");
    let started = || cluster.get(&["pod", "stays"]).unwrap()["status"]["containerStatuses"][0].clone();
    let before = started();
    let node = cluster.node("node-a");
    for daemon in [NodeDaemon::Kubelet, NodeDaemon::Containerd, NodeDaemon::KubeProxy] {
        let old = node.pid(daemon).unwrap();
        node.restart(daemon).unwrap();
        assert_ne!(node.pid(daemon), Some(old), "{daemon:?}");
    }
    // It runs a pod again, so it is back, whatever its last status says.
    idle_pod(cluster, "comes-later", "node-a");
    let after = started();
    assert_eq!(before["containerID"], after["containerID"]);
    assert_eq!(after["restartCount"], 0);
    wait_ready(cluster, "node-a");
    cluster.kubectl(&["delete", "pod", "stays", "comes-later"], "").unwrap();
}
