//! The agents, or another proxy in their place.
//!
//! A script that is given by `--with` is started once a node, in the node's network namespace, with
//!
//! | variable | what |
//! | --- | --- |
//! | `BENCH_NODE`, `BENCH_UNIQUE_NODE` | the node: `node-a`, `node-b`; and its name in the manifests |
//! | `BENCH_MANIFESTS` | the directory of the Kubernetes objects; pods have their network namespace in `culvert.dev/netns` |
//! | `BENCH_CA` | a certificate authority: `root.pem`, `intermediate.pem`, `intermediate.key` |
//! | `BENCH_DIRECTORY` | where it may write |
//!
//! It says `ready` on its standard output when it serves, stays in the foreground, and is ended by SIGTERM. Its processor
//! time and memory are those of all processes that it started.

use std::{fmt::Debug, fs, net::SocketAddr, ops::RangeBounds, path::Path, thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lab::{Agent, AgentBuilder, Mesh, Process, try_eventually, usage};

use super::stage::PATIENCE;

/// The proxies of both nodes.
pub(super) enum Proxies {
    Agents(Box<[Agent; 2]>),
    Others(Box<[Process; 2]>),
}

impl Proxies {
    /// Starts them, and waits until they serve.
    pub(super) fn start(mesh: &Mesh, with: Option<&Path>) -> Result<Self> {
        let Some(script) = with else {
            let agents = [agent(mesh, "node-a").start()?, agent(mesh, "node-b").start()?];
            for agent in &agents {
                agent.wait_ready()?;
            }
            return Ok(Self::Agents(Box::new(agents)));
        };
        let start = |node: &str| other(mesh, script, node);
        Ok(Self::Others(Box::new([start("node-a")?, start("node-b")?])))
    }

    /// The processor time that each has used.
    pub(super) fn cpu(&self) -> [Duration; 2] {
        match self {
            Self::Agents(agents) => [0, 1].map(|at: usize| agents[at].cpu_time()),
            Self::Others(others) => [0, 1].map(|at: usize| {
                // In ticks, of all that the script started.
                family(others[at].pid()).into_iter().map(usage::cpu_time).sum()
            }),
        }
    }

    /// Whether a connection to `target` has gone through a tunnel. Of another proxy than ours that is not asked.
    pub(super) fn has_tunnelled(&self, target: SocketAddr) -> bool {
        let Self::Agents(agents) = self else { return true };
        let records = agents[0].access_log();
        records.iter().any(|record| {
            record.destination() == Some(target) && record.field("security").as_deref() == Some("mutual_tls")
        })
    }

    /// Waits until all know as many pods as that, and have done what follows from them, such as telling the kernel. Of another
    /// proxy than ours that is not asked.
    pub(super) fn wait_known(&self, pods: impl RangeBounds<u32> + Debug) -> Result<()> {
        let Self::Agents(agents) = self else { return Ok(()) };
        agents.iter().try_for_each(|agent| {
            try_eventually(LARGE_PATIENCE, || {
                let known = agent.metrics()?.sum("culvert_workloads", &[]);
                ensure!(pods.contains(&(known as u32)), "{} knows {known} pods, not {pods:?}", agent.node());
                let before = agent.cpu_time();
                sleep(REST);
                let busy = agent.cpu_time() - before;
                ensure!(busy < REST / 50, "{} is still at work: {busy:?} in {REST:?}", agent.node());
                Ok(())
            })
        })
    }

    /// The resident memory of each, in bytes.
    pub(super) fn memory(&self) -> [u64; 2] {
        match self {
            Self::Agents(agents) => [0, 1].map(|at: usize| agents[at].rss()),
            Self::Others(others) => {
                [0, 1].map(|at: usize| family(others[at].pid()).into_iter().map(usage::rss).sum())
            }
        }
    }
}

/// An agent that carries as many connections as are measured with.
pub(super) fn agent(mesh: &Mesh, node: &str) -> AgentBuilder {
    mesh.agent(node).arg("--max-connections").arg(CONNECTIONS)
}

fn other(mesh: &Mesh, script: &Path, node: &str) -> Result<Process> {
    let directory = mesh.directory().join(format!("{node}.proxy"));
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let node = mesh.node(node);
    let script = script.to_str().context("the script's path is not UTF-8")?;
    let mut command = node.command(script);
    command.env("BENCH_NODE", node.name()).env("BENCH_UNIQUE_NODE", node.unique_name());
    command.env("BENCH_MANIFESTS", mesh.manifests()).env("BENCH_CA", mesh.ca()?);
    command.env("BENCH_DIRECTORY", directory);
    let process = mesh.spawn(&mut command)?;
    process.until(PATIENCE, || process.logs().lines().any(|line| line == "ready"))?;
    Ok(process)
}

/// How long agents may take to read a hundred thousand pods.
const LARGE_PATIENCE: Duration = Duration::from_secs(180);
/// For how long an agent must have had next to nothing to do.
const REST: Duration = Duration::from_secs(1);

/// How many connections an agent carries: one client may have half of them, and has ten thousand.
const CONNECTIONS: &str = "30000";

/// A process and all that it started, directly or not.
fn family(first: u32) -> Vec<u32> {
    let mut family = vec![first];
    let mut next = 0;
    while let Some(pid) = family.get(next).copied() {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        family.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        next += 1;
    }
    family
}
