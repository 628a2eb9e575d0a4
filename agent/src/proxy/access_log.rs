//! One line for each connection that ended, written by a thread of its own so that a slow disk or pipe never holds a
//! connection up. The queue is bounded; what does not fit is dropped and counted. Lines that follow closely are written
//! together: to wake the thread for each would cost a short connection more than its line does.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;
use serde::{Serialize, Serializer, ser::SerializeMap as _};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::mesh::{Identity, Reason, Service, Workload};

/// How the lines look.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum AccessLogFormat {
    /// `key=value` pairs.
    Text,
    /// One JSON object a line.
    Json,
    /// No access log.
    Off,
}

/// The access log. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct AccessLog {
    lines: Option<SyncSender<Line>>,
    dropped: Counter,
}

/// What the writing thread gets.
#[derive(Debug)]
enum Line {
    Entry(Box<Entry>),
    /// Everything before it is to be written, and then this told.
    Flush(SyncSender<()>),
}

/// What one line says. The writing thread makes the text of it.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    /// When the connection ended, RFC 3339, UTC.
    #[serde(serialize_with = "rfc3339")]
    pub(super) time: OffsetDateTime,
    /// `outbound` (the source's agent reports) or `inbound` (the destination's).
    pub(super) direction: &'static str,
    /// `ok`, or `error` with a reason.
    pub(super) result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    /// `namespace/name` of the policy that decided on an inbound connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) policy: Option<String>,
    /// What would have been decided with the policies on trial, where any apply: `deny shop/lockdown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dry_run: Option<String>,
    /// `mutual_tls` or `none`.
    pub(super) security: &'static str,
    /// The agent carried it between two of its own pods: no tunnel, and nothing on a network.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) same_node: bool,
    /// It went from the one pod's socket to the other's past the agent, which had permitted it. The bytes are the kernel's count.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) native: bool,
    #[serde(rename = "src.addr")]
    pub(super) source: SocketAddr,
    #[serde(flatten, serialize_with = "source_peer")]
    pub(super) source_peer: Peer,
    /// What the application asked for.
    #[serde(rename = "dst.addr", skip_serializing_if = "Option::is_none")]
    pub(super) destination: Option<SocketAddr>,
    /// The endpoint that was picked, where that is another address.
    #[serde(rename = "dst.endpoint", skip_serializing_if = "Option::is_none")]
    pub(super) endpoint: Option<SocketAddr>,
    /// `namespace/name` of the service that was asked for.
    #[serde(rename = "dst.service", skip_serializing_if = "Option::is_none", serialize_with = "service")]
    pub(super) service: Option<Arc<Service>>,
    #[serde(flatten, serialize_with = "destination_peer")]
    pub(super) destination_peer: Peer,
    /// From source to destination.
    pub(super) bytes_sent: u64,
    /// From destination to source.
    pub(super) bytes_received: u64,
    pub(super) duration_ms: f64,
}

/// One end of a connection.
#[derive(Debug, Default)]
pub(super) struct Peer {
    /// The pod, where it is known.
    pub(super) workload: Option<Arc<Workload>>,
    /// Its identity, as proved or as expected.
    pub(super) identity: Option<Identity>,
}

impl Peer {
    /// Describes a workload and the identity that it is expected to have.
    pub(super) fn of(workload: Option<Arc<Workload>>) -> Self {
        let identity = workload.as_ref().map(|workload| workload.identity.clone());
        Self { workload, identity }
    }

    fn serialize_as<S: Serializer>(
        &self,
        [name, namespace, identity]: [&'static str; 3],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(workload) = &self.workload {
            map.serialize_entry(name, &*workload.name)?;
            map.serialize_entry(namespace, &*workload.namespace)?;
        } else if let Some(identity) = &self.identity {
            map.serialize_entry(namespace, identity.namespace())?;
        }
        if let Some(own) = &self.identity {
            map.serialize_entry(identity, &format_args!("{own}"))?;
        }
        map.end()
    }
}

fn source_peer<S: Serializer>(peer: &Peer, serializer: S) -> Result<S::Ok, S::Error> {
    peer.serialize_as(["src.workload", "src.namespace", "src.identity"], serializer)
}

fn destination_peer<S: Serializer>(peer: &Peer, serializer: S) -> Result<S::Ok, S::Error> {
    peer.serialize_as(["dst.workload", "dst.namespace", "dst.identity"], serializer)
}

fn service<S: Serializer>(service: &Option<Arc<Service>>, serializer: S) -> Result<S::Ok, S::Error> {
    match service {
        Some(service) => serializer.collect_str(service),
        None => serializer.serialize_none(),
    }
}

fn rfc3339<S: Serializer>(time: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    time.format(&Rfc3339).unwrap_or_default().serialize(serializer)
}

impl AccessLog {
    /// Starts the writing thread. `dropped` counts the lines that the queue had no room for.
    pub(super) fn start(format: AccessLogFormat, dropped: Counter) -> std::io::Result<Self> {
        if format == AccessLogFormat::Off {
            return Ok(Self { lines: None, dropped });
        }
        let (lines, queue) = sync_channel::<Line>(QUEUE);
        thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            let mut out = std::io::BufWriter::new(std::io::stdout());
            while let Ok(line) = queue.recv() {
                let mut flushed = Vec::new();
                for line in std::iter::once(line).chain(queue.try_iter()) {
                    match line {
                        Line::Entry(entry) => write(&mut out, format, &entry),
                        Line::Flush(done) => flushed.push(done),
                    }
                }
                // Nowhere is left to say that the standard output is gone, or that nobody waits any more.
                let _ = out.flush();
                for done in flushed {
                    let _ = done.try_send(());
                }
                // Who queues a line meanwhile wakes nobody.
                thread::sleep(PAUSE);
            }
        })?;
        Ok(Self { lines: Some(lines), dropped })
    }

    /// Whether anybody reads what [`Self::write`] takes.
    pub(super) fn enabled(&self) -> bool {
        self.lines.is_some()
    }

    /// Queues one line.
    pub(super) fn write(&self, entry: Entry) {
        let Some(lines) = &self.lines else { return };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            lines.try_send(Line::Entry(Box::new(entry)))
        {
            self.dropped.inc();
        }
    }
}

impl AccessLog {
    /// Waits until the lines so far are written, for at most [`FLUSH_LIMIT`]. Blocks.
    pub(super) fn flush(&self) {
        let Some(lines) = &self.lines else { return };
        let (done, written) = sync_channel(1);
        if lines.send(Line::Flush(done)).is_ok() {
            let _ = written.recv_timeout(FLUSH_LIMIT);
        }
    }
}

/// How long the agent's end waits for whoever reads the access log.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// How long lines may wait for others to be written with.
const PAUSE: Duration = Duration::from_millis(5);

/// Lines that may wait to be written, some 500 bytes each.
const QUEUE: usize = 8192;

fn write(out: &mut impl std::io::Write, format: AccessLogFormat, entry: &Entry) {
    let _ = match format {
        AccessLogFormat::Off => Ok(()),
        AccessLogFormat::Json => {
            serde_json::to_writer(&mut *out, entry).map_err(Into::into).and_then(|()| out.write_all(b"\n"))
        }
        AccessLogFormat::Text => writeln!(out, "{}", Text(entry)),
    };
}

/// The text form: the fields of the JSON form, in its order, as `key=value`.
struct Text<'a>(&'a Entry);

impl std::fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = serde_json::to_value(self.0).map_err(|_| std::fmt::Error)?;
        let mut separator = "";
        for (key, value) in value.as_object().into_iter().flatten() {
            match value {
                serde_json::Value::String(text) if is_plain(text) => {
                    write!(f, "{separator}{key}={text}")?;
                }
                other => write!(f, "{separator}{key}={other}")?,
            }
            separator = " ";
        }
        Ok(())
    }
}

/// Whether a value needs no quotes. Much of what a line says was said by a peer: nothing of it may look like another
/// field, begin another line, or speak to the terminal of whoever reads it.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"=\\".contains(&byte))
}

/// Returns the address as the log shows it.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(IpAddr::to_canonical(&address.ip()), address.port())
}

#[cfg(test)]
mod tests {
    use super::is_plain;

    #[test]
    fn what_could_mislead_a_reader_is_quoted() {
        for (text, plain) in [
            ("10.0.0.1:80", true),
            ("spiffe://cluster.local/ns/default/sa/web", true),
            ("a b", false),
            ("a\" result=\"ok", false),
            ("result=ok", false),
            ("line\rbreak", false),
            ("\u{1b}[2J", false),
            ("\u{202e}reversed", false),
            ("back\\slash", false),
        ] {
            assert_eq!(is_plain(text), plain, "{text:?}");
        }
    }
}
