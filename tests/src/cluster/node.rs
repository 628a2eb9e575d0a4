//! A node: its namespaces, and containerd, the kubelet and kube-proxy in them.
//!
//! Its network namespace has a name. Its mount namespace has none: one process, the holder, keeps it, and what it shows is in
//! `node.sh`. So a node has its own `/run`, `/etc/cni`, `/opt/cni`, `/var/lib/kubelet`, …, as on a machine of its own; the
//! kernel, cgroups, `/sys/fs/bpf` and the processes are the machine's.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{
    cgroups, configuration,
    control_plane::Site,
    daemon::Daemon,
    kubectl,
    network::{Addresses, PODS},
    place::Place,
    tools::{PLUGINS, Tools},
};
use crate::{NetNs, PATIENCE, http};

/// A program of a node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NodeDaemon {
    /// Runs the containers.
    Containerd,
    /// Runs the pods that the API server gives the node.
    Kubelet,
    /// Makes services' addresses work.
    KubeProxy,
}

impl NodeDaemon {
    fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
        }
    }
}

/// A node of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterNode {
    place: Place,
    tools: Tools,
    name: String,
    addresses: Addresses,
}

impl ClusterNode {
    pub(crate) fn new(place: &Place, tools: &Tools, name: &str, number: u8) -> Self {
        Self {
            place: place.clone(),
            tools: tools.clone(),
            name: name.to_owned(),
            addresses: Addresses::of(number),
        }
    }

    /// The name within the cluster: `node-a`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's name in Kubernetes, which no other cluster on this machine has: agents keep their pins by it.
    pub fn unique_name(&self) -> String {
        self.place.unique(&self.name)
    }

    /// The node's own addresses, IPv4 and IPv6.
    pub fn addresses(&self) -> [IpAddr; 2] {
        self.addresses.own()
    }

    pub(crate) fn numbered(&self) -> (&str, Addresses) {
        (&self.name, self.addresses)
    }

    /// The node's network namespace.
    pub fn netns(&self) -> Result<NetNs> {
        NetNs::open(&self.place.netns(&self.name))
    }

    /// Where a file of the node is on this machine. Only for what is the node's own: `/run`, `/etc/cni/net.d`, `/opt/cni/bin`,
    /// `/var/lib/cni`, `/var/log/pods`.
    pub fn path(&self, path: &str) -> PathBuf {
        self.place.node(&self.name).join(path.trim_start_matches('/'))
    }

    /// The folder of the node's CNI configuration, as this machine sees it.
    pub fn cni_conf_dir(&self) -> PathBuf {
        self.path("/etc/cni/net.d")
    }

    /// The folder of the node's CNI plugins, as this machine sees it.
    pub fn cni_bin_dir(&self) -> PathBuf {
        self.path("/opt/cni/bin")
    }

    /// The socket of the node's containerd, as this machine sees it.
    pub fn containerd_socket(&self) -> PathBuf {
        self.path("/run/containerd/containerd.sock")
    }

    /// The log of one of the node's programs.
    pub fn log(&self, daemon: NodeDaemon) -> PathBuf {
        self.daemon(daemon).log().clone()
    }

    /// A command that runs a program on the node: in its network and its mounts, with the machine's cgroups and processes.
    ///
    /// # Errors
    /// Where the node is not there.
    pub fn enter_command(&self, program: impl AsRef<Path>) -> Result<Command> {
        let holder = self.holder().pid();
        let holder = holder.with_context(|| format!("nothing keeps the mounts of {}", self.unique_name()))?;
        // `ip netns exec` would mount a /sys without cgroups.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.place.netns(&self.name).display()));
        command.arg(format!("--mount=/proc/{holder}/ns/mnt")).arg("--").arg(program.as_ref());
        Ok(command)
    }

    /// Puts an image from an archive into the node's containerd, where pods find it.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        let mut command = self.ctr();
        command.args(["images", "import"]).arg(archive);
        let output = command.output().context("starting ctr")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: importing {}: {complaint}", self.name, archive.display());
        Ok(())
    }

    /// containerd's own command, for the images and containers of Kubernetes.
    pub fn ctr(&self) -> Command {
        let mut command = Command::new(self.tools.ctr());
        self.tools.equip(&mut command);
        command.arg("--address").arg(self.containerd_socket()).args(["--namespace", "k8s.io"]);
        command
    }

    /// The process of one of the node's programs, if it runs.
    pub fn pid(&self, daemon: NodeDaemon) -> Option<u32> {
        self.daemon(daemon).pid()
    }

    /// Ends one of the node's programs. Pods go on without it.
    pub fn stop(&self, daemon: NodeDaemon) -> Result<()> {
        self.daemon(daemon).stop()
    }

    /// Starts one of the node's programs again, and waits until it serves: a kubelet that finds no containerd ends.
    pub fn start(&self, daemon: NodeDaemon) -> Result<()> {
        self.launch(daemon)?;
        self.wait_healthy(daemon)
    }

    /// Ends and starts one of the node's programs.
    pub fn restart(&self, daemon: NodeDaemon) -> Result<()> {
        self.stop(daemon)?;
        self.start(daemon)
    }

    /// Makes everything of the node but its network, and starts nothing.
    pub(crate) fn create(&self) -> Result<()> {
        cgroups::create(&self.unique_name())?;
        let own = self.place.node(&self.name);
        for folder in [configuration::FOLDER, "/etc/cni/net.d", "/opt/cni/bin"] {
            let folder = self.path(folder);
            fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        }
        for plugin in PLUGINS {
            symlink(self.tools.plugin(plugin), self.cni_bin_dir().join(plugin))
                .context("a link to a CNI plugin")?;
        }
        self.write(
            "/etc/cni/net.d/10-bridge.conflist",
            &configuration::cni(&self.unique_name(), self.addresses),
        )?;
        self.write(&configuration::file("containerd.toml"), &configuration::containerd(&self.tools))?;
        self.write(&configuration::file("kubelet.json"), &configuration::kubelet(&self.unique_name()))?;
        let credentials = Site::of(&self.place, &self.tools)?.credentials();
        for (from, to) in [
            (credentials.path("ca.crt"), "ca.crt"),
            (credentials.kubeconfig(&self.unique_name()), "kubelet.kubeconfig"),
            (credentials.kubeconfig("kube-proxy"), "kube-proxy.kubeconfig"),
        ] {
            let to = self.path(&configuration::file(to));
            fs::copy(&from, &to)
                .with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
        }
        let mut command = Command::new("nsenter");
        self.tools.equip(&mut command);
        command.arg(format!("--net={}", self.place.netns(&self.name).display()));
        command
            .args(["unshare", "--mount", "--propagation", "private", "sh", "-euc", MOUNTS, "sh"])
            .arg(&own);
        let holder = self.holder();
        holder.start(&mut command)?;
        // The script becomes this program when everything is in its place.
        holder.until(PATIENCE, "to make the node's mounts", || {
            let name = holder.pid().and_then(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok());
            name.is_some_and(|name| name.trim() == "sleep")
        })
    }

    pub(crate) fn daemon(&self, daemon: NodeDaemon) -> Daemon {
        Daemon::new(&self.place, &format!("{}.{}", self.name, daemon.name()))
    }

    /// Starts one of the node's programs and waits for nothing.
    pub(crate) fn launch(&self, daemon: NodeDaemon) -> Result<()> {
        let mut command = match daemon {
            NodeDaemon::Containerd => self.containerd()?,
            NodeDaemon::Kubelet => self.kubelet()?,
            NodeDaemon::KubeProxy => self.kube_proxy()?,
        };
        self.tools.equip(&mut command);
        self.daemon(daemon).start(&mut command)
    }

    /// Waits until one of the node's programs says that it is well.
    pub(crate) fn wait_healthy(&self, daemon: NodeDaemon) -> Result<()> {
        self.daemon(daemon).until(READY, "to be well", || match daemon {
            NodeDaemon::Containerd => self.containerd_answers(),
            NodeDaemon::Kubelet => self.is_healthy_at(KUBELET_HEALTH),
            NodeDaemon::KubeProxy => self.is_healthy_at(KUBE_PROXY_HEALTH),
        })
    }

    /// Waits until the API server says that the node takes pods.
    pub(crate) fn wait_ready(&self, site: &Site) -> Result<()> {
        let name = format!("node/{}", self.unique_name());
        let args = ["wait", "--for=condition=Ready", &name, "--timeout=3s"];
        self.daemon(NodeDaemon::Kubelet)
            .until(READY, "to be ready", || kubectl::run(site, &args, "").map(drop))
    }

    /// The process that keeps the mount namespace.
    fn holder(&self) -> Daemon {
        Daemon::new(&self.place, &format!("{}.mounts", self.name))
    }

    fn containerd(&self) -> Result<Command> {
        let mut command = self.enter_command(self.tools.containerd())?;
        command.args(["--config", &configuration::file("containerd.toml")]);
        Ok(command)
    }

    fn kubelet(&self) -> Result<Command> {
        let mut command = self.enter_command(self.tools.kubernetes("kubelet"))?;
        let [v4, v6] = self.addresses();
        command.arg(format!("--config={}", configuration::file("kubelet.json")));
        command.arg(format!("--kubeconfig={}", configuration::file("kubelet.kubeconfig")));
        command.arg(format!("--hostname-override={}", self.unique_name()));
        command.arg(format!("--node-ip={v4},{v6}"));
        Ok(command)
    }

    fn kube_proxy(&self) -> Result<Command> {
        let mut command = self.enter_command(self.tools.kubernetes("kube-proxy"))?;
        command.arg(format!("--kubeconfig={}", configuration::file("kube-proxy.kubeconfig")));
        command.arg(format!("--hostname-override={}", self.unique_name()));
        command.arg(format!("--cluster-cidr={}", PODS.join(",")));
        // The number of tracked connections is the machine's, and not for a node to set.
        command.args(["--proxy-mode=nftables", "--conntrack-max-per-core=0", "--oom-score-adj=0"]);
        Ok(command)
    }

    fn is_healthy_at(&self, port: u16) -> Result<()> {
        let stream = self.netns()?.connect((Ipv4Addr::LOCALHOST, port).into())?;
        let answer = http::get(stream, "/healthz")?;
        ensure!(answer.status == 200, "it answers {}", answer.status);
        Ok(())
    }

    fn containerd_answers(&self) -> Result<()> {
        let output = self.ctr().arg("version").output().context("starting ctr")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.path(path);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }
}

/// The nodes of these names, numbered in their order.
pub(crate) fn number(place: &Place, tools: &Tools, names: &[String]) -> Vec<ClusterNode> {
    names.iter().zip(1..).map(|(name, number)| ClusterNode::new(place, tools, name, number)).collect()
}

/// Where they answer on the node itself, by default.
const KUBELET_HEALTH: u16 = 10248;
const KUBE_PROXY_HEALTH: u16 = 10256;

const MOUNTS: &str = include_str!("node.sh");

/// How long a node may take from the start of its kubelet until it is ready.
const READY: Duration = Duration::from_secs(120);
