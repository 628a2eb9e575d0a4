//! Why TLS with a peer failed, for a log line that an operator can act on.

use std::{
    io,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use humantime::format_rfc3339_seconds as rfc3339;
use rustls::{AlertDescription, CertificateError, pki_types::UnixTime};

use super::spiffe::{IdentityRefusal, shorten};
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
    /// Recovers the reason from what `tokio_rustls` returns: it wraps rustls' error, which wraps ours.
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
            | Self::Certificate(_) => Reason::BadCertificate,
            Self::Alert(alert) if concerns_certificate(*alert) => Reason::BadCertificate,
            Self::Alert(_) | Self::Protocol(_) | Self::Io { .. } => Reason::Tls,
        }
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
            // webpki answers with a bad signature where a root that we trust has the issuer's name but another key,
            // as the roots of two installations of one mesh have.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownIssuer,
            CertificateError::Other(inner) => match inner.0.downcast_ref::<IdentityRefusal>() {
                Some(refusal) => refusal.clone().into(),
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
