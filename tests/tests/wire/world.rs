//! A client on one node, a server on the other, both enrolled, and a service before the server.

use lab::{Agent, Mesh, Pod, Service};

/// Two nodes with their agents, ready.
pub(crate) struct World {
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    pub(crate) service: Service,
    pub(crate) a: Agent,
    pub(crate) b: Agent,
    pub(crate) mesh: Mesh,
}

/// What the server's application listens on.
pub(crate) const PORT: u16 = 8080;

impl World {
    pub(crate) fn start() -> Self {
        let mesh = Mesh::new().unwrap();
        let client = mesh.pod("client").on("node-a").service_account("client").enrolled().start().unwrap();
        let server = mesh.pod("server").on("node-b").service_account("server").label("app", "server");
        let server = server.enrolled().start().unwrap();
        let service = mesh.service("server").select("app", "server").port(80, PORT).apply().unwrap();
        let (a, b) = (mesh.agent("node-a").start().unwrap(), mesh.agent("node-b").start().unwrap());
        a.wait_ready().unwrap();
        b.wait_ready().unwrap();
        Self { client, server, service, a, b, mesh }
    }
}
