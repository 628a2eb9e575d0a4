//! The mesh: nodes, their wire, one directory of manifests, one certificate authority, and what lives on them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    AgentBuilder, Capture, CertificateBuilder, NetNs, Node, PodBuilder, Process, ServiceBuilder, agent,
    certificate,
    files::{self, Manifests},
    interrupt,
    ip::batch,
    manifest::{MESH_LABEL, NamespaceManifest, PodManifest, ServiceManifest},
    node::{WIRE, quick_addresses},
    registry::{self, Live},
    service,
    teardown::Traces,
};

/// Nodes, pods, services and agents. Everything of it is removed when it is dropped.
pub struct Mesh {
    shared: Arc<Shared>,
}

/// What pods, services and agents know of their mesh.
pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) directory: PathBuf,
    pub(crate) manifests: Manifests,
    pub(crate) nodes: Vec<Arc<Node>>,
    objects: Mutex<Objects>,
    numbers: AtomicUsize,
}

/// The objects that stand in the manifests.
#[derive(Default)]
pub(crate) struct Objects {
    pub(crate) pods: BTreeMap<(String, String), PodManifest>,
    pub(crate) services: BTreeMap<(String, String), ServiceManifest>,
    pub(crate) namespaces: BTreeMap<String, NamespaceManifest>,
    /// The files that hold EndpointSlices.
    pub(crate) slices: Vec<String>,
    pub(crate) addresses: u8,
}

impl Mesh {
    /// Two nodes, `node-a` and `node-b`.
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// A mesh with other nodes than two.
    pub fn builder() -> MeshBuilder {
        MeshBuilder { nodes: vec!["node-a".to_owned(), "node-b".to_owned()] }
    }

    /// Removes what meshes of processes left behind that are dead, and returns their names.
    pub fn remove_leftovers() -> Result<Vec<String>> {
        let dead = Traces::of_the_dead()?;
        Ok(dead
            .into_iter()
            .map(|traces| {
                let name = traces.name().to_owned();
                traces.remove();
                name
            })
            .collect())
    }

    /// The mesh's name, with which all its namespaces' names begin.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The mesh's own directory: manifests, certificates, sockets, logs.
    pub fn directory(&self) -> &Path {
        &self.shared.directory
    }

    /// The directory that agents are given with `--manifests`.
    pub fn manifests(&self) -> &Path {
        self.shared.manifests.directory()
    }

    /// The directory that agents are given with `--ca-dir`; made by `culvert ca init` when it is first asked for.
    pub fn ca(&self) -> Result<PathBuf> {
        agent::ensure_ca(&self.shared)
    }

    /// Makes one more certificate authority, for an agent that the others must not trust.
    pub fn make_ca(&self, name: &str, trust_domain: &str) -> Result<PathBuf> {
        let directory = self.shared.directory.join(name);
        agent::make_ca(&directory, trust_domain)?;
        Ok(directory)
    }

    /// A certificate for `identity` by the authority in the directory `ca`, to be issued.
    pub fn certificate(&self, ca: &Path, identity: &str) -> CertificateBuilder {
        CertificateBuilder::new(Arc::clone(&self.shared), ca, identity)
    }

    /// Puts a list of revoked certificates, by their serial numbers, in place of the one in `file`, at once and whole.
    pub fn revoke(&self, file: &Path, serials: &[String]) -> Result<()> {
        let list = certificate::revocation_list(&self.shared, &self.ca()?, serials)?;
        files::replace(file, &list)
    }

    /// A node by its name.
    ///
    /// # Panics
    /// Where there is none.
    pub fn node(&self, name: &str) -> &Node {
        self.shared.node(name).unwrap_or_else(|error| panic!("{error}"))
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.shared.nodes.iter().map(Arc::as_ref)
    }

    /// A pod to be started, on the first node unless it says otherwise, outside the mesh unless it is enrolled.
    pub fn pod(&self, name: &str) -> PodBuilder {
        PodBuilder::new(Arc::clone(&self.shared), name)
    }

    /// A service to be applied.
    pub fn service(&self, name: &str) -> ServiceBuilder {
        ServiceBuilder::new(Arc::clone(&self.shared), name)
    }

    /// An agent to be started on a node.
    pub fn agent(&self, node: &str) -> AgentBuilder {
        AgentBuilder::new(Arc::clone(&self.shared), node)
    }

    /// Puts the label `culvert.dev/mesh: enabled` on a namespace: its pods are in the mesh unless they opt out.
    pub fn enroll_namespace(&self, name: &str) -> Result<()> {
        self.label_namespace(name, Some("enabled"))
    }

    /// Takes the label off again.
    pub fn unenroll_namespace(&self, name: &str) -> Result<()> {
        self.label_namespace(name, None)
    }

    /// Writes any YAML as `file` into the manifests, at once and whole.
    pub fn apply(&self, file: &str, yaml: &str) -> Result<()> {
        self.shared.manifests.write(file, yaml)
    }

    /// Removes a file that [`Self::apply`] wrote.
    pub fn delete(&self, file: &str) -> Result<()> {
        self.shared.manifests.remove(file)
    }

    /// Captures every packet that crosses between the first node and the others.
    pub fn capture_wire(&self) -> Result<Capture> {
        let first = self.nodes().next().context("the mesh has no node")?;
        self.capture(first.netns(), WIRE)
    }

    /// Captures every packet of an interface in a node's or a pod's namespace. It has an IPv4 address.
    pub fn capture(&self, netns: &NetNs, interface: &str) -> Result<Capture> {
        let (file, log) =
            (self.shared.fresh_path("capture", "pcap"), self.shared.fresh_path("tcpdump", "log"));
        Capture::start(netns, interface, file, &log)
    }

    /// Starts a program that [`Node::command`] or [`Pod::command`](crate::Pod::command) began; it runs until it is dropped,
    /// and its output goes to [`Process::logs`].
    pub fn spawn(&self, command: &mut Command) -> Result<Process> {
        Process::start(command, &self.shared.fresh_path("program", "log"), None)
    }

    fn label_namespace(&self, name: &str, value: Option<&str>) -> Result<()> {
        let mut objects = self.shared.objects();
        let namespace = namespace(&mut objects, name);
        match value {
            Some(value) => namespace.labels.insert(MESH_LABEL.to_owned(), value.to_owned()),
            None => namespace.labels.remove(MESH_LABEL),
        };
        let text = namespace.to_string();
        self.shared.manifests.write(&format!("namespace-{name}.yaml"), &text)
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if std::thread::panicking() {
            agent::print_logs(&self.shared.directory);
        }
        // None: the interrupt handler has it, and ends the process when it is done.
        if let Some(traces) = registry::take(&self.shared.name) {
            traces.remove();
        }
    }
}

/// What a mesh is made of.
pub struct MeshBuilder {
    nodes: Vec<String>,
}

impl MeshBuilder {
    /// These nodes instead of `node-a` and `node-b`. Two are joined by a veth, any other number by a bridge.
    #[must_use]
    pub fn nodes(mut self, names: &[&str]) -> Self {
        self.nodes = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// Makes the namespaces and joins them.
    pub fn build(self) -> Result<Mesh> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "network namespaces need root: run this as root, or let `cargo xtask` ask sudo"
        );
        ensure!((1..=90).contains(&self.nodes.len()), "a mesh has 1 to 90 nodes, not {}", self.nodes.len());
        interrupt::install()?;
        let traces = Traces::claim()?;
        let (name, directory) = (traces.name().to_owned(), traces.directory().to_owned());
        // From here on an error below removes what is there already.
        registry::add(Live::Mesh(traces));
        let made = self.make(&name, directory);
        if made.is_err()
            && let Some(traces) = registry::take(&name)
        {
            traces.remove();
        }
        made
    }

    fn make(&self, mesh: &str, directory: PathBuf) -> Result<Mesh> {
        let manifests = Manifests::create(&directory)?;
        let nodes = self
            .nodes
            .iter()
            .zip(1..)
            .map(|(name, index)| Node::create(mesh, name, index).map(Arc::new))
            .collect::<Result<Vec<_>>>()?;
        wire(mesh, &nodes)?;
        let indexes: Vec<u8> = (1..).take(nodes.len()).collect();
        for node in &nodes {
            node.join(&indexes)?;
        }
        for [one, next] in nodes.array_windows() {
            one.netns().wait_for_path(next.ipv4().into())?;
            one.netns().wait_for_path(next.ipv6().into())?;
        }
        let shared = Shared {
            name: mesh.to_owned(),
            directory,
            manifests,
            nodes,
            objects: Mutex::default(),
            numbers: AtomicUsize::new(1),
        };
        Ok(Mesh { shared: Arc::new(shared) })
    }
}

impl Shared {
    pub(crate) fn node(&self, name: &str) -> Result<&Arc<Node>> {
        let Some(node) = self.nodes.iter().find(|node| node.name() == name) else {
            let names: Vec<_> = self.nodes.iter().map(|node| node.name()).collect();
            bail!("no node is called {name}; there are {}", names.join(", "));
        };
        Ok(node)
    }

    pub(crate) fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A path in the mesh's directory that nothing else has: `logs/7-nginx.log`.
    pub(crate) fn fresh_path(&self, what: &str, suffix: &str) -> PathBuf {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        self.directory.join(format!("{number}-{what}.{suffix}"))
    }

    /// Writes a pod's manifest and the endpoints that follow from it.
    pub(crate) fn put_pod(&self, pod: PodManifest) -> Result<()> {
        let mut objects = self.objects();
        let namespace = namespace(&mut objects, &pod.namespace);
        self.manifests.write(&format!("namespace-{}.yaml", namespace.name), &namespace.to_string())?;
        self.manifests.write(&format!("pod-{}-{}.yaml", pod.namespace, pod.name), &pod.to_string())?;
        objects.pods.insert((pod.namespace.clone(), pod.name.clone()), pod);
        service::write_endpoints(&self.manifests, &mut objects)
    }

    /// Removes a pod's manifest and its endpoints.
    pub(crate) fn remove_pod(&self, namespace: &str, name: &str) -> Result<()> {
        let mut objects = self.objects();
        objects.pods.remove(&(namespace.to_owned(), name.to_owned()));
        self.manifests.remove(&format!("pod-{namespace}-{name}.yaml"))?;
        service::write_endpoints(&self.manifests, &mut objects)
    }

    /// The next address of the service range, one of each family.
    pub(crate) fn service_addresses(&self) -> (IpAddr, IpAddr) {
        let mut objects = self.objects();
        objects.addresses += 1;
        let number = objects.addresses;
        let v6 = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number.into());
        (Ipv4Addr::new(10, 96, 0, number).into(), v6.into())
    }
}

fn namespace<'a>(objects: &'a mut Objects, name: &str) -> &'a mut NamespaceManifest {
    objects
        .namespaces
        .entry(name.to_owned())
        .or_insert_with(|| NamespaceManifest { name: name.to_owned(), labels: BTreeMap::new() })
}

/// Joins the nodes: two by a veth, more by a bridge in a namespace of its own.
///
/// The two ends of a veth never get one index: the kernel takes such a link for an ordinary card, whose "carrier is up"
/// it handles once a second only (net/core/link_watch.c, `linkwatch_urgent_event`), and drops packets until then.
fn wire(mesh: &str, nodes: &[Arc<Node>]) -> Result<()> {
    if let [a, b] = nodes {
        let (a, peer) = (a.netns(), b.netns().name());
        return batch(
            a,
            &[format!("link add {WIRE} index 10 type veth peer name {WIRE} index 11 netns {peer}")],
        );
    }
    let fabric = NetNs::create(&format!("{mesh}-fabric"), quick_addresses)?;
    let mut lines = vec!["link add fabric type bridge".to_owned(), "link set fabric up".to_owned()];
    for (node, number) in nodes.iter().zip(1..) {
        let (name, index) = (node.netns().name(), 100 + number);
        lines.push(format!(
            "link add port{number} index {index} type veth peer name {WIRE} index 10 netns {name}"
        ));
        lines.push(format!("link set port{number} master fabric up"));
    }
    batch(&fabric, &lines)
}
