//! Why TLS with a peer failed, for a log line that an operator can act on.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use humantime::format_rfc3339_seconds as rfc3339;
use rustls::{
    AlertDescription, CertificateError, OtherError,
    pki_types::{CertificateDer, UnixTime},
};

use super::{
    key::WeakKey,
    spiffe::{IdentityRefusal, shorten},
    trust::Usage,
};
use crate::mesh::Reason;

/// Why TLS with a peer failed. Except for [`Self::Alert`], the fault was found on this side.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TlsError {
    /// The peer presented no certificate.
    #[error("the peer presented no certificate: it is no member of the mesh")]
    NoCertificate,
    /// A certificate of the peer's chain is expired.
    #[error(
        "a certificate of the peer's chain expired at {}: its agent no longer renews it, or a clock is wrong",
        rfc3339(*.not_after)
    )]
    Expired {
        /// When it expired.
        not_after: SystemTime,
    },
    /// A certificate of the peer's chain is not valid yet.
    #[error(
        "a certificate of the peer's chain is not valid before {}: the clock of one of the nodes is wrong",
        rfc3339(*.not_before)
    )]
    NotYetValid {
        /// When it becomes valid.
        not_before: SystemTime,
    },
    /// No trusted root vouches for the peer.
    #[error(
        "no root that is trusted here signed the peer's certificate: is root.pem the same on both nodes?"
    )]
    UnknownIssuer,
    /// The peer's own certificate is on a revocation list.
    #[error("the peer's certificate was revoked (--crl): its pod needs a new one, or is to be kept out")]
    Revoked,
    /// An authority of the peer's chain is on a revocation list.
    #[error(
        "the authority {subject} (serial {serial}) that vouches for the peer was revoked (--crl): the peer needs a \
         certificate of another"
    )]
    RevokedAuthority {
        /// The authority's name.
        subject: String,
        /// Its serial number, in hexadecimal.
        serial: String,
    },
    /// The certificate is not for this end of a connection.
    #[error("the peer's certificate is not for a {} (extendedKeyUsage lacks {})", .0.end(), .0.purpose())]
    Purpose(Usage),
    /// The certificate is an authority's.
    #[error("the peer presented an authority's certificate (basicConstraints CA:TRUE) as its own")]
    Authority,
    /// The key of a certificate of the chain is too weak.
    #[error("a certificate of the peer's chain has {0}")]
    WeakKey(#[from] WeakKey),
    /// There are more authorities between the peer and a root than are followed, or than one of them allows.
    #[error(
        "the peer's chain has more authorities in it than are allowed: at most 6, and what their pathlen says"
    )]
    ChainTooLong,
    /// The chain is refused for another reason, which webpki names.
    #[error("the peer's chain is refused: {0:?}")]
    Chain(webpki::Error),
    /// The peer presented a certificate and does not hold its key.
    #[error("the peer does not hold the private key of the certificate that it presented")]
    NotItsKey,
    /// The chain is good, but the peer is not who it should be, or does not say who it is.
    #[error("{0}")]
    Identity(Box<IdentityRefusal>),
    /// The certificate is refused for another reason, such as its extended key usage.
    #[error("the peer's certificate is refused: {}", describe_certificate_error(.0))]
    Certificate(CertificateError),
    /// The peer refused: the fault was found on its side, and its log says more.
    #[error("{}", describe_alert(*.0))]
    Alert(AlertDescription),
    /// The peer speaks no TLS, or none that this side accepts.
    #[error("TLS with the peer failed: {0}")]
    Protocol(rustls::Error),
    /// The connection broke.
    #[error("the connection broke in TLS: {text}")]
    Io {
        /// What kind of error it was.
        kind: io::ErrorKind,
        /// What the operating system says.
        text: String,
    },
}

impl TlsError {
    /// Recovers the reason from what a TLS stream returns, the tunnels' or one of `tokio_rustls`: it wraps rustls' error,
    /// which wraps ours.
    pub fn from_io(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(inner) => Self::from(inner),
            None => Self::Io { kind: error.kind(), text: error.to_string() },
        }
    }

    /// Returns the reason for the access log and the metrics.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Identity(refusal) => refusal.reason(),
            Self::NoCertificate
            | Self::Expired { .. }
            | Self::NotYetValid { .. }
            | Self::UnknownIssuer
            | Self::Revoked
            | Self::RevokedAuthority { .. }
            | Self::Purpose(_)
            | Self::Authority
            | Self::WeakKey(_)
            | Self::ChainTooLong
            | Self::Chain(_)
            | Self::NotItsKey
            | Self::Certificate(_) => Reason::BadCertificate,
            Self::Alert(alert) if concerns_certificate(*alert) => Reason::BadCertificate,
            Self::Alert(_) | Self::Protocol(_) | Self::Io { .. } => Reason::Tls,
        }
    }
}

impl TlsError {
    /// Returns what the metric of handshakes calls it: one of a closed set.
    pub fn cause(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::UnknownIssuer => "unknown_issuer",
            Self::Revoked | Self::RevokedAuthority { .. } => "revoked",
            Self::Purpose(_) => "purpose",
            Self::WeakKey(_) => "weak_key",
            Self::ChainTooLong => "chain_too_long",
            Self::Identity(refusal) => match refusal.reason() {
                Reason::IdentityMismatch => "identity_mismatch",
                _ => "no_identity",
            },
            Self::Authority | Self::Chain(_) | Self::NotItsKey | Self::Certificate(_) => "bad_certificate",
            Self::Alert(alert) if concerns_certificate(*alert) => "refused_by_peer",
            Self::Alert(_) => "alert",
            Self::Protocol(_) => "protocol",
            Self::Io { .. } => "broken",
        }
    }

    /// Says what webpki's error means.
    pub(super) fn of_chain(error: webpki::Error, usage: Usage) -> Self {
        use webpki::Error as E;
        match error {
            E::CertExpired { not_after, .. } => Self::Expired { not_after: system_time(not_after) },
            E::CertNotValidYet { not_before, .. } => {
                Self::NotYetValid { not_before: system_time(not_before) }
            }
            // A wrong signature is found where a root that we trust has the issuer's name but another key, as the
            // roots of two installations of one mesh have.
            E::UnknownIssuer | E::InvalidSignatureForPublicKey => Self::UnknownIssuer,
            E::CertRevoked => Self::Revoked,
            E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => Self::Purpose(usage),
            E::CaUsedAsEndEntity => Self::Authority,
            E::MaximumPathDepthExceeded | E::PathLenConstraintViolated => Self::ChainTooLong,
            E::BadDer | E::BadDerTime | E::TrailingData(_) => IdentityRefusal::Unreadable.into(),
            other => Self::Chain(other),
        }
    }

    /// Names an authority that was revoked.
    pub(super) fn revoked_authority(certificate: &CertificateDer<'_>) -> Self {
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
            return IdentityRefusal::Unreadable.into();
        };
        let subject = shorten(parsed.subject().to_string());
        Self::RevokedAuthority { subject, serial: shorten(parsed.raw_serial_as_string()) }
    }

    /// Wraps it for rustls, so that the peer gets the alert that RFC 8446 §6.2 has for it. What has none travels as it
    /// is; the alert is certificate_unknown then.
    pub(super) fn into_rustls(self, now: UnixTime) -> rustls::Error {
        let at = |time: SystemTime| {
            UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default())
        };
        rustls::Error::InvalidCertificate(match self {
            Self::Expired { not_after } => {
                CertificateError::ExpiredContext { time: now, not_after: at(not_after) }
            }
            Self::NotYetValid { not_before } => {
                CertificateError::NotValidYetContext { time: now, not_before: at(not_before) }
            }
            Self::UnknownIssuer => CertificateError::UnknownIssuer,
            Self::Revoked => CertificateError::Revoked,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        })
    }
}

impl From<IdentityRefusal> for TlsError {
    fn from(refusal: IdentityRefusal) -> Self {
        Self::Identity(Box::new(refusal))
    }
}

impl From<&rustls::Error> for TlsError {
    fn from(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::AlertReceived(alert) => Self::Alert(*alert),
            rustls::Error::InvalidCertificate(error) => Self::from(error),
            other => Self::Protocol(other.clone()),
        }
    }
}

impl From<&CertificateError> for TlsError {
    fn from(error: &CertificateError) -> Self {
        match error {
            CertificateError::ExpiredContext { not_after, .. } => {
                Self::Expired { not_after: system_time(*not_after) }
            }
            CertificateError::NotValidYetContext { not_before, .. } => {
                Self::NotYetValid { not_before: system_time(*not_before) }
            }
            CertificateError::UnknownIssuer => Self::UnknownIssuer,
            CertificateError::Revoked => Self::Revoked,
            // Of the handshake: the chain's signatures are checked here, not by rustls.
            CertificateError::BadSignature => Self::NotItsKey,
            CertificateError::Other(inner) => match inner.0.downcast_ref::<Self>() {
                Some(error) => error.clone(),
                None => Self::Certificate(error.clone()),
            },
            other => Self::Certificate(other.clone()),
        }
    }
}

fn system_time(time: UnixTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(time.as_secs())
}

/// Whether the peer says that it is our certificate that it does not accept (RFC 8446 §6.2). ztunnel answers a wrong
/// identity with certificate_unknown.
fn concerns_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as A;
    matches!(
        alert,
        A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
            | A::CertificateRequired
    )
}

/// rustls prints what it has no words for in Rust's debug form, and webpki's own errors twice wrapped.
fn describe_certificate_error(error: &CertificateError) -> String {
    shorten(match error {
        CertificateError::Other(inner) => inner.0.to_string(),
        other => other.to_string(),
    })
}

fn describe_alert(alert: AlertDescription) -> String {
    let name = alert_name(alert);
    if concerns_certificate(alert) {
        format!("the peer refused our certificate: {name}")
    } else {
        format!("the peer ended TLS: {name}")
    }
}

/// The name that RFC 8446 §6 gives an alert.
fn alert_name(alert: AlertDescription) -> String {
    use AlertDescription as A;
    let name = match alert {
        A::CloseNotify => "close_notify",
        A::UnexpectedMessage => "unexpected_message",
        A::BadRecordMac => "bad_record_mac",
        A::RecordOverflow => "record_overflow",
        A::HandshakeFailure => "handshake_failure",
        A::BadCertificate => "bad_certificate",
        A::UnsupportedCertificate => "unsupported_certificate",
        A::CertificateRevoked => "certificate_revoked",
        A::CertificateExpired => "certificate_expired",
        A::CertificateUnknown => "certificate_unknown",
        A::IllegalParameter => "illegal_parameter",
        A::UnknownCA => "unknown_ca",
        A::AccessDenied => "access_denied",
        A::DecodeError => "decode_error",
        A::DecryptError => "decrypt_error",
        A::ProtocolVersion => "protocol_version",
        A::InsufficientSecurity => "insufficient_security",
        A::InternalError => "internal_error",
        A::UserCanceled => "user_canceled",
        A::MissingExtension => "missing_extension",
        A::UnsupportedExtension => "unsupported_extension",
        A::UnrecognisedName => "unrecognized_name",
        A::CertificateRequired => "certificate_required",
        A::NoApplicationProtocol => "no_application_protocol",
        other => return format!("alert {}", u8::from(other)),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(error: &io::Error, text: &str, reason: Reason) {
        let error = TlsError::from_io(error);
        assert_eq!(error.to_string(), text);
        assert_eq!(error.reason(), reason);
    }

    #[test]
    fn alerts_say_who_refused_what() {
        let alert = |alert| io::Error::new(io::ErrorKind::InvalidData, rustls::Error::AlertReceived(alert));
        check(
            &alert(AlertDescription::CertificateExpired),
            "the peer refused our certificate: certificate_expired",
            Reason::BadCertificate,
        );
        check(
            &alert(AlertDescription::UnknownCA),
            "the peer refused our certificate: unknown_ca",
            Reason::BadCertificate,
        );
        check(
            &alert(AlertDescription::HandshakeFailure),
            "the peer ended TLS: handshake_failure",
            Reason::Tls,
        );
        check(&alert(AlertDescription::Unknown(200)), "the peer ended TLS: alert 200", Reason::Tls);
    }

    #[test]
    fn broken_connections_are_told_from_refusals() {
        check(
            &io::Error::new(io::ErrorKind::UnexpectedEof, "gone"),
            "the connection broke in TLS: gone",
            Reason::Tls,
        );
    }

    #[test]
    fn times_of_expiry_are_readable() {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
        let not_after = UnixTime::since_unix_epoch(Duration::from_secs(1_700_000_000));
        let error: rustls::Error = CertificateError::ExpiredContext { time, not_after }.into();
        let text = TlsError::from(&error).to_string();
        assert!(text.contains("expired at 2023-11-14T22:13:20Z"), "{text}");
    }
}
