//! Why a connection ended or was refused: one closed set for the access log, the metrics and the HTTP status alike.

use std::fmt;

/// Why a connection failed. Closed, so that a metric labelled with it has a bound.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub enum Reason {
    /// No capture entry belongs to the accepted connection: it did not come through `connect`.
    NotCaptured,
    /// The address belongs to nobody that the mesh knows.
    UnknownDestination,
    /// Two live pods claim the address.
    AddressConflict,
    /// The service has no such port.
    NoSuchPort,
    /// The service has no ready endpoint.
    NoEndpoint,
    /// No certificate for the source's or destination's identity could be had.
    NoCertificate,
    /// The peer's certificate is not of the expected identity.
    IdentityMismatch,
    /// The peer's certificate is expired, not yet valid, of an unknown root, or absent.
    BadCertificate,
    /// TLS failed otherwise.
    Tls,
    /// The connection to the peer agent or to the application could not be made.
    DialFailed,
    /// A wait on the peer reached its deadline.
    Timeout,
    /// A policy of the destination refused it.
    PolicyDenied,
    /// The destination's mode is STRICT, and the connection was plaintext.
    PlaintextRefused,
    /// A change of policy ended it: it is permitted no longer.
    PolicyRevoked,
    /// The peer's agent refused by policy (401).
    PeerDenied,
    /// The peer's agent could not reach the application (503).
    PeerUnavailable,
    /// The peer broke HTTP/2 or HBONE.
    Protocol,
    /// The peer's tunnel ended without the end of the stream.
    TunnelLost,
    /// One of the two applications reset the connection.
    Reset,
    /// A bound of the agent was reached (connections, streams, descriptors).
    Overload,
    /// The agent is shutting down and the grace period is over.
    Shutdown,
    /// The source or destination pod left the mesh or vanished.
    PodGone,
    /// What went past the agent came to be on a segment that other pods share.
    SharedSegment,
}

impl Reason {
    /// Every reason, for documentation and for metrics that start at zero.
    pub const ALL: [Self; 23] = [
        Self::NotCaptured,
        Self::UnknownDestination,
        Self::AddressConflict,
        Self::NoSuchPort,
        Self::NoEndpoint,
        Self::NoCertificate,
        Self::IdentityMismatch,
        Self::BadCertificate,
        Self::Tls,
        Self::DialFailed,
        Self::Timeout,
        Self::PolicyDenied,
        Self::PlaintextRefused,
        Self::PolicyRevoked,
        Self::PeerDenied,
        Self::PeerUnavailable,
        Self::Protocol,
        Self::TunnelLost,
        Self::Reset,
        Self::Overload,
        Self::Shutdown,
        Self::PodGone,
        Self::SharedSegment,
    ];

    /// The reason as it stands in logs and labels: lower case, words joined by `_`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotCaptured => "not_captured",
            Self::UnknownDestination => "unknown_destination",
            Self::AddressConflict => "address_conflict",
            Self::NoSuchPort => "no_such_port",
            Self::NoEndpoint => "no_endpoint",
            Self::NoCertificate => "no_certificate",
            Self::IdentityMismatch => "identity_mismatch",
            Self::BadCertificate => "bad_certificate",
            Self::Tls => "tls",
            Self::DialFailed => "dial_failed",
            Self::Timeout => "timeout",
            Self::PolicyDenied => "policy_denied",
            Self::PlaintextRefused => "plaintext_refused",
            Self::PolicyRevoked => "policy_revoked",
            Self::PeerDenied => "peer_denied",
            Self::PeerUnavailable => "peer_unavailable",
            Self::Protocol => "protocol",
            Self::TunnelLost => "tunnel_lost",
            Self::Reset => "reset",
            Self::Overload => "overload",
            Self::Shutdown => "shutdown",
            Self::PodGone => "pod_gone",
            Self::SharedSegment => "shared_segment",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl serde::Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
