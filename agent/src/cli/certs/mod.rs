//! `culvert certs`: the certificates of this node, asked of its agent.

mod table;

use std::{process::ExitCode, time::SystemTime};

use anyhow::Context as _;
use clap::Args;

use super::socket::{SocketArgs, ask};
use crate::report::Certificates;

/// Show the certificates of this node's workloads, who signed them, and how long they are good for
///
/// Below them stand the roots that are trusted, the intermediates in use, and the files that are read again when they
/// change.
#[derive(Args, Clone, Debug)]
pub(super) struct CertsArgs {
    #[command(flatten)]
    agent: SocketArgs,

    /// As JSON, whose fields docs/operations.md explains.
    #[arg(long)]
    json: bool,
}

/// Runs `culvert certs`.
///
/// # Errors
/// Where no agent answers.
pub(super) fn run(args: &CertsArgs) -> anyhow::Result<ExitCode> {
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
