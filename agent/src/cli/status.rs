//! `culvert status`: ask the node's agent, over its unix socket.

use anyhow::Context as _;
use clap::Args;
use serde_json::Value;

use super::socket::{SocketArgs, ask};

/// Show what the agent of this node does
#[derive(Args, Clone, Debug)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    agent: SocketArgs,

    /// The whole configuration dump, as JSON.
    #[arg(long)]
    json: bool,
}

/// Prints readiness and the node's pods.
pub(super) fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let socket = args.agent.find()?;
    let dump = ask(&socket, "/config_dump")?;
    if args.json {
        print!("{dump}");
        return Ok(());
    }
    print!("{}", ask(&socket, "/healthz/ready")?);
    let dump: Value = serde_json::from_str(&dump).context("the agent's answer is not JSON")?;
    println!();
    println!("{:<32} {:<28} {:<20} IDENTITY", "POD", "STATE", "ADDRESSES");
    for pod in dump["pods"].as_array().into_iter().flatten() {
        let text = |key: &str| pod[key].as_str().unwrap_or_default().to_owned();
        let addresses: Vec<_> =
            pod["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        println!(
            "{:<32} {:<28} {:<20} {}",
            format!("{}/{}", text("namespace"), text("name")),
            text("state"),
            addresses.join(","),
            text("identity")
        );
    }
    Ok(())
}
