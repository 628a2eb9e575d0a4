//! One node with its agent, a server and two clients on it.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsRawFd,
};

use lab::{AccessRecord, Agent, Mesh, PATIENCE, Pod, Service, eventually, tcp};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
use serde_json::Value;

/// What the server's application listens on.
pub(crate) const PORT: u16 = 8080;

pub(crate) struct World {
    /// In the mesh, `default/client`.
    pub(crate) client: Pod,
    /// In the mesh, `default/other`.
    pub(crate) other: Pod,
    /// In the mesh, `default/server`, with the label `app: server`.
    pub(crate) server: Pod,
    pub(crate) service: Service,
    pub(crate) agent: Agent,
    pub(crate) mesh: Mesh,
}

impl World {
    pub(crate) fn start() -> Self {
        Self::with(|_| Vec::new())
    }

    /// With further arguments for the agent.
    pub(crate) fn with(args: impl FnOnce(&Mesh) -> Vec<String>) -> Self {
        let mesh = Mesh::builder().nodes(&["node-a"]).build().unwrap();
        let pod = |name: &str| mesh.pod(name).service_account(name).enrolled();
        let client = pod("client").start().unwrap();
        let other = pod("other").start().unwrap();
        let server = pod("server").label("app", "server").start().unwrap();
        let service = mesh.service("server").select("app", "server").port(80, PORT).apply().unwrap();
        let agent = mesh.agent("node-a").args(args(&mesh)).start().unwrap();
        agent.wait_ready().unwrap();
        Self { client, other, server, service, agent, mesh }
    }

    /// The line of one end about the one connection from a client's address. It must say that there was no tunnel.
    #[track_caller]
    pub(crate) fn line(&self, direction: &str, client: SocketAddr) -> AccessRecord {
        let line = eventually(PATIENCE, || {
            let mut log = self.agent.access_log().into_iter();
            log.find(|line| line.direction() == direction && line.source() == Some(client))
        });
        assert_eq!(line.field("same_node").as_deref(), Some("true"), "{line:?}");
        line
    }

    /// The lines of both ends: the source's, then the destination's.
    #[track_caller]
    pub(crate) fn lines(&self, client: SocketAddr) -> [AccessRecord; 2] {
        ["outbound", "inbound"].map(|direction| self.line(direction, client))
    }

    /// Asserts that no TLS handshake was begun or accepted, and that there is no tunnel.
    #[track_caller]
    pub(crate) fn assert_no_tunnel(&self) {
        let metrics = self.agent.metrics().unwrap();
        for name in ["culvert_handshakes_total", "culvert_hbone_connections", "culvert_hbone_streams"] {
            assert_eq!(metrics.sum(name, &[]), 0.0, "{name}");
        }
        assert!(metrics.of("culvert_handshakes_total", &[]).count() > 0, "the metric has another name");
    }

    /// Puts this AuthorizationPolicy of the namespace `default` in force; `spec` is YAML in one line.
    pub(crate) fn apply(&self, name: &str, spec: &str) {
        self.mesh.apply("policies.yaml", &policy(name, spec)).unwrap();
        eventually(PATIENCE, || {
            let dump: Value =
                serde_json::from_str(&self.agent.get_private("/config_dump").unwrap().body).unwrap();
            let list = |key: &str| dump[key].as_array().cloned().unwrap_or_default();
            let known = list("policies").iter().any(|policy| policy["name"] == format!("default/{name}"));
            known && list("pods").iter().all(|pod| pod["policy"]["current"] == true)
        });
    }
}

/// An AuthorizationPolicy of the namespace `default`.
pub(crate) fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: default}}\nspec: {spec}\n"
    )
}

/// Connects where it must work, and shows that it does.
#[track_caller]
pub(crate) fn open(pod: &Pod, target: SocketAddr) -> TcpStream {
    let mut stream = pod.connect(target).unwrap();
    tcp::ping(&mut stream, "hello").unwrap();
    stream
}

/// Connects over IPv4 with a source that the application has chosen.
pub(crate) fn connect_from(pod: &Pod, source: IpAddr, target: SocketAddr) -> io::Result<TcpStream> {
    pod.run(|| {
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0)))?;
        connect(socket.as_raw_fd(), &SockaddrStorage::from(target))?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    })
}

/// Waits until a connection is reset.
#[track_caller]
pub(crate) fn wait_reset(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let error = tcp::read(stream, &mut [0; 16]).expect_err("it ended in good order");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// Opens a connection that is to be reset without an answer.
#[track_caller]
pub(crate) fn wait_refused(pod: &Pod, target: SocketAddr) {
    // The reset may be quicker than the return of `connect`.
    match pod.connect(target) {
        Ok(mut stream) => wait_reset(&mut stream),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}
