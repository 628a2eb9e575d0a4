//! The CNI plugin `culvert-cni`: the last of a node's chain (CNI specification 1.1, and back to 0.3.1).
//!
//! ```text
//! container runtime ──CNI──► culvert-cni ──unix socket, one line each way──► Server (the node's agent)
//!                                 └── while no agent answers: the API server, then what the agent saved last
//! agent ──► install: the plugin's binary, its place at the end of the chain, its kubeconfig
//! ```
//!
//! ADD succeeds once the pod is enrolled, so that its first connection is captured, and at once for a pod that is not to
//! be. Owns the protocol of both sides, what the plugin does while no agent runs, and the plugin's place in the node's
//! configuration. Does not own which pods are to be enrolled (the snapshot says, or whoever is asked in its place), nor the
//! enrolling, which `enroll` does as soon as `sandbox` knows the namespace.

mod away;
pub mod install;
mod plugin;
mod protocol;
mod result;
mod saved;
mod server;
mod spec;

pub use away::Asked;
pub use plugin::{Config, Environment, PodName, run};
pub use saved::Saved;
pub use server::{Ask, Server, Standing, Standings};
pub use spec::{Failure, code};

/// What the plugin's binary is called, and the type that the configuration calls it by.
pub const NAME: &str = "culvert-cni";
