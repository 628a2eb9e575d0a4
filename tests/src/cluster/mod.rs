//! A real Kubernetes cluster on this one machine: etcd, API server, controller manager, scheduler, and nodes with real
//! kubelets, containerd and kube-proxy, each in network namespaces of its own.
//!
//! ```text
//! Cluster::up ─► up: credentials ─► network ─► control_plane ─┬─► nodes Ready
//!                                          └─► node (×2) ─────┘
//! ```
//!
//! Here is what makes it, looks after it and removes it. What runs in it is the suites' business; installing the programs is
//! that of `cargo xtask setup`. Everything on the machine is found by the cluster's name (`place`), so that a cluster whose
//! process was killed is removed by the next that comes (`remains`).

mod api_server;
mod cgroups;
mod configuration;
mod control_plane;
mod credentials;
mod daemon;
pub mod images;
mod kubectl;
mod network;
mod node;
mod place;
mod remains;
pub mod tools;
mod up;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

pub(crate) use self::remains::Remains;
pub use self::{
    api_server::ApiServer,
    control_plane::ControlPlane,
    node::{ClusterNode, NodeDaemon},
    tools::Tools,
};
use self::{control_plane::Site, daemon::Daemon, place::Place};
use crate::{
    NetNs, interrupt,
    registry::{self, Live},
};

/// A cluster that is up. Dropping it takes it down, unless it is kept.
#[derive(Debug)]
pub struct Cluster {
    place: Place,
    site: Site,
    nodes: Vec<ClusterNode>,
    ends_with_this: bool,
}

/// What a cluster is to be.
#[must_use = "a cluster is made by bringing it up"]
pub struct ClusterConfig {
    name: String,
    nodes: Vec<String>,
    progress: fn(&str),
}

impl ClusterConfig {
    /// Two nodes, `node-a` and `node-b`. The name is of lower-case letters and digits; one name is one cluster on a machine.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            nodes: vec!["node-a".to_owned(), "node-b".to_owned()],
            progress: |_| {},
        }
    }

    /// These nodes instead, at most 90.
    pub fn nodes(mut self, names: &[&str]) -> Self {
        self.nodes = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// Tells this function what is being done.
    pub fn progress(mut self, tell: fn(&str)) -> Self {
        self.progress = tell;
        self
    }
}

impl Cluster {
    /// Brings a cluster up, and waits until its nodes are ready. What an earlier process has left of one of this name is removed
    /// first.
    ///
    /// # Errors
    /// Where this process is not root, a program is missing, another process is at work on a cluster of this name, or something
    /// does not start; nothing is left then.
    pub fn up(config: ClusterConfig) -> Result<Self> {
        let ClusterConfig { name, nodes, progress } = config;
        ensure!(
            nix::unistd::geteuid().is_root(),
            "a cluster needs root: run this as root, or let `cargo xtask` ask sudo"
        );
        ensure!((1..=90).contains(&nodes.len()), "a cluster has 1 to 90 nodes, not {}", nodes.len());
        interrupt::install()?;
        let place = Place::new(&name)?;
        let tools = Tools::find()?;
        if Remains::are_there(&place) {
            progress(&format!("removing what an earlier cluster {name} has left"));
            Remains::new(place.clone(), place.claim()?).remove();
        }
        // From here on an error below removes what is there already.
        registry::add(Live::Cluster(Remains::new(place.clone(), place.claim()?)));
        let made = up::make(&place, &tools, &nodes, progress);
        if made.is_err()
            // None: the interrupt handler has it.
            && let Some(remains) = registry::take(&name)
        {
            remains.remove();
        }
        made
    }

    /// The cluster of this name that all tests of a process share: brought up by the first that asks, and taken down when the
    /// process ends.
    ///
    /// # Panics
    /// Where it does not come up; so does every other test that asks then.
    pub fn shared(name: &str) -> &'static Self {
        static SHARED: OnceLock<Result<Cluster, String>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| {
            // Nobody drops what is static.
            let up = registry::remove_at_exit().and_then(|()| Self::up(ClusterConfig::named(name)));
            up.map_err(|error| format!("{error:#}"))
        });
        match shared {
            Ok(cluster) => {
                assert_eq!(cluster.name(), name, "one process shares one cluster");
                cluster
            }
            Err(error) => panic!("the cluster {name} does not come up: {error}"),
        }
    }

    /// Finds a cluster that has come up, whoever brought it up. It is kept. Some of its programs may have ended since.
    ///
    /// # Errors
    /// Where there is a part of one that never came up: `down` or the next `up` removes it.
    pub fn find(name: &str) -> Result<Option<Self>> {
        let place = Place::new(name)?;
        if !Remains::are_there(&place) {
            return Ok(None);
        }
        let text = fs::read_to_string(place.ready());
        let text = text.with_context(|| format!("the cluster {name} did not come up: take it down"))?;
        let nodes: Vec<String> = serde_json::from_str(&text).context("reading the names of the nodes")?;
        let tools = Tools::find()?;
        let site = Site::of(&place, &tools)?;
        let mut cluster = Self::of(place.clone(), site, node::number(&place, &tools, &nodes));
        cluster.ends_with_this = false;
        Ok(Some(cluster))
    }

    /// Takes a cluster down, or what is left of one. Returns whether there was anything.
    pub fn down(name: &str) -> Result<bool> {
        let place = Place::new(name)?;
        let claim = place.claim()?;
        let there = Remains::are_there(&place);
        Remains::new(place, claim).remove();
        Ok(there)
    }

    /// The names of the clusters of which there is anything.
    pub fn names() -> Vec<String> {
        Place::all()
    }

    /// Lets the cluster outlive this value and this process.
    #[must_use]
    pub fn keep(mut self) -> Self {
        // Dropping what is left would remove it; forgetting it lets go of the claim with the process.
        if let Some(Live::Cluster(remains)) = registry::take(self.place.name()) {
            remains.let_be();
        }
        self.ends_with_this = false;
        self
    }

    /// The cluster's name, with which the names of its nodes begin.
    pub fn name(&self) -> &str {
        self.place.name()
    }

    /// A node by its name within the cluster.
    ///
    /// # Panics
    /// Where there is none.
    pub fn node(&self, name: &str) -> &ClusterNode {
        let found = self.nodes.iter().find(|node| node.name() == name);
        found.unwrap_or_else(|| panic!("no node is called {name}"))
    }

    /// All nodes.
    pub fn nodes(&self) -> &[ClusterNode] {
        &self.nodes
    }

    /// The programs that the cluster consists of.
    pub fn tools(&self) -> &Tools {
        &self.site.tools
    }

    /// Where the logs of everything are that runs outside pods.
    pub fn logs(&self) -> PathBuf {
        self.place.logs()
    }

    /// The directory of everything of the cluster.
    pub fn directory(&self) -> PathBuf {
        self.place.directory()
    }

    /// The administrator's kubeconfig. The API server answers inside the cluster's namespaces only.
    pub fn kubeconfig(&self) -> PathBuf {
        self.site.credentials().kubeconfig("admin")
    }

    /// The control plane's namespace, from which the API server is reached.
    pub fn control_netns(&self) -> &NetNs {
        &self.site.netns
    }

    /// kubectl as the administrator, to be run with this process's input and output.
    pub fn kubectl_command(&self) -> Command {
        kubectl::command(&self.site)
    }

    /// Runs kubectl as the administrator, with `input` as its standard input, and returns what it printed.
    ///
    /// # Errors
    /// Where it fails, with what it complained of.
    pub fn kubectl(&self, args: &[&str], input: &str) -> Result<String> {
        kubectl::run(&self.site, args, input)
    }

    /// As [`Cluster::kubectl`], for a command that may fail.
    pub fn kubectl_output(&self, args: &[&str], input: &str) -> Result<Output> {
        kubectl::output(&self.site, args, input)
    }

    /// Applies manifests.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        self.kubectl(&["apply", "-f", "-"], yaml).map(drop)
    }

    /// Waits until an object is as `kubectl wait` says: `("pod/web", "condition=Ready")`.
    ///
    /// # Errors
    /// Where it is not within three minutes, with what Kubernetes says of it and of its events.
    pub fn wait_for(&self, object: &str, condition: &str) -> Result<()> {
        let condition = format!("--for={condition}");
        self.kubectl(&["wait", &condition, object, "--timeout=180s"], "").map(drop).map_err(|error| {
            let described = self.kubectl(&["describe", object], "").unwrap_or_default();
            error.context(format!("{object} in {}:\n{described}", self.name()))
        })
    }

    /// An object, or a list of them, as JSON.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], args].concat(), "")?;
        serde_json::from_str(&text).context("reading kubectl's JSON")
    }

    /// Helm as the administrator, to be run with this process's input and output.
    pub fn helm_command(&self) -> Command {
        kubectl::helm(&self.site)
    }

    /// Puts an image from an archive onto every node.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        self.nodes.iter().try_for_each(|node| node.load_image(archive))
    }

    /// Makes an image and puts it onto every node.
    pub fn add_image(&self, image: &crate::image::Image) -> Result<()> {
        let name: String = image
            .reference()
            .chars()
            .map(|letter| if letter.is_alphanumeric() { letter } else { '-' })
            .collect();
        let archive = self.place.directory().join(format!("{name}.tar"));
        image.write(&archive)?;
        self.load_image(&archive)?;
        fs::remove_file(&archive).with_context(|| format!("removing {}", archive.display()))
    }

    /// Captures every packet that a node sends to the others or gets from them.
    ///
    /// # Errors
    /// Where tcpdump does not start.
    pub fn capture(&self, node: &ClusterNode) -> Result<crate::Capture> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let file = |ending| {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            self.place.directory().join(format!("{}-{number}.{ending}", node.name()))
        };
        crate::Capture::start(&node.netns()?, "eth0", file("pcap"), &file("tcpdump.log"))
    }

    /// A token of a service account for an audience (a TokenRequest), as a pod gets it by a projected volume.
    pub fn token(&self, namespace: &str, account: &str, audience: &str) -> Result<String> {
        kubectl::token(&self.site, namespace, account, audience)
    }

    /// A kubeconfig of a service account, with a token of a day.
    pub fn service_account_kubeconfig(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        kubectl::service_account_kubeconfig(&self.site, namespace, account)
    }

    /// Ends a program of the control plane.
    pub fn stop(&self, program: ControlPlane) -> Result<()> {
        program.daemon(&self.place).stop()
    }

    /// Ends a program of the control plane at once, as a machine that fails does. The API server takes long over its own end, in
    /// which nobody can ask it either.
    pub fn kill(&self, program: ControlPlane) -> Result<()> {
        program.daemon(&self.place).kill()
    }

    /// Starts a program of the control plane again, and waits until it serves.
    pub fn start(&self, program: ControlPlane) -> Result<()> {
        program.start(&self.place, &self.site)?;
        program.wait(&self.place, &self.site)
    }

    /// The programs that run outside pods, and their processes.
    pub fn processes(&self) -> Vec<(String, Option<u32>)> {
        let daemons = Daemon::all(&self.place);
        daemons.into_iter().map(|daemon| (daemon.name().to_owned(), daemon.pid())).collect()
    }

    fn of(place: Place, site: Site, nodes: Vec<ClusterNode>) -> Self {
        Self { place, site, nodes, ends_with_this: true }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.ends_with_this {
            return;
        }
        // None: the interrupt handler has it, and ends the process when it is done.
        if let Some(remains) = registry::take(self.place.name()) {
            remains.remove();
        }
    }
}
