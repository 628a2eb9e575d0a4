//! The peer as a server: a pod of a node without agent whose manifest says that it receives HBONE.

use std::{
    io::{self, ErrorKind, Write},
    net::{IpAddr, SocketAddr, TcpStream},
};

use lab::{AccessRecord, Agent, Credentials, Mesh, PATIENCE, Peer, Pod, eventually};
use serde_json::{Value, json};

/// A client pod of ours with its agent.
pub(crate) struct Outbound {
    pub(crate) client: Pod,
    pub(crate) agent: Agent,
    pub(crate) pods: Vec<Pod>,
    credentials: Credentials,
    pub(crate) mesh: Mesh,
}

/// Any port: the peer is its own application.
pub(crate) const PORT: u16 = 8080;

impl Outbound {
    /// As many pods that the peer may serve.
    pub(crate) fn start(pods: usize) -> Self {
        Self::start_with(pods, &[])
    }

    /// The same, with an agent that is given more to say.
    pub(crate) fn start_with(pods: usize, args: &[&str]) -> Self {
        let mesh = Mesh::new().unwrap();
        let client = mesh.pod("client").on("node-a").service_account("client").enrolled().start().unwrap();
        let pods = (0..pods).map(|number| {
            let pod = mesh.pod(&format!("server-{number}")).on("node-b").service_account("server");
            let pod = pod.label("app", "server").annotation("ambient.istio.io/redirection", "enabled");
            pod.start().unwrap()
        });
        let pods = pods.collect::<Vec<_>>();
        let identity = "spiffe://cluster.local/ns/default/sa/server";
        let credentials = mesh.certificate(&mesh.ca().unwrap(), identity).issue().unwrap();
        let agent = mesh.agent("node-a").args(args).start().unwrap();
        agent.wait_ready().unwrap();
        Self { client, agent, pods, credentials, mesh }
    }

    /// Serves an address of one of the pods.
    pub(crate) fn serve(&self, pod: usize, address: IpAddr) -> Peer {
        Peer::server(&self.pods[pod], address, &self.credentials).unwrap()
    }

    pub(crate) fn connect(&self, target: SocketAddr) -> TcpStream {
        self.try_connect(target).unwrap()
    }

    pub(crate) fn try_connect(&self, target: SocketAddr) -> io::Result<TcpStream> {
        let stream = self.client.connect(target)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// Waits for what the agent says of a connection.
    pub(crate) fn record(&self, target: SocketAddr) -> AccessRecord {
        eventually(PATIENCE, || {
            self.agent.access_log().into_iter().find(|record| record.destination() == Some(target))
        })
    }
}

/// Makes a server behave so from now on, and waits until it does.
pub(crate) fn behave(server: &mut Peer, behaviour: Value) {
    let seen = server.events("behaving").len();
    let mut command = behaviour;
    command["do"] = json!("behave");
    server.tell(&command).unwrap();
    eventually(PATIENCE, || server.events("behaving").len() > seen);
}

/// Says something, and returns how the connection ended where nothing came back.
pub(crate) fn ending(stream: io::Result<TcpStream>) -> Result<(), ErrorKind> {
    // The reset may be quicker than the question, and even than the return of `connect`; the error is told once only.
    let ending = stream.and_then(|mut stream| {
        stream.write_all(b"hello")?;
        lab::tcp::read(&mut stream, &mut [0])
    });
    match ending {
        Ok(0) => Ok(()),
        Ok(_) => panic!("something came back"),
        Err(error) => Err(error.kind()),
    }
}
