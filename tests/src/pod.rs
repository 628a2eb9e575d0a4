//! A pod: a network namespace with a link to its node, and the manifest that says so.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, bail};

use crate::{
    NetNs, Node, Process,
    ip::batch,
    manifest::{MESH_LABEL, PodManifest},
    mesh::Shared,
    netns::sysctl,
    node::quick_addresses,
    tcp,
};

/// A pod. Cheap to clone; it lives until its mesh is dropped, [`Pod::delete`] or [`Pod::vanish`].
#[derive(Clone)]
pub struct Pod {
    shared: Arc<Shared>,
    node: Arc<Node>,
    netns: NetNs,
    manifest: Arc<Mutex<PodManifest>>,
}

/// A pod to be started: IPv4 and IPv6, in the namespace `default`, of the service account `default`, routed.
#[must_use = "a pod does nothing until it is started"]
pub struct PodBuilder {
    shared: Arc<Shared>,
    node: Option<String>,
    v4: bool,
    v6: bool,
    bridged: bool,
    address: Vec<IpAddr>,
    mtu: Option<u32>,
    manifest: PodManifest,
}

impl PodBuilder {
    pub(crate) fn new(shared: Arc<Shared>, name: &str) -> Self {
        let manifest = PodManifest {
            name: name.to_owned(),
            namespace: "default".to_owned(),
            uid: String::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            netns: None,
            node: String::new(),
            host_network: false,
            service_account: "default".to_owned(),
            ports: Vec::new(),
            addresses: Vec::new(),
            phase: "Running".to_owned(),
            ready: true,
        };
        let address = Vec::new();
        Self { shared, node: None, v4: true, v6: true, bridged: false, address, mtu: None, manifest }
    }

    /// On this node.
    pub fn on(mut self, node: &str) -> Self {
        self.node = Some(node.to_owned());
        self
    }

    /// In the mesh, by the pod's own label.
    pub fn enrolled(self) -> Self {
        self.label(MESH_LABEL, "enabled")
    }

    /// Outside the mesh, by the pod's own label, whatever its namespace says.
    pub fn opted_out(self) -> Self {
        self.label(MESH_LABEL, "disabled")
    }

    /// The Kubernetes namespace.
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.manifest.namespace);
        self
    }

    /// The service account.
    pub fn service_account(mut self, account: &str) -> Self {
        account.clone_into(&mut self.manifest.service_account);
        self
    }

    /// A label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.manifest.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// An annotation.
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.manifest.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// A port of the container with a name.
    pub fn port(mut self, name: &str, port: u16) -> Self {
        self.manifest.ports.push((name.to_owned(), port));
        self
    }

    /// IPv4 only.
    pub fn ipv4(mut self) -> Self {
        (self.v4, self.v6) = (true, false);
        self
    }

    /// IPv6 only.
    pub fn ipv6(mut self) -> Self {
        (self.v4, self.v6) = (false, true);
        self
    }

    /// Both families; so it is without this.
    pub fn dual(mut self) -> Self {
        (self.v4, self.v6) = (true, true);
        self
    }

    /// On a bridge with the node's other pods of this kind, instead of a routed link of its own.
    pub fn bridged(mut self) -> Self {
        self.bridged = true;
        self
    }

    /// These addresses instead of the next free ones: a pod that takes another's address.
    pub fn addresses(mut self, addresses: &[IpAddr]) -> Self {
        addresses.clone_into(&mut self.address);
        self
    }

    /// The link's MTU in bytes, instead of 1500.
    pub fn mtu(mut self, bytes: u32) -> Self {
        self.mtu = Some(bytes);
        self
    }

    /// `hostNetwork: true`: no namespace of its own, the node's addresses.
    pub fn host_network(mut self) -> Self {
        self.manifest.host_network = true;
        self
    }

    /// Not ready yet.
    pub fn not_ready(mut self) -> Self {
        self.manifest.ready = false;
        self
    }

    /// Makes the namespace, its link and its addresses, and then writes the manifest.
    pub fn start(self) -> Result<Pod> {
        let context = format!("pod {}", self.manifest.name);
        self.try_start().context(context)
    }

    fn try_start(mut self) -> Result<Pod> {
        let node = match &self.node {
            Some(name) => Arc::clone(self.shared.node(name)?),
            None => Arc::clone(self.shared.nodes.first().context("the mesh has no node")?),
        };
        let netns = if self.manifest.host_network { self.host(&node) } else { self.isolated(&node)? };
        let mut manifest = self.manifest;
        manifest.uid = uid();
        node.unique_name().clone_into(&mut manifest.node);
        self.shared.put_pod(manifest.clone())?;
        Ok(Pod { shared: self.shared, node, netns, manifest: Arc::new(Mutex::new(manifest)) })
    }

    fn host(&mut self, node: &Node) -> NetNs {
        self.manifest.addresses = vec![node.ipv4().into(), node.ipv6().into()];
        node.netns().clone()
    }

    fn isolated(&mut self, node: &Node) -> Result<NetNs> {
        let slot = node.next_slot(self.bridged);
        if self.bridged {
            node.ensure_bridge()?;
        }
        let name = format!("{}-{}", self.shared.name, self.manifest.name);
        let netns = NetNs::create(&self.free_name(name), || {
            quick_addresses()?;
            // As containerd does: a program needs no privilege for port 80.
            sysctl("ipv4/ip_unprivileged_port_start", "0")?;
            sysctl("ipv4/ping_group_range", "0 2147483647")
        })?;
        let addresses = if self.address.is_empty() {
            let (v4, v6) = (self.v4.then(|| slot.ipv4()), self.v6.then(|| slot.ipv6()));
            v4.into_iter().chain(v6).collect()
        } else {
            self.address.clone()
        };
        let link = slot.link(&self.manifest.name);
        let mut outside = slot.node_lines(&link, &netns, &addresses);
        let mut inside = slot.pod_lines(&addresses);
        if let Some(mtu) = self.mtu {
            outside.push(format!("link set {link} mtu {mtu}"));
            inside.push(format!("link set eth0 mtu {mtu}"));
        }
        batch(node.netns(), &outside)?;
        batch(&netns, &inside)?;
        if let Some(address) = addresses.first() {
            node.netns().wait_for_path(*address)?;
        }
        self.manifest.addresses = addresses;
        self.manifest.netns = Some(netns.path().to_owned());
        Ok(netns)
    }

    /// Two pods may have one name: of two namespaces, or one after the other.
    fn free_name(&self, name: String) -> String {
        let taken = |name: &str| std::path::Path::new(crate::netns::DIRECTORY).join(name).exists();
        if !taken(&name) {
            return name;
        }
        (2..).map(|number| format!("{name}.{number}")).find(|name| !taken(name)).unwrap_or(name)
    }
}

impl Pod {
    /// `metadata.name`.
    pub fn name(&self) -> String {
        self.manifest().name
    }

    /// The node that it is on.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its network namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Its first address: IPv4 where it has one.
    ///
    /// # Panics
    /// Where it has none.
    pub fn ip(&self) -> IpAddr {
        self.address(|_| true, "address")
    }

    /// Its IPv4 address.
    ///
    /// # Panics
    /// Where it has none.
    pub fn ipv4(&self) -> IpAddr {
        self.address(IpAddr::is_ipv4, "IPv4 address")
    }

    /// Its IPv6 address.
    ///
    /// # Panics
    /// Where it has none.
    pub fn ipv6(&self) -> IpAddr {
        self.address(IpAddr::is_ipv6, "IPv6 address")
    }

    /// A port of [`Self::ip`].
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(), port)
    }

    /// A port of [`Self::ipv4`].
    pub fn at_v4(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ipv4(), port)
    }

    /// A port of [`Self::ipv6`].
    pub fn at_v6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ipv6(), port)
    }

    /// What its manifest says.
    pub fn manifest(&self) -> PodManifest {
        self.manifest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The SPIFFE ID that the mesh gives it.
    pub fn identity(&self) -> String {
        let PodManifest { namespace, service_account, .. } = self.manifest();
        format!("spiffe://cluster.local/ns/{namespace}/sa/{service_account}")
    }

    /// Runs `f` on a fresh thread inside the pod.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.netns.run(f)
    }

    /// A command that starts inside the pod.
    pub fn command(&self, program: &str) -> Command {
        self.netns.command(program)
    }

    /// Starts a program inside the pod that runs until it is dropped; its output goes to [`Process::logs`].
    pub fn spawn(&self, program: &str, args: &[&str]) -> Result<Process> {
        self.spawn_command(self.command(program).args(args))
    }

    /// As [`Self::spawn`], a command that [`Self::command`] began.
    pub fn spawn_command(&self, command: &mut Command) -> Result<Process> {
        let program = command.get_program().to_string_lossy().into_owned();
        let log = self.shared.fresh_path(&format!("{}-{}", self.name(), file_name(&program)), "log");
        Process::start(command, &log, None)
    }

    /// Runs a shell line inside the pod and returns its standard output; another status than 0 is an error.
    pub fn sh(&self, line: &str) -> Result<String> {
        let output = self.command("sh").args(["-c", line]).output().context("running sh")?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            bail!("in {}: `{line}`: {}: {}", self.name(), output.status, complaint.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A listener inside the pod, on every address.
    pub fn listen(&self, port: u16) -> io::Result<TcpListener> {
        self.netns.listen(port)
    }

    /// A server inside the pod, on every address, that handles each connection on a thread of its own.
    pub fn serve(&self, port: u16, handler: impl tcp::Handler) -> Result<tcp::Server> {
        let listener = self.listen(port).with_context(|| format!("listening in {}", self.name()))?;
        tcp::Server::start(listener, handler)
    }

    /// Connects from inside the pod.
    pub fn connect(&self, target: SocketAddr) -> io::Result<TcpStream> {
        self.netns.connect(target)
    }

    /// Changes the manifest, and with it the endpoints.
    pub fn update(&self, change: impl FnOnce(&mut PodManifest)) -> Result<()> {
        let mut manifest = self.manifest.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut manifest);
        self.shared.put_pod(manifest.clone())
    }

    /// Opts the pod in.
    pub fn enroll(&self) -> Result<()> {
        self.update(|pod| {
            pod.labels.insert(MESH_LABEL.to_owned(), "enabled".to_owned());
        })
    }

    /// Opts the pod out.
    pub fn unenroll(&self) -> Result<()> {
        self.update(|pod| {
            pod.labels.insert(MESH_LABEL.to_owned(), "disabled".to_owned());
        })
    }

    /// Sets the condition `Ready`.
    pub fn set_ready(&self, ready: bool) -> Result<()> {
        self.update(|pod| pod.ready = ready)
    }

    /// Ends the pod as Kubernetes does: the manifest goes, then the namespace.
    pub fn delete(&self) -> Result<()> {
        let PodManifest { namespace, name, .. } = self.manifest();
        self.shared.remove_pod(&namespace, &name)?;
        self.vanish()
    }

    /// Takes the pod's link and namespace away without a word to the mesh: a node's crash, seen from the others.
    pub fn vanish(&self) -> Result<()> {
        if self.manifest().host_network {
            return Ok(());
        }
        batch(&self.netns, &["link del eth0".to_owned()])?;
        self.netns.remove()
    }

    fn address(&self, family: impl Fn(&IpAddr) -> bool, what: &str) -> IpAddr {
        let PodManifest { addresses, name, .. } = self.manifest();
        addresses.into_iter().find(family).unwrap_or_else(|| panic!("pod {name} has no {what}"))
    }
}

fn file_name(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

/// A random UID, as the kernel makes them.
fn uid() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default().trim().to_owned()
}
