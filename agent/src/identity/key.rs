//! Keys that are too weak to stand for anybody.

use rustls::pki_types::CertificateDer;
use x509_parser::public_key::PublicKey;

use super::spiffe::IdentityRefusal;

/// A key that anybody with enough machines can find the private half of.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{kind} of {bits} bits: RSA takes at least {MIN_RSA}, elliptic curves {MIN_CURVE} (P-256 is usual)")]
pub struct WeakKey {
    kind: &'static str,
    bits: usize,
}

impl WeakKey {
    /// Looks at the key of a certificate. Kinds of keys that TLS does not know fail later, where they are used.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Result<(), super::TlsError> {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|_| super::TlsError::from(IdentityRefusal::Unreadable))?;
        match certificate.public_key().parsed() {
            Ok(PublicKey::RSA(key)) if key.key_size() < MIN_RSA => {
                Err(Self { kind: "an RSA key", bits: key.key_size() }.into())
            }
            Ok(PublicKey::EC(point)) if point.key_size() < MIN_CURVE => {
                Err(Self { kind: "a key on a curve", bits: point.key_size() }.into())
            }
            _ => Ok(()),
        }
    }
}

/// NIST SP 800-131A: nothing below has been acceptable since 2014.
const MIN_RSA: usize = 2048;
/// As much as RSA of 3072 bits.
const MIN_CURVE: usize = 256;
