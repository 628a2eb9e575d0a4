//! `culvert ready`: whether the agent is ready, as an exit status.

use std::process::ExitCode;

use clap::Args;

use super::socket::{SocketArgs, request};

/// Tell by the exit status whether the agent of this node is ready
///
/// For a probe: an address that two agents of a node have in turn, during an update, cannot tell which of them answers.
#[derive(Args, Clone, Debug)]
pub(super) struct ReadyArgs {
    #[command(flatten)]
    agent: SocketArgs,

    /// The agent that is meant, as it was told by its own --instance [default: whichever answers].
    #[arg(long, env = "CULVERT_INSTANCE", value_name = "NAME")]
    instance: Option<String>,
}

/// Prints what readiness waits for.
pub(super) fn run(args: &ReadyArgs) -> anyhow::Result<ExitCode> {
    let of = args.instance.as_ref().map(|name| format!("?instance={name}")).unwrap_or_default();
    let (status, detail) = request(&args.agent.find()?, "GET", &format!("/healthz/ready{of}"))?;
    print!("{detail}");
    Ok(if status == 200 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
