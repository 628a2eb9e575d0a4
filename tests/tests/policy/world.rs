//! A server in the mesh, clients in it and outside, and how policies get there.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
};

use lab::{AccessRecord, Agent, Mesh, PATIENCE, Pod, Service, eventually, tcp};
use serde_json::Value;

use crate::objects::{NAMESPACE, Policy};

/// What the server's applications listen on.
pub(crate) const PORT: u16 = 8080;
pub(crate) const OTHER_PORT: u16 = 9090;

/// Two nodes with their agents. The server is on `node-b`.
pub(crate) struct World {
    /// In the mesh, `front/client`, on `node-a`.
    pub(crate) client: Pod,
    /// In the mesh, `back/other`, on `node-a`.
    pub(crate) other: Pod,
    /// Outside the mesh, on `node-a`.
    pub(crate) stranger: Pod,
    /// Outside the mesh, on the server's node.
    pub(crate) neighbour: Pod,
    /// In the mesh, `shop/server`, with the label `app: server`.
    pub(crate) server: Pod,
    pub(crate) service: Service,
    pub(crate) a: Agent,
    pub(crate) b: Agent,
    pub(crate) mesh: Mesh,
}

impl World {
    pub(crate) fn start() -> Self {
        let mesh = Mesh::new().unwrap();
        let inside = |name: &str, namespace: &str, node: &str| {
            mesh.pod(name).namespace(namespace).service_account(name).on(node).enrolled()
        };
        let client = inside("client", "front", "node-a").start().unwrap();
        let other = inside("other", "back", "node-a").start().unwrap();
        let stranger = mesh.pod("stranger").on("node-a").start().unwrap();
        let neighbour = mesh.pod("neighbour").on("node-b").start().unwrap();
        let server = inside("server", NAMESPACE, "node-b").label("app", "server").start().unwrap();
        let service = mesh.service("server").namespace(NAMESPACE).select("app", "server");
        let service = service.port(80, PORT).apply().unwrap();
        let (a, b) = (mesh.agent("node-a").start().unwrap(), mesh.agent("node-b").start().unwrap());
        a.wait_ready().unwrap();
        b.wait_ready().unwrap();
        let world = Self { client, other, stranger, neighbour, server, service, a, b, mesh };
        world.wait_for_policies(&[]);
        world
    }

    /// Puts exactly these policies in force, and waits until they are. A policy that changes needs another name.
    pub(crate) fn apply(&self, policies: &[Policy]) {
        self.write(policies);
        self.wait_for_policies(policies);
    }

    /// Writes the policies, and does not wait.
    pub(crate) fn write(&self, policies: &[Policy]) {
        let yaml: Vec<_> = policies.iter().map(Policy::yaml).collect();
        self.mesh.apply("policies.yaml", &yaml.join("---\n")).unwrap();
    }

    /// Waits until the agents enforce these policies, the kernel's part included.
    pub(crate) fn wait_for_policies(&self, policies: &[Policy]) {
        let mut wanted: Vec<_> = policies.iter().map(Policy::full_name).collect();
        wanted.sort();
        for agent in [&self.a, &self.b] {
            eventually(PATIENCE, || match policies_of(agent) {
                (names, true) if names == wanted => Ok(()),
                known => Err(format!("{known:?}")),
            });
        }
    }

    /// The line of the server's agent about the one connection from a client's address.
    pub(crate) fn line_from(&self, client: SocketAddr) -> AccessRecord {
        eventually(PATIENCE, || {
            self.b
                .access_log()
                .into_iter()
                .find(|record| record.direction() == "inbound" && record.source() == Some(client))
        })
    }

    /// Closes a connection and returns the line that the server's agent writes about it.
    pub(crate) fn line_from_closed(&self, stream: TcpStream) -> AccessRecord {
        let client = stream.local_addr().unwrap();
        drop(stream);
        self.line_from(client)
    }

    /// The lines of the server's agent about connections from a pod.
    pub(crate) fn lines_of(&self, pod: &Pod) -> Vec<AccessRecord> {
        let addresses = pod.manifest().addresses;
        let lines = self.b.access_log().into_iter().filter(|record| record.direction() == "inbound");
        lines.filter(|record| addresses.iter().any(|address| record.is_from(*address))).collect()
    }

    /// Waits until a policy has decided so often, by the server's agent: what the kernel decides is counted when the agent reads
    /// of it.
    #[track_caller]
    pub(crate) fn wait_verdicts(&self, policy: &str, verdict: &str, mode: &str, wanted: f64) {
        let labels = [("policy", policy), ("verdict", verdict), ("mode", mode)];
        eventually(PATIENCE, || {
            match self.b.metrics().unwrap().sum("culvert_policy_verdicts_total", &labels) {
                counted if counted == wanted => Ok(()),
                counted => Err(format!("{policy}: {counted}, not {wanted}")),
            }
        });
    }
}

/// The names of the policies that an agent knows, and whether all of its pods are held to them.
fn policies_of(agent: &Agent) -> (Vec<String>, bool) {
    let dump: Value = serde_json::from_str(&agent.get_private("/config_dump").unwrap().body).unwrap();
    let list = |key: &str| dump[key].as_array().cloned().unwrap_or_default();
    let mut names: Vec<_> =
        list("policies").iter().filter_map(|policy| policy["name"].as_str().map(str::to_owned)).collect();
    names.sort();
    (names, list("pods").iter().all(|pod| pod["policy"]["current"] == true))
}

/// Whether a connection carries a line there and back.
pub(crate) fn works(pod: &Pod, target: SocketAddr) -> Result<(), String> {
    let mut stream = pod.connect(target).map_err(|error| format!("connect: {error}"))?;
    tcp::ping(&mut stream, "hello").map_err(|error| format!("ping: {error}"))
}

/// Connects where it must work, and shows that it does.
#[track_caller]
pub(crate) fn open(pod: &Pod, target: SocketAddr) -> TcpStream {
    let mut stream =
        pod.connect(target).unwrap_or_else(|error| panic!("{} to {target}: {error}", pod.name()));
    tcp::ping(&mut stream, "hello").unwrap_or_else(|error| panic!("{} to {target}: {error}", pod.name()));
    stream
}

/// What a client gets that is refused: the error of `connect`, or that of the first read.
#[track_caller]
pub(crate) fn refusal(pod: &Pod, target: SocketAddr) -> ErrorKind {
    let mut stream = match pod.connect(target) {
        Ok(stream) => stream,
        Err(error) => return error.kind(),
    };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    match tcp::read(&mut stream, &mut [0; 16]) {
        Ok(bytes) => panic!("{} to {target}: {bytes} bytes came", pod.name()),
        Err(error) => error.kind(),
    }
}

/// Waits until a connection that lived is reset.
#[track_caller]
pub(crate) fn wait_cut(mut stream: TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let error = tcp::read(&mut stream, &mut [0; 16]).expect_err("it ended in good order");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}
