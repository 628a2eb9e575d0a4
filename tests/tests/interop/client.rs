//! The peer as a client: one HTTP/2 connection to the agent of a pod of ours.

use std::net::{IpAddr, SocketAddr};

use lab::{Agent, Credentials, Mesh, Peer, Pod, Service};
use serde_json::{Value, json};

/// A pod of ours with its agent, and a pod of a node without.
pub(crate) struct Inbound {
    pub(crate) peer: Pod,
    pub(crate) server: Pod,
    pub(crate) service: Service,
    pub(crate) agent: Agent,
    pub(crate) credentials: Credentials,
    _mesh: Mesh,
}

/// Who the peer is.
pub(crate) const IDENTITY: &str = "spiffe://cluster.local/ns/default/sa/peer";

/// What the application of the pod listens on.
pub(crate) const PORT: u16 = 8080;

impl Inbound {
    pub(crate) fn start() -> Self {
        let mesh = Mesh::new().unwrap();
        let peer = mesh.pod("peer").on("node-a").service_account("peer").start().unwrap();
        let server = mesh.pod("server").on("node-b").service_account("server").label("app", "server");
        let server = server.enrolled().start().unwrap();
        let service = mesh.service("server").select("app", "server").port(80, PORT).apply().unwrap();
        let credentials = mesh.certificate(&mesh.ca().unwrap(), IDENTITY).issue().unwrap();
        let agent = mesh.agent("node-b").start().unwrap();
        agent.wait_ready().unwrap();
        Self { peer, server, service, agent, credentials, _mesh: mesh }
    }

    /// Opens a connection to the agent at an address of the pod.
    pub(crate) fn connect(&self, address: IpAddr) -> Client {
        let peer = Peer::client(&self.peer, address, &self.credentials).unwrap();
        peer.wait("connected", |_| true).unwrap();
        let source =
            if address.is_ipv6() { format!("[{}]", self.peer.ipv6()) } else { self.peer.ipv4().to_string() };
        Client { peer, source, streams: 0 }
    }
}

/// What ztunnel sends with every request, beside `forwarded`.
pub(crate) const BAGGAGE: (&str, &str) = (
    "baggage",
    "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=peer,service.name=peer,service.version=v1",
);
pub(crate) const TRACEPARENT: (&str, &str) =
    ("traceparent", "00-be295ef61cb1a78ba6baf01d1d420879-4ca2923f84433bb1-00");

/// A connection of the peer's.
pub(crate) struct Client {
    pub(crate) peer: Peer,
    source: String,
    streams: u32,
}

impl Client {
    pub(crate) fn tell(&mut self, command: &Value) {
        self.peer.tell(command).unwrap();
    }

    /// Sends a request and returns its stream's number.
    pub(crate) fn request(&mut self, headers: &[(&str, &str)]) -> u32 {
        self.tell(&json!({"do": "open", "headers": headers}));
        self.streams += 1;
        2 * self.streams - 1
    }

    /// Sends a CONNECT with `more` headers.
    pub(crate) fn connect(&mut self, authority: &str, more: &[(&str, &str)]) -> u32 {
        self.request(&[&[(":method", "CONNECT"), (":authority", authority)], more].concat())
    }

    /// Waits for a stream's status.
    pub(crate) fn status(&self, stream: u32) -> String {
        let response = self.peer.wait("response", |event| event["stream"] == stream).unwrap();
        response["status"].as_str().unwrap().to_owned()
    }

    /// A tunnel to `target`, asked for as ztunnel does it, answered.
    pub(crate) fn tunnel(&mut self, target: SocketAddr) -> u32 {
        let forwarded = format!("for=\"{}:{}\"", self.source, 50_000 + self.streams);
        let headers = [BAGGAGE, ("forwarded", &forwarded), TRACEPARENT];
        let stream = self.connect(&target.to_string(), &headers);
        assert_eq!(self.status(stream), "200", "CONNECT {target}");
        stream
    }

    /// Sends `text` and waits until it has come back.
    pub(crate) fn ping(&mut self, stream: u32, text: &str) {
        self.tell(&json!({"do": "send", "stream": stream, "text": text}));
        self.peer.wait("data", |event| is_of(event, stream) && ends_with(event, text)).unwrap();
    }

    /// Ends this direction.
    pub(crate) fn end(&mut self, stream: u32) {
        self.tell(&json!({"do": "end", "stream": stream}));
    }

    /// Waits for the other direction's END_STREAM.
    pub(crate) fn ended(&self, stream: u32) -> Value {
        self.peer.wait("end", |event| is_of(event, stream)).unwrap()
    }
}

fn is_of(event: &Value, stream: u32) -> bool {
    event["stream"] == stream
}

fn ends_with(event: &Value, text: &str) -> bool {
    event["text"].as_str().is_some_and(|came| came.ends_with(text))
}
