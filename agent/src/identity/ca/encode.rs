//! Certificates and requests as text: PEM (RFC 7468) with Unix line ends.

use pem::{EncodeConfig, LineEnding, Pem};
use rustls::pki_types::CertificateDer;

/// Returns a certificate in PEM.
pub fn certificate_pem(certificate: &CertificateDer<'_>) -> String {
    encode("CERTIFICATE", certificate)
}

/// Returns a signing request in PEM.
pub(super) fn request_pem(der: &[u8]) -> String {
    encode("CERTIFICATE REQUEST", der)
}

fn encode(label: &str, der: &[u8]) -> String {
    let line_ends = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&Pem::new(label, der), line_ends)
}
