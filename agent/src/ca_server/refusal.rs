//! Why a request is refused, and how gRPC says so.

use std::{io, time::Duration};

use tonic::{Code, Status, metadata::MetadataValue};

use super::{authorize::Denied, caller::Unauthenticated, csr::CsrRefusal, review::ReviewError};
use crate::{
    identity::{CaError, Rejected},
    mesh::{IdentityError, TrustDomain},
};

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error(transparent)]
    Unauthenticated(#[from] Unauthenticated),
    #[error(transparent)]
    ApiServer(#[from] ReviewError),
    #[error("this node asks too often: ask again in {}", humantime::format_duration(whole(*.0)))]
    TooOften(Duration),
    #[error("the metadata's ImpersonatedIdentity is no identity: {0}")]
    Identity(#[from] IdentityError),
    #[error("this authority signs for trust domain {ours}, not for {asked}")]
    TrustDomain { ours: TrustDomain, asked: TrustDomain },
    #[error(transparent)]
    Csr(#[from] CsrRefusal),
    #[error("a certificate for {asked} seconds is asked for: {least} at least, or 0 for as long as there is")]
    Lifetime { asked: i64, least: u64 },
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The text goes to the caller, the cause to the audit.
    #[error("the authority behind this server did not sign: {0}")]
    Authority(CaError),
    #[error("the authority behind this server signed something else than it was asked for: {0}")]
    Rejected(#[from] Rejected),
    #[error("the authority behind this server signed for longer than it was asked: until {0}")]
    Overlong(String),
    #[error("the audit line could not be written, and without one no certificate is given out: {0}")]
    Audit(io::Error),
}

impl Refusal {
    /// Returns the reason for metrics and audit: one word of a small set.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Unauthenticated(_) => "unauthenticated",
            Self::ApiServer(_) => "api_server_failed",
            Self::TooOften(_) => "rate_limited",
            Self::Identity(_) | Self::TrustDomain { .. } => "bad_identity",
            Self::Csr(_) => "bad_request",
            Self::Lifetime { .. } => "bad_lifetime",
            Self::Denied(Denied::Unknown(_)) => "unknown_identity",
            Self::Denied(Denied::Elsewhere { .. }) => "not_on_node",
            Self::Authority(_) => "authority_failed",
            Self::Rejected(_) | Self::Overlong(_) => "bad_certificate",
            Self::Audit(_) => "audit_failed",
        }
    }

    /// All reasons, for metrics that are there before the first refusal.
    pub(super) const REASONS: [&'static str; 11] = [
        "unauthenticated",
        "api_server_failed",
        "rate_limited",
        "bad_identity",
        "bad_request",
        "bad_lifetime",
        "unknown_identity",
        "not_on_node",
        "authority_failed",
        "bad_certificate",
        "audit_failed",
    ];

    /// Returns what the caller is told.
    pub(super) fn status(&self) -> Status {
        let (code, retry) = match self {
            Self::Unauthenticated(_) => (Code::Unauthenticated, None),
            Self::TooOften(wait) => (Code::ResourceExhausted, Some(*wait)),
            Self::Identity(_) | Self::TrustDomain { .. } | Self::Csr(_) | Self::Lifetime { .. } => {
                (Code::InvalidArgument, None)
            }
            Self::Denied(Denied::Unknown(_)) | Self::ApiServer(_) => (Code::Unavailable, Some(SOON)),
            Self::Denied(Denied::Elsewhere { .. }) => (Code::PermissionDenied, None),
            Self::Authority(_) | Self::Rejected(_) | Self::Overlong(_) | Self::Audit(_) => {
                (Code::Unavailable, Some(LATER))
            }
        };
        let text = match self {
            // What is behind this server is no business of its callers.
            Self::Authority(_) | Self::Rejected(_) | Self::Overlong(_) => {
                "the authority behind this server did not sign: its audit says why".to_owned()
            }
            Self::ApiServer(_) => {
                "the API server did not say whose token this is: ask again; this server's audit says why"
                    .to_owned()
            }
            Self::Audit(_) => "this server cannot write its audit".to_owned(),
            other => other.to_string(),
        };
        let mut status = Status::new(code, text);
        if let Some(retry) = retry {
            let millis = i64::try_from(retry.as_millis()).unwrap_or(i64::MAX);
            status.metadata_mut().insert(PUSHBACK, MetadataValue::from(millis));
        }
        status
    }
}

fn whole(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

/// When to ask again, in milliseconds (gRPC's proposal A6, "pushback").
const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// A pod that was made just now is heard of within a second.
const SOON: Duration = Duration::from_secs(1);
/// An authority that does not sign is asked again at leisure.
const LATER: Duration = Duration::from_secs(5);
