//! `culvert status`: ask the node's agent, over its unix socket.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::Value;

/// Show what the agent of this node does
#[derive(Args, Clone, Debug)]
pub(super) struct StatusArgs {
    /// The node's name, where several agents run on one machine [default: the only one that runs].
    #[arg(long, env = "CULVERT_NODE")]
    node: Option<String>,

    /// The agent's unix socket, where it was given one of its own [default: /run/culvert/NODE.sock].
    #[arg(long, env = "CULVERT_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,

    /// The whole configuration dump, as JSON.
    #[arg(long)]
    json: bool,
}

/// Prints readiness and the node's pods.
pub(super) fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let socket = match (&args.socket, &args.node) {
        (Some(socket), _) => socket.clone(),
        (None, Some(node)) => crate::default_socket(node),
        (None, None) => only_socket()?,
    };
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

fn only_socket() -> anyhow::Result<PathBuf> {
    let directory = Path::new("/run/culvert");
    let sockets: Vec<_> = std::fs::read_dir(directory)
        .with_context(|| {
            format!(
                "no agent runs here: {} cannot be read (an agent with a --socket of its own is asked by --socket)",
                directory.display()
            )
        })?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "sock"))
        .collect();
    match sockets.as_slice() {
        [socket] => Ok(socket.clone()),
        [] => bail!(
            "no agent runs here: {} holds no socket (an agent with a --socket of its own is asked by --socket)",
            directory.display()
        ),
        several => {
            let nodes: Vec<_> = several.iter().filter_map(|path| path.file_stem()?.to_str()).collect();
            bail!("several agents run here: pick one with --node, of {}", nodes.join(", "))
        }
    }
}

/// Asks the agent for a path and returns the answer's body. The agent closes the connection after it (HTTP/1.0 style),
/// so that no HTTP client is needed here.
fn ask(socket: &Path, path: &str) -> anyhow::Result<String> {
    let mut stream = UnixStream::connect(socket).with_context(|| {
        format!("no agent answers at {}: does it run, and are you root?", socket.display())
    })?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: culvert\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the agent's answer broke off")?;
    let (_, body) = answer.split_once("\r\n\r\n").context("the agent's answer is not HTTP")?;
    Ok(body.to_owned())
}
