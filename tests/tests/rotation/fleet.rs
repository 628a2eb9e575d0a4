//! Two nodes with a client and a server each, their agents, and the directories of the authority.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use lab::{Agent, Mesh, PATIENCE, Pod, culvert, eventually, tcp};
use serde_json::Value;

/// Where connections are made that each end at once.
pub(super) const SHORT: u16 = 8080;
/// Where connections are made that are held for as long as they live.
pub(super) const LONG: u16 = 9090;

pub(super) struct Fleet {
    pub(super) agents: [Agent; 2],
    /// A client of each node, and the server of the other one.
    pub(super) pairs: [(Pod, Pod); 2],
    /// The directory that each agent has.
    pub(super) copies: [PathBuf; 2],
    /// The operator's own, which no agent has, unless it is shared.
    pub(super) master: PathBuf,
    _servers: Vec<tcp::Server>,
    pub(super) mesh: Mesh,
}

/// Whether the nodes share the authority's directory.
#[derive(Clone, Copy)]
pub(super) enum Directories {
    Shared,
    CopyEach,
}

/// A certificate as `culvert certs` shows it.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) identity: String,
    pub(super) serial: String,
    /// The fingerprint of the root that vouches for it; empty where none does.
    pub(super) root: String,
}

impl Fleet {
    pub(super) fn new(directories: Directories, lifetime: &str) -> Self {
        let mesh = Mesh::new().unwrap();
        let pod = |name: &str, node: &str| {
            mesh.pod(name).on(node).service_account(name).enrolled().start().unwrap()
        };
        let pairs = [
            (pod("client-a", "node-a"), pod("server-b", "node-b")),
            (pod("client-b", "node-b"), pod("server-a", "node-a")),
        ];
        let master = mesh.make_ca("master", "cluster.local").unwrap();
        let copies = ["node-a", "node-b"].map(|node| match directories {
            Directories::Shared => master.clone(),
            Directories::CopyEach => {
                let copy = mesh.directory().join(format!("ca-{node}"));
                fs::create_dir(&copy).unwrap();
                for file in ["root.pem", "intermediate.pem", "intermediate.key"] {
                    fs::copy(master.join(file), copy.join(file)).unwrap();
                }
                copy
            }
        });
        let agents = [("node-a", &copies[0]), ("node-b", &copies[1])].map(|(node, ca)| {
            mesh.agent(node).ca_dir(ca).arg("--certificate-lifetime").arg(lifetime).start().unwrap()
        });
        agents.iter().for_each(|agent| agent.wait_ready().unwrap());
        let servers = pairs
            .iter()
            .flat_map(|(_, server)| [SHORT, LONG].map(|port| server.serve(port, tcp::echo).unwrap()))
            .collect();
        let fleet = Self { agents, pairs, copies, master, _servers: servers, mesh };
        // Every certificate is there before anything is counted.
        eventually(PATIENCE, || fleet.certificates().len() == 4);
        fleet
    }

    /// `culvert ca`, as the operator runs it; what it said, and whether it did it.
    pub(super) fn try_ca(&self, line: &str) -> Result<String, String> {
        let mut command = Command::new(culvert().unwrap());
        command.arg("ca").current_dir(self.mesh.directory());
        let Output { status, stdout, stderr } = command.args(line.split_whitespace()).output().unwrap();
        let said = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        if status.success() { Ok(said(stdout)) } else { Err(said(stderr)) }
    }

    pub(super) fn ca(&self, line: &str) -> String {
        self.try_ca(line).unwrap_or_else(|error| panic!("culvert ca {line}: {error}"))
    }

    /// Copies a file of the master to one node, as most tools do: in place, not at once.
    pub(super) fn copy(&self, file: &str, to: &Path) {
        fs::copy(self.master.join(file), to.join(file)).unwrap();
    }

    /// What `culvert certs --json` prints on a node, which is this page of its agent's socket.
    fn certs(agent: &Agent) -> Value {
        let page = agent.get_private("/certs").unwrap();
        assert_eq!(page.status, 200, "{}", page.body);
        serde_json::from_str(&page.body).unwrap()
    }

    /// The certificates of both nodes.
    pub(super) fn certificates(&self) -> Vec<Shown> {
        self.agents.iter().flat_map(Self::certificates_of).collect()
    }

    pub(super) fn certificates_of(agent: &Agent) -> Vec<Shown> {
        let certs = Self::certs(agent);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let shown = |held: &Value| Shown {
            identity: text(&held["identity"]),
            serial: text(&held["certificate"]["serial"]),
            root: text(&held["root"]["fingerprint"]),
        };
        let held = certs["certificates"].as_array().unwrap();
        held.iter().filter(|held| held["certificate"].is_object()).map(shown).collect()
    }

    /// The fingerprints of the roots that an agent trusts.
    pub(super) fn trusted(agent: &Agent) -> Vec<String> {
        let certs = Self::certs(agent);
        let roots = certs["roots"].as_array().unwrap();
        roots.iter().map(|root| root["fingerprint"].as_str().unwrap().to_owned()).collect()
    }
}
