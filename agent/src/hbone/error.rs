//! What can go wrong with a tunnel, with opening one, and with serving them; each with its [`Reason`].

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use http::StatusCode;

use crate::{
    identity::{Lapse, Lapsed, TlsError},
    mesh::Reason,
};

/// Why a tunnel ended other than by both ends' END_STREAM.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TunnelError {
    /// The peer reset this tunnel (RST_STREAM, RFC 9113 §6.4), most often because its application did.
    #[error("the peer reset the tunnel ({0})")]
    Reset(h2::Reason),
    /// The connection that carried the tunnel ended. Bytes may be missing: never a clean end of file.
    #[error("the connection that carried the tunnel ended: {0}")]
    Lost(Loss),
}

/// Why a whole HTTP/2 connection ended under its tunnels.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Loss {
    /// The source pod left the mesh.
    PodGone,
    /// The peer's address belongs to another pod now.
    PeerGone,
    /// The peer did not answer a PING in time.
    Silent,
    /// What the connection was made with is no longer good: a certificate expired, was revoked, or lost its root.
    Lapsed(Lapse),
    /// The agent shuts down and the grace period is over.
    Shutdown,
    /// The pool closed it, unused, to make room for another.
    Evicted,
    /// The peer, or the agent itself, ended it for a breach of HTTP/2.
    Protocol(h2::Reason),
    /// TCP or TLS failed.
    Io(io::ErrorKind),
    /// The peer closed it.
    Closed,
}

/// Why no tunnel could be opened. Cheap to clone: callers that wait for one connection share its failure.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// TCP: the peer's agent does not listen, or there is no way to it.
    #[error(
        "cannot connect to the agent at {peer}: {source}; is the destination's node up and its agent running?"
    )]
    Dial {
        /// The peer's agent.
        peer: SocketAddr,
        /// What the kernel says.
        source: Arc<io::Error>,
    },
    /// The TLS handshake failed, on this side or on the peer's.
    #[error("no mutual TLS with the agent at {peer}: {source}")]
    Tls {
        /// The peer's agent.
        peer: SocketAddr,
        /// What is wrong with whose certificate.
        source: Arc<TlsError>,
    },
    /// A wait on the peer reached its deadline.
    #[error("the agent at {peer} did not finish {stage} within {after:?}; is it overloaded or cut off?")]
    Timeout {
        /// The peer's agent.
        peer: SocketAddr,
        /// What was waited for.
        stage: Stage,
        /// The deadline.
        after: Duration,
    },
    /// The peer answered CONNECT with something else than 200.
    #[error("the agent at {peer} refused with status {status}: {}", explain(*.status))]
    Refused {
        /// The peer's agent.
        peer: SocketAddr,
        /// 401 policy, 503 application not reachable, 400 it does not know the address as its own.
        status: StatusCode,
    },
    /// The peer reset the tunnel instead of answering CONNECT.
    #[error("the agent at {peer} reset the request ({code})")]
    Reset {
        /// The peer's agent.
        peer: SocketAddr,
        /// HTTP/2's error code.
        code: h2::Reason,
    },
    /// The peer breaks HTTP/2 or does not speak it.
    #[error("the agent at {peer} does not speak HBONE: {detail}")]
    Protocol {
        /// The peer's agent.
        peer: SocketAddr,
        /// What it did.
        detail: String,
    },
    /// The connection ended before CONNECT was answered, or this agent ended it.
    #[error("the connection to the agent at {peer} ended before it answered: {loss}")]
    Lost {
        /// The peer's agent.
        peer: SocketAddr,
        /// Why it ended.
        loss: Loss,
    },
    /// A bound of the pool is reached.
    #[error("no further connection to the agent at {peer}: {limit} are open, which is the limit")]
    Overload {
        /// The peer's agent.
        peer: SocketAddr,
        /// The bound in connections.
        limit: usize,
    },
}

/// What a peer was waited for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// TCP, TLS and the beginning of HTTP/2.
    Handshake,
    /// The answer to CONNECT.
    Reply,
    /// Another caller's attempt to open the connection that both need.
    Turn,
}

/// Why a connection is not, or no longer, served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The TLS handshake failed, on this side or on the peer's.
    #[error("no mutual TLS with the client: {0}")]
    Tls(#[source] TlsError),
    /// The client did not finish TLS and the beginning of HTTP/2 in time.
    #[error("the client did not finish the handshake within {0:?}")]
    HandshakeTimeout(Duration),
    /// The client breaks HTTP/2 or does not speak it.
    #[error("the client does not speak HBONE: {0}")]
    Protocol(String),
    /// TCP or TLS failed.
    #[error("the connection failed: {0}")]
    Io(#[source] io::Error),
    /// The client did not answer a PING in time.
    #[error("the client did not answer a PING within {0:?}")]
    Silent(Duration),
    /// What the connection was made with is no longer good.
    #[error("the connection may not go on: {0}")]
    Lapsed(#[from] Lapsed),
}

impl TunnelError {
    /// Returns what the log and the metrics call it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Reset(_) => Reason::Reset,
            Self::Lost(loss) => loss.reason(),
        }
    }

    /// Says what an error of one stream means, given what is known of its connection.
    pub(super) fn of(error: &h2::Error, loss: Option<Loss>) -> Self {
        match (error.reason(), loss) {
            (Some(code), _) if error.is_reset() && error.is_remote() => Self::Reset(code),
            (_, Some(loss)) => Self::Lost(loss),
            (_, None) => Self::Lost(Loss::of(error)),
        }
    }
}

impl Loss {
    /// Returns what the log and the metrics call it.
    pub fn reason(self) -> Reason {
        match self {
            Self::PodGone | Self::PeerGone => Reason::PodGone,
            Self::Silent => Reason::Timeout,
            Self::Lapsed(lapse) => lapse.reason(),
            Self::Shutdown => Reason::Shutdown,
            Self::Evicted => Reason::Overload,
            Self::Protocol(_) => Reason::Protocol,
            Self::Io(_) | Self::Closed => Reason::TunnelLost,
        }
    }

    /// Says why a connection ended by what its tunnels or its driver saw.
    pub(super) fn of(error: &h2::Error) -> Self {
        match (error.get_io(), error.reason()) {
            (Some(io), _) => Self::Io(io.kind()),
            (None, Some(h2::Reason::NO_ERROR)) => Self::Closed,
            (None, Some(code)) => Self::Protocol(code),
            (None, None) => Self::Closed,
        }
    }
}

impl ConnectError {
    /// Returns what the log and the metrics call it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Dial { .. } => Reason::DialFailed,
            Self::Tls { source, .. } => source.reason(),
            Self::Timeout { .. } => Reason::Timeout,
            Self::Refused { status, .. } => match *status {
                StatusCode::UNAUTHORIZED => Reason::PeerDenied,
                StatusCode::SERVICE_UNAVAILABLE => Reason::PeerUnavailable,
                _ => Reason::Protocol,
            },
            Self::Reset { .. } => Reason::Reset,
            Self::Protocol { .. } => Reason::Protocol,
            Self::Lost { loss, .. } => loss.reason(),
            Self::Overload { .. } => Reason::Overload,
        }
    }
}

impl ServeError {
    /// Returns what the log and the metrics call it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Tls(error) => error.reason(),
            Self::HandshakeTimeout(_) | Self::Silent(_) => Reason::Timeout,
            Self::Lapsed(lapsed) => lapsed.lapse.reason(),
            Self::Protocol(_) => Reason::Protocol,
            Self::Io(_) => Reason::TunnelLost,
        }
    }
}

impl From<h2::Error> for ServeError {
    fn from(error: h2::Error) -> Self {
        if error.is_io() {
            return Self::Io(error.into_io().unwrap_or_else(|| io::ErrorKind::Other.into()));
        }
        Self::Protocol(error.to_string())
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PodGone => f.write_str("the pod left the mesh"),
            Self::PeerGone => f.write_str("the peer's address belongs to another pod now"),
            Self::Silent => f.write_str("the peer did not answer a PING"),
            Self::Lapsed(lapse) => lapse.fmt(f),
            Self::Shutdown => f.write_str("this agent shuts down"),
            Self::Evicted => f.write_str("it was unused and its place was needed"),
            Self::Protocol(code) => write!(f, "HTTP/2 was broken ({code})"),
            Self::Io(kind) => kind.fmt(f),
            Self::Closed => f.write_str("the peer closed it"),
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Handshake => "the TCP, TLS and HTTP/2 handshakes",
            Self::Reply => "the answer to CONNECT",
            Self::Turn => "a handshake that another connection had begun",
        })
    }
}

/// What an operator can do about a status.
fn explain(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => {
            "a policy of the destination denies this source; the access log of the agent there names it"
        }
        StatusCode::SERVICE_UNAVAILABLE => "the application does not accept; does it listen on the port?",
        StatusCode::BAD_REQUEST => "the address is not the one that the connection was made to",
        _ => "no status of HBONE",
    }
}
