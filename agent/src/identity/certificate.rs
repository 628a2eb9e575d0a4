//! What a certificate says of itself, for people and for metrics: whose it is, who signed it, and until when it is good.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::{
    extensions::ParsedExtension, parse_x509_certificate, prelude::X509Certificate, x509::X509Name,
};

use super::{at::At, fingerprint::Fingerprint, spiffe::shorten};

/// What a certificate says of itself.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateFacts {
    /// The name that it certifies; empty for a workload's, which has a SPIFFE ID instead.
    pub subject: String,
    /// The name of whoever signed it.
    pub issuer: String,
    /// The serial number, in hexadecimal.
    pub serial: String,
    /// SHA-256 of all of it, in hexadecimal: what `openssl x509 -fingerprint -sha256` prints, without the colons.
    pub fingerprint: String,
    /// When it becomes valid; whole seconds.
    pub not_before: At,
    /// When it expires; whole seconds.
    pub not_after: At,
}

impl CertificateFacts {
    /// Reads a certificate; none where it cannot be parsed.
    pub fn read(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = parse_x509_certificate(der).ok()?;
        Some(Self::of(der, &certificate))
    }

    /// Takes the facts from a certificate that is parsed already.
    pub(super) fn of(der: &[u8], certificate: &X509Certificate<'_>) -> Self {
        let validity = certificate.validity();
        Self {
            subject: name(certificate.subject()),
            issuer: name(certificate.issuer()),
            serial: certificate.raw_serial_as_string(),
            fingerprint: Fingerprint::of(der).to_string(),
            not_before: At(time(validity.not_before.timestamp())),
            not_after: At(time(validity.not_after.timestamp())),
        }
    }

    /// Returns the beginning of the fingerprint, which tells the few certificates of a mesh's authorities apart.
    pub fn short_fingerprint(&self) -> &str {
        self.fingerprint.get(..SHORT).unwrap_or(&self.fingerprint)
    }
}

/// Whether a certificate vouches for itself. One that has the same name on both sides, and another's key identifier as
/// its issuer's, is a new root key that the old one vouches for, and belongs into chains.
pub(super) fn is_root(certificate: &CertificateDer<'_>) -> bool {
    parse_x509_certificate(certificate).is_ok_and(|(_, parsed)| {
        parsed.subject().as_raw() == parsed.issuer().as_raw()
            && (issuer_key(&parsed).is_none() || issuer_key(&parsed) == own_key(&parsed))
    })
}

fn own_key<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
        _ => None,
    })
}

fn issuer_key<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0),
        _ => None,
    })
}

/// 64 bits, so that nobody meets two alike who does not search for them.
const SHORT: usize = 16;

/// A distinguished name, bounded: it may come from a peer or an authority that is not ours.
pub(super) fn name(name: &X509Name<'_>) -> String {
    shorten(name.to_string())
}

/// A time of a certificate, whose fields may be negative (before 1970).
pub(super) fn time(timestamp: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(timestamp).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::TestRoot;

    #[test]
    fn says_who_signed_whom_and_until_when() {
        let root = TestRoot::new("test root");
        let facts = CertificateFacts::read(&root.certificate).unwrap();
        assert_eq!((facts.subject.as_str(), facts.issuer.as_str()), ("CN=test root", "CN=test root"));
        assert_eq!((facts.fingerprint.len(), facts.short_fingerprint().len()), (64, 16));
        assert!(facts.fingerprint.starts_with(facts.short_fingerprint()));
        assert!(facts.not_before.0 < facts.not_after.0);
        assert_eq!(CertificateFacts::read(&CertificateDer::from(b"nothing".to_vec())), None);
    }
}
