//! Two nodes with agents, a victim and a server in the mesh, each with an identity of its own.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
};

use lab::{Agent, Mesh, PATIENCE, Pod, PodBuilder, eventually, tcp};
use serde_json::Value;

pub(crate) const PORT: u16 = 8080;

pub(crate) struct World {
    pub(crate) mesh: Mesh,
    /// On the first node, on its bridge.
    pub(crate) victim: Pod,
    /// On the second node.
    pub(crate) server: Pod,
    pub(crate) echo: tcp::Server,
    pub(crate) a: Agent,
    pub(crate) b: Agent,
}

impl World {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more arguments for both agents.
    pub(crate) fn start_with(args: &[&str]) -> Self {
        let mesh = Mesh::new().unwrap();
        let victim = mesh.pod("victim").on("node-a").bridged().enrolled().service_account("victim");
        let server = mesh.pod("server").on("node-b").enrolled().service_account("server");
        let (victim, server) = (victim.start().unwrap(), server.start().unwrap());
        let echo = server.serve(PORT, tcp::echo).unwrap();
        let [a, b] = ["node-a", "node-b"].map(|node| mesh.agent(node).args(args).start().unwrap());
        a.wait_ready().unwrap();
        b.wait_ready().unwrap();
        Self { mesh, victim, server, echo, a, b }
    }

    /// One more pod in the mesh; both agents know of it.
    pub(crate) fn member(&self, name: &str, node: &str) -> Pod {
        self.enrol(self.mesh.pod(name).on(node))
    }

    /// Starts a pod in the mesh and waits until both agents know of it.
    pub(crate) fn enrol(&self, pod: PodBuilder) -> Pod {
        let pod = pod.enrolled().start().unwrap();
        let (name, address) = (pod.name(), pod.ip().to_string());
        for agent in [&self.a, &self.b] {
            eventually(PATIENCE, || {
                let dump = agent.get_private("/config_dump").map_err(|error| format!("{error:#}"))?.body;
                let dump: Value = serde_json::from_str(&dump).map_err(|error| error.to_string())?;
                let enrolled = |pod: &Value| pod["name"] == name.as_str() && pod["state"] == "enrolled";
                let here = pod.node().name() != agent.node()
                    || dump["pods"].as_array().is_some_and(|pods| pods.iter().any(enrolled));
                if here && dump["destinations"][&address] == "capture" {
                    Ok(())
                } else {
                    Err(dump.to_string())
                }
            });
        }
        pod
    }

    /// The victim reaches the server as ever, over both families, and neither agent has panicked.
    pub(crate) fn assert_well(&self, after: &str) {
        for target in [self.server.at_v4(PORT), self.server.at_v6(PORT)] {
            exchange(&self.victim, target)
                .unwrap_or_else(|error| panic!("after {after}: {target}: {error:#}"));
        }
        for agent in [&self.a, &self.b] {
            assert!(agent.is_running() && !agent.logs().contains("panicked"), "after {after}");
        }
    }

    /// A certificate as the agent of `pod` has one, and its key: what falls into the hands of who takes over the node.
    pub(crate) fn stolen_certificate(&self, pod: &Pod) -> [String; 2] {
        let (ca, name) = (self.mesh.ca().unwrap(), pod.name());
        let path = |suffix: &str| self.mesh.directory().join(format!("stolen-{name}.{suffix}"));
        let [key, csr, leaf, chain, extensions] = ["key", "csr", "leaf", "pem", "ext"].map(path);
        let san = format!(
            "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n\
             extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=critical,URI:{}\n",
            pod.identity()
        );
        fs::write(&extensions, san).unwrap();
        let text = |path: &PathBuf| path.display().to_string();
        openssl(&format!(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj / -keyout {} -out {}",
            text(&key),
            text(&csr)
        ));
        openssl(&format!(
            "x509 -req -in {} -CA {ca}/intermediate.pem -CAkey {ca}/intermediate.key -CAcreateserial -days 1 -extfile {} -out {}",
            text(&csr),
            text(&extensions),
            text(&leaf),
            ca = text(&ca),
        ));
        let certificates =
            [&leaf, &ca.join("intermediate.pem")].map(|path| fs::read_to_string(path).unwrap());
        fs::write(&chain, certificates.concat()).unwrap();
        [text(&chain), text(&key)]
    }
}

fn openssl(line: &str) {
    let output = Command::new("openssl").args(line.split(' ')).output().unwrap();
    assert!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn exchange(pod: &Pod, target: SocketAddr) -> anyhow::Result<()> {
    tcp::exchange(pod.connect(target)?, 100_000)
}

/// Both of a pod's addresses.
pub(crate) fn addresses(pod: &Pod) -> [IpAddr; 2] {
    [pod.ipv4(), pod.ipv6()]
}

pub(crate) fn counter(agent: &Agent, name: &str) -> u64 {
    agent.metrics().unwrap().sum(&format!("culvert_capture_{name}_total"), &[]) as u64
}
