//! The SPIFFE ID in a certificate, and whether it is the right one.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use x509_parser::{extensions::GeneralName, prelude::X509Certificate};

use crate::mesh::{Identity, IdentityError, Reason, TrustDomain};

/// Why a certificate whose chain is good is refused all the same: it does not say who the peer is, or says another.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum IdentityRefusal {
    /// A workload answers that is not the expected one.
    #[error("the peer is {presented}, expected was {expected}: does another pod have this address now?")]
    Mismatch {
        /// Who should have answered.
        expected: Identity,
        /// Who answered.
        presented: Identity,
    },
    /// The peer belongs to another trust domain.
    #[error("the peer is {presented}, which is outside our trust domain {ours}")]
    TrustDomain {
        /// The trust domain of our own certificate.
        ours: TrustDomain,
        /// Who the peer is.
        presented: Identity,
    },
    /// The certificate has no names.
    #[error("the peer's certificate has no SPIFFE ID: no subjectAltName at all")]
    NoSpiffeId,
    /// There is no URI among the certificate's names.
    #[error("the peer's certificate has no SPIFFE ID: none of its {0} subjectAltNames is a URI")]
    NoUri(usize),
    /// There are several URIs: the certificate says that it is several workloads at once.
    #[error("the peer's certificate has {0} URIs as subjectAltName; an X.509-SVID has exactly one")]
    SeveralUris(usize),
    /// The URI is no identity of a Kubernetes workload.
    #[error("the peer's certificate has a SPIFFE ID that is not a workload's: {0}")]
    Malformed(IdentityError),
    /// The certificate may sign others: it is an authority's, not a workload's.
    #[error("the peer presented an authority's certificate (key usage keyCertSign or cRLSign) as its own")]
    Authority,
    /// The certificate, or the extension with its names, cannot be parsed.
    #[error("the peer's certificate cannot be parsed")]
    Unreadable,
}

impl IdentityRefusal {
    /// Returns the reason for the access log and the metrics.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Mismatch { .. } | Self::TrustDomain { .. } => Reason::IdentityMismatch,
            Self::NoSpiffeId
            | Self::NoUri(_)
            | Self::SeveralUris(_)
            | Self::Malformed(_)
            | Self::Authority
            | Self::Unreadable => Reason::BadCertificate,
        }
    }
}

/// Returns the SPIFFE ID of a workload's certificate.
///
/// X.509-SVID §2 and §5.2: exactly one URI among the subjectAltNames, names of other types are of no concern, and the
/// key usage must not allow to sign certificates. (That it is no CA by its basicConstraints, webpki checks.)
///
/// # Errors
/// Where there is not exactly one, or it is not of the form that Kubernetes workloads have.
pub fn identity_of(leaf: &CertificateDer<'_>) -> Result<Identity, IdentityRefusal> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(leaf).map_err(|_| IdentityRefusal::Unreadable)?;
    let usage = certificate.key_usage().map_err(|_| IdentityRefusal::Unreadable)?;
    if usage.is_some_and(|usage| usage.value.key_cert_sign() || usage.value.crl_sign()) {
        return Err(IdentityRefusal::Authority);
    }
    single_uri(&certificate)?.parse().map_err(|error| IdentityRefusal::Malformed(shorten_id(error)))
}

/// Returns the one URI among a certificate's names.
pub(super) fn single_uri<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str, IdentityRefusal> {
    let names = certificate.subject_alternative_name().map_err(|_| IdentityRefusal::Unreadable)?;
    uri_among(names.map_or(&[][..], |names| &names.value.general_names))
}

/// Returns the one URI among names.
pub(super) fn uri_among<'a>(names: &[GeneralName<'a>]) -> Result<&'a str, IdentityRefusal> {
    // A name that does not parse could be a second URI in the eyes of another implementation.
    if names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
        return Err(IdentityRefusal::Unreadable);
    }
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.count()) {
        (None, _) if names.is_empty() => Err(IdentityRefusal::NoSpiffeId),
        (None, _) => Err(IdentityRefusal::NoUri(names.len())),
        (Some(uri), 0) => Ok(uri),
        (Some(_), more) => Err(IdentityRefusal::SeveralUris(more + 1)),
    }
}

/// Which peers a handshake accepts.
#[derive(Clone, Debug)]
pub(super) enum Expected {
    /// One workload: what a client expects of the server.
    Workload {
        /// The trust domain of our own certificate.
        ours: TrustDomain,
        /// The workload.
        identity: Arc<Identity>,
    },
    /// Any workload of our trust domain: what a server expects of its clients, before any policy.
    TrustDomain(TrustDomain),
}

impl Expected {
    /// Checks who presented `leaf`.
    ///
    /// # Errors
    /// Where that is not who is expected.
    pub(super) fn check(&self, leaf: &CertificateDer<'_>) -> Result<Identity, IdentityRefusal> {
        let presented = identity_of(leaf)?;
        let (Self::Workload { ours, .. } | Self::TrustDomain(ours)) = self;
        if presented.trust_domain() != ours {
            return Err(IdentityRefusal::TrustDomain { ours: ours.clone(), presented });
        }
        if let Self::Workload { identity: expected, .. } = self
            && presented != **expected
        {
            return Err(IdentityRefusal::Mismatch { expected: (**expected).clone(), presented });
        }
        Ok(presented)
    }
}

fn shorten_id(error: IdentityError) -> IdentityError {
    match error {
        IdentityError::TrustDomain(text) => IdentityError::TrustDomain(shorten(text)),
        IdentityError::Namespace(text) => IdentityError::Namespace(shorten(text)),
        IdentityError::ServiceAccount(text) => IdentityError::ServiceAccount(shorten(text)),
        IdentityError::Form(text) => IdentityError::Form(shorten(text)),
    }
}

/// Bounds what a peer can put into our log: its certificates may have 64 KiB.
pub(super) fn shorten(text: String) -> String {
    match text.char_indices().nth(MAX_LOGGED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Characters of a peer's text that are shown: a good deal more than a SPIFFE ID has in practice.
const MAX_LOGGED: usize = 200;
