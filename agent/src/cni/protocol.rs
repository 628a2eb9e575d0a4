//! What the plugin and the agent say to each other: one line of JSON each way, then the connection ends.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::sandbox::Attachment;

/// The longest line of either side: GC names every attachment of the node.
pub(super) const MAX_LINE: u64 = 1024 * 1024;

/// How long the agent may take: somewhat longer than it gives itself ([`super::server`]).
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// What the plugin asks.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub(super) enum Request {
    /// A pod's sandbox has its network: answer when the pod is in the mesh, or is not to be.
    Add(Attachment),
    /// Is the pod still as ADD left it?
    Check(Attachment),
    /// A sandbox's network goes.
    Del {
        /// The container's id.
        container: String,
        /// The interface inside.
        interface: String,
    },
    /// Everything else has gone without DEL.
    Gc {
        /// Pairs of container and interface.
        valid: Vec<(String, String)>,
    },
    /// Can ADD be served?
    Status,
}

/// What the agent answers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "outcome", content = "reason", rename_all = "camelCase")]
pub(super) enum Answer {
    /// It is done, or the pod is in the mesh.
    Done,
    /// The pod is not to be in the mesh, and why.
    NotEnrolled(String),
    /// Whether the pod is to be in the mesh cannot be told at the moment, and why: as if no agent answered.
    Unknown(String),
    /// It could not be done, and why.
    Failed(String),
}

/// Asks the agent.
///
/// # Errors
/// Where there is no answer; the agent is away then.
pub(super) fn ask(socket: &Path, request: &Request) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream.take(MAX_LINE)).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended without an answer"));
    }
    Ok(serde_json::from_str(&answer)?)
}
