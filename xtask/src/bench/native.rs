//! Two pods of a node whose agent lets their connections past it: a mesh of its own, so that the others' nodes stay two.

use anyhow::{Context as _, Result, ensure};
use lab::{Agent, Mesh, Pod, Process, try_eventually};

use super::{
    proxy,
    stage::{BULK, MESH, PATIENCE, PORT, PORTS, serve},
};

/// The pods, their agent and their node. What is last is dropped last.
pub(super) struct Native {
    pub(super) client: Pod,
    pub(super) server: Pod,
    _servers: Vec<Process>,
    pub(super) agent: Agent,
    _mesh: Mesh,
}

impl Native {
    /// Starts all of it.
    pub(super) fn set(load: &str) -> Result<Self> {
        let mesh = Mesh::builder().nodes(&[NODE]).build()?;
        mesh.enroll_namespace(MESH)?;
        let pod = |name| mesh.pod(name).on(NODE).namespace(MESH).service_account(name).start();
        let (client, server) = (pod("client")?, pod("server")?);
        let servers = serve(&server, load)?;
        let agent = proxy::agent(&mesh, NODE).arg("--native").start()?;
        agent.wait_ready()?;
        Ok(Self { client, server, _servers: servers, agent, _mesh: mesh })
    }

    /// Has every port permitted: the first connection to each goes through the agent.
    pub(super) fn permit(&self) -> Result<()> {
        let ports = (PORT..PORT + PORTS).chain([BULK]);
        for port in ports.clone() {
            self.client.connect(self.server.at_v4(port))?;
        }
        try_eventually(PATIENCE, || {
            let permits = self.count("culvert_capture_permits")?;
            ensure!(permits >= ports.clone().count() as f64, "{permits} ports are permitted");
            let before = self.count("culvert_capture_native_total")?;
            self.client.connect(self.server.at_v4(PORT))?;
            ensure!(self.count("culvert_capture_native_total")? > before, "it goes through the agent");
            Ok(())
        })
        .context("the native path")
    }

    fn count(&self, metric: &str) -> Result<f64> {
        Ok(self.agent.metrics()?.sum(metric, &[]))
    }
}

const NODE: &str = "node-c";
