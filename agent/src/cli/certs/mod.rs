//! `culvert certs`: the certificates of this node, asked of its agent; and what a file of certificates says.

mod inspect;
mod table;

use std::{process::ExitCode, time::SystemTime};

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::socket::{SocketArgs, ask};
use crate::report::Certificates;

/// Show the certificates of this node's workloads, who signed them, and how long they are good for
///
/// Below them stand the roots that are trusted, the intermediates in use, and the files that are read again when they
/// change. `culvert certs inspect FILE` needs no agent and explains certificates in a file.
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct CertsArgs {
    #[command(subcommand)]
    command: Option<CertsCommand>,

    #[command(flatten)]
    agent: SocketArgs,

    /// As JSON, whose fields docs/operations.md explains.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, Subcommand)]
enum CertsCommand {
    /// Explain the certificates, requests, lists and keys in a PEM file, and say what is wrong with them
    Inspect(inspect::InspectArgs),
}

/// Runs `culvert certs`.
///
/// # Errors
/// Where no agent answers. What is wrong with a file is said by the exit code alone.
pub(super) fn run(args: &CertsArgs) -> anyhow::Result<ExitCode> {
    if let Some(CertsCommand::Inspect(args)) = &args.command {
        return Ok(inspect::run(args));
    }
    let socket = args.agent.find()?;
    let answer = ask(&socket, "/certs")?;
    if args.json {
        println!("{answer}");
        return Ok(ExitCode::SUCCESS);
    }
    let certificates: Certificates = serde_json::from_str(&answer).with_context(|| {
        format!(
            "the agent at {} does not say what its certificates are: is it an older one?",
            socket.display()
        )
    })?;
    print!("{}", table::render(&certificates, SystemTime::now()));
    Ok(ExitCode::SUCCESS)
}
