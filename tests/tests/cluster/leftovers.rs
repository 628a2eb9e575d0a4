//! Whatever happens to the process that brings a cluster up, the machine is as it was when the cluster is down.

use std::{
    collections::HashSet,
    process::{Command, Stdio},
};

use lab::{Cluster, ClusterConfig, ControlPlane, PATIENCE, cluster::images, eventually};

use crate::{
    machine::{Machine, namespaces},
    world::idle_pod,
};

/// The cluster of this module, which no other test knows.
const NAME: &str = "lableft";

/// What [`victim`] finds in its environment, so that nobody runs it by itself.
const VICTIM: &str = "LAB_CLUSTER_VICTIM";

/// Brings up the cluster of [`NAME`] until it is killed.
#[test]
#[ignore = "the process that a test below starts and kills: no test by itself"]
fn victim() {
    assert!(std::env::var_os(VICTIM).is_some(), "this is for a test to start");
    let _cluster = Cluster::up(ClusterConfig::named(NAME)).unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn what_a_killed_up_has_left_is_removed_by_the_next_and_down_leaves_nothing() {
    let before = Machine::look(NAME, &HashSet::new());
    assert_eq!(before.count("namespace") + before.count("process"), 0, "left by an earlier run: {before:?}");

    kill_half_way();
    let halfway = Machine::look(NAME, &namespaces(NAME));
    assert_eq!(halfway.count("namespace"), 3, "{halfway:?}");
    assert!(halfway.count("process") >= 4 && halfway.count("cgroup") >= 2, "{halfway:?}");
    assert!(Cluster::find(NAME).is_err(), "half a cluster is not one");

    let cluster = Cluster::up(ClusterConfig::named(NAME)).unwrap();
    let survivors = halfway.0.iter().filter(|line| line.starts_with("process"));
    let now = Machine::look(NAME, &namespaces(NAME));
    for process in survivors {
        assert!(!now.0.contains(process), "{process} survived");
    }
    cluster.add_image(&images::tools().unwrap()).unwrap();
    idle_pod(&cluster, "one", "node-a");

    the_api_server_returns(&cluster);

    let inside = namespaces(NAME);
    let up = Machine::look(NAME, &inside);
    // The control: what is looked for is found while it is there.
    for (kind, least) in [("namespace", 3), ("process", 13), ("cgroup", 2), ("mount", 1)] {
        assert!(up.count(kind) >= least, "{kind}: {up:?}");
    }
    drop(cluster);
    // A process that was killed is a zombie until init has looked at it.
    eventually(PATIENCE, || match Machine::look(NAME, &inside).0.difference(&before.0).collect::<Vec<_>>() {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    });
    assert!(Cluster::find(NAME).unwrap().is_none());
}

/// Starts this program's [`victim`], and kills it when its nodes have begun to run.
fn kill_half_way() {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "leftovers::victim"])
        .env(VICTIM, "1")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually(3 * PATIENCE, || {
        let machine = Machine::look(NAME, &namespaces(NAME));
        // Of both nodes, which are made at once: a cgroup and a process each, besides etcd.
        let begun = machine.count("process") >= 4 && machine.count("cgroup") >= 2;
        if begun && machine.0.iter().any(|line| line.ends_with("containerd")) {
            Ok(())
        } else {
            Err(format!("{machine:?}"))
        }
    });
    victim.kill().unwrap();
    victim.wait().unwrap();
}

/// Ends the API server and starts it again. It is here since other tests share theirs.
fn the_api_server_returns(cluster: &Cluster) {
    cluster.stop(ControlPlane::ApiServer).unwrap();
    assert!(cluster.kubectl(&["get", "pods"], "").is_err());
    cluster.start(ControlPlane::ApiServer).unwrap();
    let pod = cluster.get(&["pod", "one"]).unwrap();
    assert_eq!(pod["status"]["phase"], "Running");
}
