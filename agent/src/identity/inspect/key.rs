//! A private key: that it is one and what it belongs to. Nothing of it is shown.

use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer},
};
use x509_parser::{prelude::FromDer as _, x509::SubjectPublicKeyInfo};

use super::{
    Section,
    certificate::{Certificate, explain_key},
};

/// Says what the key belongs to in the file.
pub(super) fn explain(
    label: &str,
    der: &[u8],
    certificates: &[Certificate<'_>],
    requests: &[(usize, &[u8])],
    section: &mut Section,
) {
    let key = match label {
        "EC PRIVATE KEY" => PrivateKeyDer::Sec1(PrivateSec1KeyDer::from(der)),
        "RSA PRIVATE KEY" => PrivateKeyDer::Pkcs1(PrivatePkcs1KeyDer::from(der)),
        _ => PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der)),
    };
    // rustls keeps nothing of a key that it does not return, and AWS-LC wipes what it frees.
    let Some(public) = any_supported_type(&key).ok().and_then(|key| key.public_key().map(|key| key.to_vec()))
    else {
        section.problem("it is not a key that TLS can use: ECDSA on P-256, P-384 or P-521, RSA or Ed25519");
        return;
    };
    if let Ok((_, public)) = SubjectPublicKeyInfo::from_der(&public) {
        explain_key(&public, section);
    }
    let certificates = certificates
        .iter()
        .filter(|certificate| certificate.parsed.public_key().raw == public)
        .map(|certificate| format!("certificate {}", certificate.at + 1));
    let requests =
        requests.iter().filter(|(_, key)| **key == public).map(|(at, _)| format!("request {}", at + 1));
    let owners: Vec<_> = certificates.chain(requests).collect();
    section.remark("it is secret: a workload's never leaves its agent, and an authority's belongs in a file that only its owner can read");
    if owners.is_empty() {
        section.fact("belongs to", "nothing in this file");
    } else {
        section.fact("belongs to", owners.join(", "));
    }
}
