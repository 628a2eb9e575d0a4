//! The pods between which is measured, and the agents or whatever stands in their place.
//!
//! ```text
//! node-a   client (mesh)   near (mesh)   outsider   bystander
//! node-b   server (mesh)   foreign
//! ```
//!
//! Beside them [`Native`]'s, whose connections go past their agent.

use std::{net::SocketAddr, path::Path as FilePath, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use lab::{Mesh, Pod, Process, Service, try_eventually};

use super::{native::Native, proxy::Proxies};

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

    /// Those that there are; another proxy than our agents has no native one.
    pub(super) fn all(agents: bool) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |path| agents || *path != Self::Native)
    }

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
    /// None beside another proxy, which has no such path.
    native: Option<Native>,
    service: Service,
    load: PathBuf,
    _servers: Vec<Process>,
    pub(super) proxies: Proxies,
    pub(super) mesh: Mesh,
}

impl Stage {
    /// Makes nodes and pods, starts servers and agents, and waits until all of them serve.
    pub(super) fn set(load: PathBuf, with: Option<&FilePath>) -> Result<Self> {
        let mesh = Mesh::new()?;
        mesh.enroll_namespace(MESH)?;
        let inside = |name: &str, node: &str| mesh.pod(name).on(node).namespace(MESH).service_account(name);
        let outside = |name: &str, node: &str| mesh.pod(name).on(node).namespace("outside");
        let client = inside("client", "node-a").start()?;
        let near = inside("near", "node-a").start()?;
        let server = inside("server", "node-b").label("app", "server").start()?;
        let outsider = outside("outsider", "node-a").start()?;
        let bystander = outside("bystander", "node-a").start()?;
        let foreign = outside("foreign", "node-b").start()?;
        let service = mesh.service("server").namespace(MESH).select("app", "server").port(BULK, BULK);
        let service = (PORT..PORT + PORTS).fold(service, |service, port| service.port(port, port)).apply()?;
        let mut servers = Vec::new();
        for pod in [&near, &server, &bystander, &foreign] {
            servers.extend(serve(pod, path(&load)?)?);
        }
        let native = with.is_none().then(|| Native::set(path(&load)?)).transpose()?;
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
        for path in Path::all(with.is_none()) {
            let (pod, target) = stage.ends(path, PORT)?;
            try_eventually(PATIENCE, || pod.connect(target))
                .with_context(|| format!("the path {:?}", path.name()))?;
        }
        stage.native.iter().try_for_each(Native::permit)?;
        Ok(stage)
    }

    /// Who connects, and whereto.
    ///
    /// # Errors
    /// Where there is no such path.
    pub(super) fn ends(&self, path: Path, port: u16) -> Result<(&Pod, SocketAddr)> {
        Ok(match path {
            Path::Plain | Path::Control => (&self.outsider, self.foreign.at_v4(port)),
            Path::Across => (&self.client, self.server.at_v4(port)),
            Path::Service => (&self.client, self.service.address(port)),
            Path::Outward => (&self.client, self.foreign.at_v4(port)),
            Path::PlainNear => (&self.outsider, self.bystander.at_v4(port)),
            Path::Near => (&self.client, self.near.at_v4(port)),
            Path::Native => {
                let native = self.native.as_ref().context("only our own agents have a native path")?;
                (&native.client, native.server.at_v4(port))
            }
        })
    }

    /// The processor time that each of the proxies of a path has used.
    pub(super) fn cpu(&self, path: Path) -> [Duration; 2] {
        match &self.native {
            Some(native) if path == Path::Native => [native.agent.cpu_time(), Duration::ZERO],
            _ => self.proxies.cpu(),
        }
    }

    /// Another pod of the mesh on the client's node.
    pub(super) fn other_client(&self) -> &Pod {
        &self.near
    }

    /// Another server in the mesh on the second node, with an identity that nobody has spoken to.
    pub(super) fn new_server(&self, name: &str) -> Result<(Pod, Vec<Process>)> {
        let pod = self.mesh.pod(name).on("node-b").namespace(MESH).service_account(name).start()?;
        let servers = serve(&pod, self.load()?)?;
        Ok((pod, servers))
    }

    pub(super) fn load(&self) -> Result<&str> {
        path(&self.load)
    }
}

fn path(load: &FilePath) -> Result<&str> {
    load.to_str().context("the path of the load generator is not UTF-8")
}

/// Starts what answers in a pod.
pub(super) fn serve(pod: &Pod, load: &str) -> Result<Vec<Process>> {
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
pub(super) const PORTS: u16 = 66;
/// Where iperf3 listens.
pub(super) const BULK: u16 = 5201;
/// How long programs may take to come up.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
