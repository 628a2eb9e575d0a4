//! The node itself: its own processes, such as the kubelet with its probes, reach a pod in every mode. A process of a
//! hostNetwork pod is none of them, nor is what the node forwards in its own name.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Output,
};

use lab::{Node, tcp};

use crate::{
    objects::{Policy, deny, mode},
    world::{PORT, World, open, refusal},
};

/// Sends a line and prints what comes back; its error is the program's.
const CLIENT: &str =
    r#"exec 3<>"/dev/tcp/$0/$1" && echo hello >&3 && read -r -t 30 line <&3 && echo "$line""#;

#[test]
fn probes_reach_a_pod_in_every_mode() {
    let world = World::start();
    let _server = world.server.serve(PORT, tcp::echo).unwrap();
    let node = world.mesh.node("node-b");
    let everything: [&[Policy]; 4] = [
        &[mode("strict", "STRICT")],
        &[mode("permissive", "PERMISSIVE")],
        &[mode("disable", "DISABLE")],
        &[mode("strict-too", "STRICT"), deny("everybody", "[{}]")],
    ];
    for policies in everything {
        world.apply(policies);
        for target in [world.server.at_v4(PORT), world.server.at_v6(PORT)] {
            let mut probe = node.connect(target).unwrap_or_else(|error| panic!("{policies:?}: {error}"));
            tcp::ping(&mut probe, "probe").unwrap_or_else(|error| panic!("{policies:?}: {error}"));
        }
    }
    // Control: the last of them refuse the neighbour, and the other node too, which is not the pod's own.
    assert_eq!(refusal(&world.neighbour, world.server.at(PORT)), io::ErrorKind::ConnectionRefused);
    let other = world.mesh.node("node-a").connect(world.server.at(PORT));
    assert_eq!(other.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_host_network_pod_is_not_the_node() {
    let pod = HostPod::new();
    let world = World::start();
    let server = world.server.serve(PORT, tcp::echo).unwrap();
    let node = world.mesh.node("node-b");
    for target in [world.server.at_v4(PORT), world.server.at_v6(PORT)] {
        let output = pod.run(node, target);
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "hello", "{output:?}");
    }
    world.apply(&[mode("strict", "STRICT")]);
    let before = server.accepted();
    for target in [world.server.at_v4(PORT), world.server.at_v6(PORT)] {
        let output = pod.run(node, target);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains("refused"), "{output:?}");
        // Control: the same program outside that cgroup.
        let probe = node.command("bash").args(["-c", CLIENT]).args(ends(target)).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&probe.stdout).trim(), "hello", "{probe:?}");
    }
    assert_eq!(server.accepted(), before + 2);
}

#[test]
fn what_the_node_forwards_in_its_own_name_is_not_the_node() {
    let world = World::start();
    let server = world.server.serve(PORT, tcp::echo).unwrap();
    let node = world.mesh.node("node-b");
    let node_port = SocketAddr::new(node.ipv4().into(), 30080);
    forward(node, node_port, world.server.at_v4(PORT));
    let stream = open(&world.stranger, node_port);
    // Control: it is the node's address that the server sees.
    assert_eq!(server.peers().last().map(SocketAddr::ip), Some(node_port.ip()));
    drop(stream);
    world.apply(&[mode("strict", "STRICT")]);
    let before = server.accepted();
    assert_eq!(refusal(&world.stranger, node_port), io::ErrorKind::ConnectionRefused);
    assert_eq!(server.accepted(), before);
    tcp::ping(&mut node.connect(world.server.at(PORT)).unwrap(), "probe").unwrap();
}

/// What kube-proxy does for a NodePort: the destination becomes a pod, the source the node.
fn forward(node: &Node, from: SocketAddr, to: SocketAddr) {
    let port = from.port().to_string();
    let (from, pod, target) = (from.ip().to_string(), to.ip().to_string(), to.to_string());
    let rules: [&[&str]; 2] = [
        &[
            "PREROUTING",
            "-p",
            "tcp",
            "-d",
            &from,
            "--dport",
            &port,
            "-j",
            "DNAT",
            "--to-destination",
            &target,
        ],
        &["POSTROUTING", "-p", "tcp", "-d", &pod, "-j", "SNAT", "--to-source", &from],
    ];
    for rule in rules {
        // Its lock is the machine's: whoever has it is waited for.
        let status = node.command("iptables").args(["-w", "-t", "nat", "-A"]).args(rule).status();
        assert!(status.expect("package iptables").success(), "{rule:?}");
    }
}

fn ends(target: SocketAddr) -> [String; 2] {
    [target.ip().to_string(), target.port().to_string()]
}

/// The cgroup of a pod that shares the node's network, below the kubelet's.
struct HostPod(PathBuf);

impl HostPod {
    /// To be made before the agents start, as the kubelet's cgroup is there before any pod.
    fn new() -> Self {
        let path = cgroup2().join("kubepods").join(format!("pod-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(path)
    }

    fn run(&self, node: &Node, target: SocketAddr) -> Output {
        let join = format!("echo $$ > {}/cgroup.procs && {CLIENT}", self.0.display());
        node.command("bash").args(["-c", &join]).args(ends(target)).output().unwrap()
    }
}

impl Drop for HostPod {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
        // Where another has its own below it, it stays.
        let _ = self.0.parent().map(fs::remove_dir);
    }
}

fn cgroup2() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mut mounted = mount.filter(|fields| fields.get(2) == Some(&"cgroup2"));
    Path::new(mounted.next().expect("cgroup v2 is mounted")[1]).to_owned()
}
