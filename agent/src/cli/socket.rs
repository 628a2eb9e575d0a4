//! The node's agent, asked over its unix socket.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::run_directory::{DIRECTORY, RunFile};

/// Which agent is asked.
#[derive(Args, Clone, Debug)]
pub(super) struct SocketArgs {
    /// The node's name, where several agents run on one machine [default: the only one that runs].
    #[arg(long, env = "CULVERT_NODE")]
    node: Option<String>,

    /// The agent's unix socket, where it was given one of its own [default: /run/culvert/NODE.sock].
    #[arg(long, env = "CULVERT_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl SocketArgs {
    /// Returns the socket of the agent that is meant.
    pub(super) fn find(&self) -> anyhow::Result<PathBuf> {
        match (&self.socket, &self.node) {
            (Some(socket), _) => Ok(socket.clone()),
            (None, Some(node)) => Ok(RunFile::Socket.of(node)),
            (None, None) => only_socket(),
        }
    }
}

fn only_socket() -> anyhow::Result<PathBuf> {
    let directory = Path::new(DIRECTORY);
    let sockets: Vec<_> = std::fs::read_dir(directory)
        .with_context(|| {
            format!(
                "no agent runs here: {} cannot be read (an agent with a --socket of its own is asked by --socket)",
                directory.display()
            )
        })?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "sock") && !is_plugins(path))
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

/// Whether a socket is the one on which the CNI plugin asks the agent of another's lock.
fn is_plugins(path: &Path) -> bool {
    let node = path.file_stem().and_then(|stem| stem.to_str()?.strip_suffix("-cni"));
    node.is_some_and(|node| RunFile::Lock.of(node).exists())
}

/// Asks the agent for a path and returns the answer's body.
pub(super) fn ask(socket: &Path, path: &str) -> anyhow::Result<String> {
    Ok(request(socket, "GET", path)?.1)
}

/// Sends the agent a request and returns the answer's status and body. The agent closes the connection after it (HTTP/1.0
/// style), so that no HTTP client is needed here.
pub(crate) fn request(socket: &Path, method: &str, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket).with_context(|| {
        format!("no agent answers at {}: does it run, and are you root?", socket.display())
    })?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: culvert\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the agent's answer broke off")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the agent's answer is not HTTP")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.context("the agent's answer has no status")?, body.to_owned()))
}
