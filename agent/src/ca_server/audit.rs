//! The audit: one line of JSON for each certificate and each refusal. A certificate leaves only after its line was
//! written.

use std::{
    io::{self, Write},
    net::SocketAddr,
    thread,
    time::SystemTime,
};

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

/// Where the lines go. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Audit(mpsc::Sender<Line>);

#[derive(Debug)]
struct Line {
    text: Vec<u8>,
    written: oneshot::Sender<io::Result<()>>,
}

/// What one line says.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    /// RFC 3339, UTC.
    pub(super) time: String,
    /// `issued` or `refused`.
    pub(super) outcome: &'static str,
    /// Why it was refused, in one word: that of the metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<&'static str>,
    /// Why it was refused, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    /// The other end of the TCP connection.
    pub(super) remote: SocketAddr,
    /// Whose token it was; absent where that is not proved, as is all of the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) caller: Option<String>,
    /// The token's pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pod: Option<String>,
    /// The token's node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node: Option<String>,
    /// Who was to get a certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) identity: Option<String>,
    /// The certificate's serial number, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) serial: Option<String>,
    /// When it expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) not_after: Option<String>,
}

impl Audit {
    /// Starts the thread that writes to `out`; it ends with the last clone of the audit.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn start(mut out: impl Write + Send + 'static) -> io::Result<Self> {
        let (sender, mut lines) = mpsc::channel::<Line>(QUEUE);
        let write = move || {
            while let Some(Line { text, written }) = lines.blocking_recv() {
                let outcome = out.write_all(&text).and_then(|()| out.flush());
                // Nobody waits any more where the request was given up.
                drop(written.send(outcome));
            }
        };
        thread::Builder::new().name("audit".to_owned()).spawn(write)?;
        Ok(Self(sender))
    }

    /// Writes a line and waits until it is written. Whoever reads the lines and stops holds requests up, not memory.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(super) async fn write(&self, record: &Record) -> io::Result<()> {
        let mut text = serde_json::to_vec(record)?;
        text.push(b'\n');
        let (written, outcome) = oneshot::channel();
        let ended = || io::Error::other("the thread that writes the audit has ended");
        self.0.send(Line { text, written }).await.map_err(|_| ended())?;
        outcome.await.map_err(|_| ended())?
    }
}

/// A moment as the lines have it.
pub(super) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// How many lines may wait for the thread.
const QUEUE: usize = 256;
