//! The pods between which is measured, and the agents or whatever stands in their place.
//!
//! ```text
//! node-a   client (mesh)   near (mesh)   outsider   bystander
//! node-b   server (mesh)   foreign
//! node-c   one (mesh)      another (mesh)       whose connections go past the agent
//! ```

use std::{net::SocketAddr, path::Path as FilePath, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lab::{Mesh, Pod, Process, Service, try_eventually};

use super::proxy::Proxies;

/// What a load runs over.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) enum Path {
    /// Between two nodes, no end in the mesh: what everything across nodes is compared with.
    Plain,
    /// The same once more.
    Control,
    /// Both in the mesh, by the pod's address.
    Across,
    /// By a service's address.
    Service,
    /// From the mesh to a pod outside it.
    Outward,
    /// On one node, no end in the mesh.
    PlainNear,
    /// On one node, both in the mesh.
    Near,
    /// The same past the agent, by its permit.
    Native,
}

impl Path {
    pub(super) const ALL: [Self; 8] = [
        Self::Plain,
        Self::Control,
        Self::Across,
        Self::Service,
        Self::Outward,
        Self::PlainNear,
        Self::Near,
        Self::Native,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Control => "plain again",
            Self::Across => "across nodes",
            Self::Service => "service address",
            Self::Outward => "outside the mesh",
            Self::PlainNear => "plain, one node",
            Self::Near => "same node",
            Self::Native => "native",
        }
    }

    /// What it is compared with, where it is no measure itself.
    pub(super) fn base(self) -> Option<Self> {
        match self {
            Self::Plain | Self::PlainNear => None,
            Self::Near | Self::Native => Some(Self::PlainNear),
            Self::Control | Self::Across | Self::Service | Self::Outward => Some(Self::Plain),
        }
    }
}

/// Everything that is measured with. What is last is dropped last, and takes with it what is left.
pub(super) struct Stage {
    pub(super) client: Pod,
    outsider: Pod,
    pub(super) server: Pod,
    near: Pod,
    foreign: Pod,
    bystander: Pod,
    native: [Pod; 2],
    service: Service,
    load: PathBuf,
    _servers: Vec<Process>,
    pub(super) proxies: Proxies,
    pub(super) mesh: Mesh,
}

impl Stage {
    /// Makes nodes and pods, starts servers and agents, and waits until all of them serve.
    pub(super) fn set(load: PathBuf, with: Option<&FilePath>) -> Result<Self> {
        let mesh = Mesh::builder().nodes(&["node-a", "node-b", "node-c"]).build()?;
        mesh.enroll_namespace(MESH)?;
        let inside = |name: &str, node: &str| mesh.pod(name).on(node).namespace(MESH).service_account(name);
        let outside = |name: &str, node: &str| mesh.pod(name).on(node).namespace("outside");
        let client = inside("client", "node-a").start()?;
        let near = inside("near", "node-a").start()?;
        let server = inside("server", "node-b").label("app", "server").start()?;
        let outsider = outside("outsider", "node-a").start()?;
        let bystander = outside("bystander", "node-a").start()?;
        let foreign = outside("foreign", "node-b").start()?;
        let native = [inside("one", "node-c").start()?, inside("another", "node-c").start()?];
        let service = mesh.service("server").namespace(MESH).select("app", "server").port(BULK, BULK);
        let service = (PORT..PORT + PORTS).fold(service, |service, port| service.port(port, port)).apply()?;
        let mut servers = Vec::new();
        for pod in [&near, &server, &bystander, &foreign, &native[1]] {
            servers.extend(serve(pod, &load)?);
        }
        let proxies = Proxies::start(&mesh, with)?;
        let stage = Self {
            client,
            outsider,
            server,
            near,
            foreign,
            bystander,
            native,
            service,
            load,
            _servers: servers,
            proxies,
            mesh,
        };
        for path in Path::ALL.into_iter().filter(|path| with.is_none() || *path != Path::Native) {
            let (pod, target) = (stage.source(path), stage.target(path, PORT));
            try_eventually(PATIENCE, || pod.connect(target))
                .with_context(|| format!("the path {:?}", path.name()))?;
        }
        if with.is_none() {
            stage.permit()?;
        }
        Ok(stage)
    }

    /// Has every port permitted on the native path: the first connection to each goes through the agent.
    fn permit(&self) -> Result<()> {
        let ports = (PORT..PORT + PORTS).chain([BULK]);
        for port in ports.clone() {
            self.native[0].connect(self.target(Path::Native, port))?;
        }
        try_eventually(PATIENCE, || {
            let [_, permits] = self.proxies.native()?;
            ensure!(permits >= ports.clone().count() as f64, "{permits} ports are permitted");
            let before = self.proxies.native()?[0];
            self.native[0].connect(self.target(Path::Native, PORT))?;
            ensure!(self.proxies.native()?[0] > before, "it goes through the agent");
            Ok(())
        })
        .context("the native path")
    }

    /// Who connects.
    pub(super) fn source(&self, path: Path) -> &Pod {
        match path {
            Path::Plain | Path::Control | Path::PlainNear => &self.outsider,
            Path::Across | Path::Service | Path::Outward | Path::Near => &self.client,
            Path::Native => &self.native[0],
        }
    }

    /// Whereto.
    pub(super) fn target(&self, path: Path, port: u16) -> SocketAddr {
        match path {
            Path::Plain | Path::Control | Path::Outward => self.foreign.at_v4(port),
            Path::Across => self.server.at_v4(port),
            Path::Service => self.service.address(port),
            Path::PlainNear => self.bystander.at_v4(port),
            Path::Near => self.near.at_v4(port),
            Path::Native => self.native[1].at_v4(port),
        }
    }

    /// Another pod of the mesh on the client's node.
    pub(super) fn other_client(&self) -> &Pod {
        &self.near
    }

    /// Another server in the mesh on the second node, with an identity that nobody has spoken to.
    pub(super) fn new_server(&self, name: &str) -> Result<(Pod, Vec<Process>)> {
        let pod = self.mesh.pod(name).on("node-b").namespace(MESH).service_account(name).start()?;
        let servers = serve(&pod, &self.load)?;
        Ok((pod, servers))
    }

    pub(super) fn load(&self) -> Result<&str> {
        self.load.to_str().context("the path of the load generator is not UTF-8")
    }
}

fn serve(pod: &Pod, load: &FilePath) -> Result<Vec<Process>> {
    let load = load.to_str().context("the path of the load generator is not UTF-8")?;
    let messages = pod.spawn(load, &["serve", "--port", &PORT.to_string()])?;
    messages.until(PATIENCE, || messages.logs().contains("ready"))?;
    let bulk = pod.spawn("iperf3", &["--server", "--forceflush", "--port", &BULK.to_string()])?;
    bulk.until(PATIENCE, || bulk.logs().contains("listening"))?;
    Ok(vec![messages, bulk])
}

/// The namespace that is in the mesh.
pub(super) const MESH: &str = "mesh";
/// The first of the load generator's ports.
pub(super) const PORT: u16 = 7000;
/// How many it has: tests/load/src/message.rs.
const PORTS: u16 = 66;
/// Where iperf3 listens.
pub(super) const BULK: u16 = 5201;
/// How long programs may take to come up.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
