//! The order in which a cluster comes up. What can go on at once does: nodes are made while the API server starts.

use std::{fs, path::Path, thread};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use serde_json::json;

use super::{
    Cluster, ClusterNode, ControlPlane, NodeDaemon, Tools,
    control_plane::{COREFILE, Site},
    credentials::Credentials,
    images, kubectl, network, node,
    place::Place,
};

/// Makes everything of a cluster, and waits until its nodes are ready.
pub(super) fn make(place: &Place, tools: &Tools, names: &[String], progress: fn(&str)) -> Result<Cluster> {
    progress("credentials and namespaces");
    make_directory(place)?;
    let nodes = node::number(place, tools, names);
    let unique: Vec<_> = nodes.iter().map(ClusterNode::unique_name).collect();
    Credentials::of(place.credentials(), network::CONTROL.into()).create(&unique)?;
    let numbered: Vec<_> = nodes.iter().map(ClusterNode::numbered).collect();
    network::create(place, &numbered)?;
    let site = Site::of(place, tools)?;
    let pause = place.directory().join("pause.tar");
    images::pause()?.write(&pause)?;

    progress("the control plane (etcd, kube-apiserver), and containerd on each node");
    thread::scope(|scope| {
        let prepared: Vec<_> = nodes.iter().map(|node| scope.spawn(|| prepare(node, &pause))).collect();
        for program in [ControlPlane::Etcd, ControlPlane::ApiServer] {
            program.start(place, &site)?;
            program.wait(place, &site)?;
        }
        progress("the controller manager, the scheduler, and kubelet and kube-proxy on each node");
        ControlPlane::ControllerManager.start(place, &site)?;
        ControlPlane::Scheduler.start(place, &site)?;
        fs::write(site.directory.join(COREFILE), ControlPlane::corefile(&site))
            .context("the DNS's configuration")?;
        ControlPlane::Dns.start(place, &site)?;
        prepared.into_iter().try_for_each(|node| match node.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    for node in &nodes {
        node.launch(NodeDaemon::Kubelet)?;
        node.launch(NodeDaemon::KubeProxy)?;
    }
    wait_ready(place, &site, &nodes)?;
    fs::write(place.ready(), json!(names).to_string()).context("noting that the cluster is up")?;
    Ok(Cluster::of(place.clone(), site, nodes))
}

/// Makes the cluster's directory a file system in memory: fast, and gone with its mount.
fn make_directory(place: &Place) -> Result<()> {
    let directory = place.directory();
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    mount(Some("culvert-cluster"), &directory, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
        .with_context(|| format!("mounting {}", directory.display()))?;
    for folder in [place.logs(), place.daemons()] {
        fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
    }
    Ok(())
}

/// All of a node that needs no API server.
fn prepare(node: &ClusterNode, pause: &Path) -> Result<()> {
    node.create()?;
    node.start(NodeDaemon::Containerd)?;
    node.load_image(pause)
}

/// Waits until every node takes pods, and until there is an account for them.
fn wait_ready(place: &Place, site: &Site, nodes: &[ClusterNode]) -> Result<()> {
    for program in [ControlPlane::ControllerManager, ControlPlane::Scheduler, ControlPlane::Dns] {
        program.wait(place, site)?;
    }
    for node in nodes {
        node.wait_healthy(NodeDaemon::KubeProxy)?;
        node.wait_ready(site)?;
    }
    kubectl::run(site, &["wait", "--for=create", "serviceaccount/default", "--timeout=180s"], "").map(drop)
}
