//! A node whose pods get their network from a chain of plugins.

use std::{
    ffi::OsString,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use lab::{
    Agent, ApiServer, Mesh, PATIENCE, Pod,
    cluster::Tools,
    eventually,
    manifest::{MESH_LABEL, PodManifest},
    tcp,
};
use serde_json::Value;

/// The chain before the agent comes, in somebody's own way of writing.
pub(crate) const LIST: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"pods\",\n  \"plugins\": [\n    {\n      \"type\": \"bridge\", \"bridge\": \"pods0\",\n\t\"isGateway\": true, \"ipMasq\": false,\n      \"ipam\": {\"type\": \"host-local\", \"ranges\": [[{\"subnet\": \"10.1.200.0/24\"}]], \"routes\": [{\"dst\": \"0.0.0.0/0\"}], \"dataDir\": \"DATA\"}\n    }\n  ]\n}\n\n";

/// `node-a`, whose pods come by CNI, and a server in the mesh on `node-b`.
pub(crate) struct World {
    pub(crate) a: Agent,
    pub(crate) b: Agent,
    pub(crate) server: Pod,
    _echo: tcp::Server,
    pub(crate) node: Node,
    pub(crate) mesh: Mesh,
}

/// What the container runtime of a node has.
pub(crate) struct Node {
    tools: Tools,
    pub(crate) configurations: PathBuf,
    pub(crate) binaries: PathBuf,
    mesh: String,
    /// The node's network namespace.
    netns: PathBuf,
}

/// A pod's sandbox: a network namespace with the pod's name. It goes when it is dropped.
pub(crate) struct Sandbox<'a> {
    node: &'a Node,
    name: String,
    args: String,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Mesh::new().unwrap(), &[])
    }

    /// One whose `node-a` also has objects from an API server on `node-b`. `prepare` gives that what the agent needs, and
    /// returns the agent's kubeconfig.
    pub(crate) fn of_api_server(prepare: impl FnOnce(&ApiServer) -> PathBuf) -> (ApiServer, Self) {
        let mesh = Mesh::new().unwrap();
        let server = ApiServer::start_on(&mesh, "node-b").unwrap();
        server.kubectl(&["apply", "-f", "-"], &definitions()).unwrap();
        let established = ["wait", "--for=condition=Established", "--timeout=120s", "crd", "--all"];
        server.kubectl(&established, "").unwrap();
        let kubeconfig = prepare(&server).into_os_string();
        let world = Self::with(mesh, &["--kube".into(), "--kubeconfig".into(), kubeconfig]);
        (server, world)
    }

    fn with(mesh: Mesh, args: &[OsString]) -> Self {
        let node = Node::new(&mesh);
        node.write("10-pods.conflist", &node.list());
        let server = mesh.pod("server").on("node-b").enrolled().start().unwrap();
        let echo = server.serve(8080, tcp::echo).unwrap();
        let a = mesh.agent("node-a").arg("--cni-conf-dir").arg(&node.configurations);
        let a = a.arg("--cni-bin-dir").arg(&node.binaries).args(args).start().unwrap();
        let b = mesh.agent("node-b").start().unwrap();
        a.wait_ready().unwrap();
        b.wait_ready().unwrap();
        let world = Self { a, b, server, _echo: echo, node, mesh };
        eventually(PATIENCE, || world.node.read("10-pods.conflist").contains("culvert-cni"));
        world
    }

    /// Writes the manifest of a pod that has no address yet, and waits until its agent knows it.
    pub(crate) fn manifest(&self, namespace: &str, name: &str, label: Option<&str>) -> PodManifest {
        let mut manifest = self.server.manifest();
        manifest.namespace = namespace.to_owned();
        manifest.name = name.to_owned();
        manifest.uid = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap().trim().to_owned();
        manifest.labels = label.map(|label| (MESH_LABEL.to_owned(), label.to_owned())).into_iter().collect();
        (manifest.netns, manifest.addresses) = (None, Vec::new());
        manifest.node = self.mesh.node("node-a").unique_name().to_owned();
        self.apply(&manifest);
        eventually(PATIENCE, || self.a.get_private("/config_dump").unwrap().body.contains(&manifest.uid));
        manifest
    }

    pub(crate) fn apply(&self, manifest: &PodManifest) {
        let PodManifest { namespace, name, .. } = manifest;
        self.mesh.apply(&format!("cni-{namespace}-{name}.yaml"), &manifest.to_string()).unwrap();
    }

    /// The connections that came to the server through a tunnel.
    pub(crate) fn tunnelled(&self) -> f64 {
        let metrics = self.b.metrics().unwrap();
        metrics.sum("istio_tcp_connections_opened_total", &[("reporter", "destination")])
    }

    pub(crate) fn readiness(&self) -> String {
        self.a.get("/healthz/ready").unwrap().body
    }

    /// What the agent saved for the time of its absence.
    pub(crate) fn saved(&self) -> String {
        let node = self.mesh.node("node-a").unique_name();
        fs::read_to_string(format!("/run/culvert/{node}-cni.json")).unwrap_or_default()
    }
}

impl Node {
    pub(crate) fn new(mesh: &Mesh) -> Self {
        let tools = Tools::find().unwrap();
        let (configurations, binaries) = (mesh.directory().join("net.d"), mesh.directory().join("cni-bin"));
        for directory in [&configurations, &binaries] {
            fs::create_dir(directory).unwrap();
        }
        let debian = tools.package("containernetworking-plugins").join("usr/lib/cni");
        for plugin in ["bridge", "host-local"] {
            std::os::unix::fs::symlink(debian.join(plugin), binaries.join(plugin)).unwrap();
        }
        let netns = mesh.node("node-a").netns().path().to_owned();
        Self { tools, configurations, binaries, mesh: mesh.name().to_owned(), netns }
    }

    /// The chain before the agent comes.
    pub(crate) fn list(&self) -> String {
        LIST.replace("DATA", &self.configurations.with_file_name("host-local").display().to_string())
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        // As installers do, so that nobody reads a half.
        let new = self.configurations.join(format!(".{name}.new"));
        fs::write(&new, text).unwrap();
        fs::rename(new, self.configurations.join(name)).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.configurations.join(name)).unwrap_or_default()
    }

    /// Makes the namespace of a pod's sandbox, still without a network.
    pub(crate) fn sandbox(&self, name: &str, pod: &PodManifest) -> Sandbox<'_> {
        let PodManifest { namespace, name: pod_name, uid, .. } = pod;
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={pod_name};K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_UID={uid}"
        );
        let name = format!("{}-{name}", self.mesh);
        succeeds(&Command::new("ip").args(["netns", "add", &name]).output().unwrap());
        Sandbox { node: self, name, args }
    }

    /// Runs `cnitool` as the node's container runtime would.
    pub(crate) fn cnitool(&self, args: &[&str], pod: &str) -> Output {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.netns.display())).arg(self.tools.cnitool()).args(args);
        command.env("NETCONFPATH", &self.configurations).env("CNI_PATH", &self.binaries);
        command.env("CNI_ARGS", pod).output().unwrap()
    }
}

impl Sandbox<'_> {
    fn run(&self, command: &str) -> Output {
        self.node.cnitool(&[command, "pods", &self.path()], &self.args)
    }

    pub(crate) fn path(&self) -> String {
        Path::new("/run/netns").join(&self.name).display().to_string()
    }

    /// ADD, and the address that the pod got.
    pub(crate) fn add(&self) -> Result<IpAddr, String> {
        let output = self.run("add");
        if !output.status.success() {
            return Err(text(&output));
        }
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        let address = result["ips"][0]["address"].as_str().unwrap();
        Ok(address.split_once('/').unwrap().0.parse().unwrap())
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        let output = self.run("check");
        if output.status.success() { Ok(()) } else { Err(text(&output)) }
    }

    pub(crate) fn del(&self) {
        succeeds(&self.run("del"));
    }

    /// Connects from inside, sends a line and returns what comes back.
    pub(crate) fn say(&self, target: std::net::SocketAddr) -> Result<String, String> {
        let line =
            format!("exec 3<>/dev/tcp/{}/{} && echo hello >&3 && head -n 1 <&3", target.ip(), target.port());
        let output = Command::new("ip")
            .args(["netns", "exec", &self.name, "timeout", "20", "bash", "-c", &line])
            .output()
            .unwrap();
        if output.status.success() { Ok(text(&output)) } else { Err(text(&output)) }
    }
}

impl Drop for Sandbox<'_> {
    fn drop(&mut self) {
        // Also where the test has failed: cnitool keeps its results in /var/lib/cni.
        let _ = self.run("del");
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

/// What `culvert crds` prints.
fn definitions() -> String {
    text(&Command::new(lab::culvert().unwrap()).arg("crds").output().unwrap())
}

pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

pub(crate) fn succeeds(output: &Output) {
    assert!(output.status.success(), "{}", text(output));
}
