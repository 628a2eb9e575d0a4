//! Nodes and pods in real network namespaces, real agents on them, and real programs in them.
//!
//! Nothing here knows the agent's code: the agent is the binary `culvert`, started as an operator starts it, over a
//! directory of Kubernetes manifests. Every suite and `cargo xtask demo` stand on this crate.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use lab::{Mesh, tcp};
//!
//! let mesh = Mesh::new()?; // node-a and node-b, joined by a link of their own
//! let client = mesh.pod("client").on("node-a").enrolled().start()?;
//! let web = mesh.pod("web").on("node-b").enrolled().label("app", "web").start()?;
//! let service = mesh.service("web").select("app", "web").port(80, 8080).apply()?;
//! let (a, b) = (mesh.agent("node-a").start()?, mesh.agent("node-b").start()?);
//! a.wait_ready()?;
//! b.wait_ready()?;
//! let server = web.serve(8080, tcp::echo)?;
//! tcp::exchange(client.connect(service.address(80))?, 1 << 20)?;
//! assert_eq!(server.peers()[0].ip(), client.ip());
//! # Ok(()) }
//! ```
//!
//! Everything needs root; without it [`Mesh::new`] is an error, never a silent skip. What a mesh made is removed when
//! it is dropped, on Ctrl-C, SIGTERM and SIGHUP, and, after SIGKILL, by the next process's [`Mesh::remove_leftovers`].

mod access_log;
mod agent;
mod capture;
mod certificate;
pub mod cluster;
mod files;
mod held;
pub mod http;
pub mod image;
mod interrupt;
mod ip;
pub mod manifest;
mod mesh;
mod metrics;
mod netns;
mod node;
mod pcap;
mod peer;
mod pod;
mod process;
mod registry;
mod service;
pub mod tcp;
mod teardown;
pub mod usage;
mod wait;

pub use self::{
    access_log::AccessRecord,
    agent::{Agent, AgentBuilder, culvert},
    capture::{Capture, Captured},
    certificate::{CertificateBuilder, Credentials},
    cluster::{ApiServer, Cluster, ClusterConfig, ClusterNode, ControlPlane, NodeDaemon},
    interrupt::wait_for_interrupt,
    mesh::{Mesh, MeshBuilder},
    metrics::{Metrics, Sample},
    netns::NetNs,
    node::Node,
    pcap::{Flow, TlsRecords},
    peer::Peer,
    pod::{Pod, PodBuilder},
    process::{Process, install},
    service::{Service, ServiceBuilder},
    wait::{Condition, PATIENCE, eventually, try_eventually},
};
