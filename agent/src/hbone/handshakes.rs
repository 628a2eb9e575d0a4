//! How handshakes ended, for the metrics: each is counted once, when its end is known.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::AcqRel},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::{ConnectError, ServeError};
use crate::identity::TlsError;

/// The totals of handshakes. Cheap to clone; all clones count into the same.
#[derive(Clone, Debug)]
pub struct Handshakes(Family<Labels, Counter>);

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Labels {
    side: &'static str,
    result: &'static str,
    reason: &'static str,
}

/// A client's handshake that may yet turn out to have been refused: in TLS 1.3 the server judges the client's
/// certificate after the client is done (RFC 8446 §4.4.4).
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    handshakes: Handshakes,
    known: Arc<AtomicBool>,
}

impl Default for Handshakes {
    /// Successes at zero: a rate over a counter that is absent is no rate.
    fn default() -> Self {
        let this = Self(Family::default());
        for side in [CLIENT, SERVER] {
            drop(this.0.get_or_create(&Labels { side, result: OK, reason: NONE }));
        }
        this
    }
}

impl Handshakes {
    /// Registers `culvert_handshakes` (a counter, by `side`, `result` and `reason`).
    pub fn register(&self, registry: &mut Registry) {
        let help = "TLS handshakes with peers' agents, by side, result and reason";
        registry.register("culvert_handshakes", help, self.0.clone());
    }

    /// Counts what became of a connection that was accepted.
    pub fn served(&self, outcome: Result<(), &ServeError>) {
        match outcome {
            Ok(()) => self.count(SERVER, OK, NONE),
            Err(error) => self.count(SERVER, FAILED, error.cause()),
        }
    }

    /// Counts a handshake with a server that failed.
    pub(super) fn failed(&self, error: &ConnectError) {
        let reason = match error {
            ConnectError::Tls { source, .. } => source.cause(),
            ConnectError::Timeout { .. } => TIMEOUT,
            ConnectError::Protocol { .. } => PROTOCOL,
            _ => BROKEN,
        };
        self.count(CLIENT, FAILED, reason);
    }

    /// Returns where the end of a handshake is noted that the client is done with.
    pub(super) fn verdict(&self) -> Verdict {
        Verdict { handshakes: self.clone(), known: Arc::default() }
    }

    fn count(&self, side: &'static str, result: &'static str, reason: &'static str) {
        self.0.get_or_create(&Labels { side, result, reason }).inc();
    }
}

impl Verdict {
    /// Notes whether the server let us in, unless it is known already.
    pub(super) fn is(&self, failure: Option<&TlsError>) {
        if self.known.swap(true, AcqRel) {
            return;
        }
        match failure {
            None => self.handshakes.count(CLIENT, OK, NONE),
            Some(error) => self.handshakes.count(CLIENT, FAILED, error.cause()),
        }
    }
}

impl ServeError {
    fn cause(&self) -> &'static str {
        match self {
            Self::Tls(error) => error.cause(),
            Self::HandshakeTimeout(_) | Self::Silent(_) => TIMEOUT,
            Self::Protocol(_) => PROTOCOL,
            Self::Io(_) | Self::Lapsed(_) => BROKEN,
        }
    }
}

const CLIENT: &str = "client";
const SERVER: &str = "server";
const OK: &str = "ok";
const FAILED: &str = "failed";
const NONE: &str = "none";
const TIMEOUT: &str = "timeout";
const PROTOCOL: &str = "protocol";
/// As [`TlsError::cause`] has it.
const BROKEN: &str = "broken";
