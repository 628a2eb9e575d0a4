//! The command line: one file a subcommand.

mod agent;
mod authority;
mod ca;
mod cleanup;
mod status;
mod vault;

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
    /// Show what the agent of this node does.
    Status(status::StatusArgs),
    /// Remove every program, map, link and file that Culvert put on this node.
    Cleanup(cleanup::CleanupArgs),
}

impl Cli {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// Whatever the subcommand could not do, said for the person who typed it.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Agent(args) => agent::run(*args),
            Command::Ca(args) => ca::run(args),
            Command::Status(args) => status::run(&args),
            Command::Cleanup(args) => cleanup::run(&args),
        }
    }
}
