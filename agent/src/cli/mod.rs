//! The command line: one file a subcommand.

mod agent;
mod authority;
mod ca;
mod certs;
mod cleanup;
pub mod cni;
mod crds;
mod policy;
mod ready;
pub(crate) mod socket;
mod status;
mod vault;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use agent::AgentArgs;
pub use authority::AuthorityArgs;

/// Culvert, an ambient service mesh: mutual TLS between pods, by eBPF alone.
#[derive(Debug, Parser)]
#[command(name = "culvert", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent of a node.
    Agent(Box<AgentArgs>),
    /// Make and keep the authority that signs the workloads' certificates.
    Ca(ca::CaArgs),
    /// Show the certificates of this node, or explain a file of certificates.
    Certs(certs::CertsArgs),
    /// Test policies, find what is odd in them, and explain what they say.
    Policy(policy::PolicyArgs),
    /// Print the definitions of the kinds of policy, for the API server.
    Crds(crds::CrdsArgs),
    /// Tell by the exit status whether the agent of this node is ready.
    Ready(ready::ReadyArgs),
    /// Show what the agent of this node does.
    Status(status::StatusArgs),
    /// Act as the CNI plugin: a container runtime calls this, nobody else.
    #[command(hide = true)]
    Cni,
    /// Remove every program, map, link and file that Culvert put on this node.
    Cleanup(cleanup::CleanupArgs),
}

impl Cli {
    /// Runs the subcommand, and returns what the process ends with.
    ///
    /// # Errors
    /// Whatever the subcommand could not do, said for the person who typed it.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Agent(args) => agent::run(*args),
            Command::Ca(args) => ca::run(args),
            Command::Certs(args) => return certs::run(&args),
            Command::Policy(args) => return Ok(policy::run(&args)),
            Command::Crds(_) => crds::run(),
            Command::Ready(args) => return ready::run(&args),
            Command::Status(args) => status::run(&args),
            Command::Cni => return Ok(cni::run()),
            Command::Cleanup(args) => cleanup::run(&args),
        }?;
        Ok(ExitCode::SUCCESS)
    }
}
