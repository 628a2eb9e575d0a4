//! The files of an authority in a directory: their names, and what they hold.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::prelude::X509Certificate;
use zeroize::Zeroizing;

use super::CaError;
use crate::{
    identity::{spiffe::single_uri, trust::TrustBundle},
    mesh::TrustDomain,
};

/// What signs the workloads' certificates.
pub(super) struct Intermediate {
    /// Its certificate, then those that vouch for it, without the root.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// Its name and key.
    pub(super) issuer: Issuer<'static, WipedKey>,
    /// The trust domain that it names.
    pub(super) trust_domain: TrustDomain,
    /// When it expires.
    pub(super) not_after: SystemTime,
}

impl Intermediate {
    /// Reads certificate and key from `dir`.
    pub(super) fn read(dir: &Path) -> Result<Self, CaError> {
        let path = &dir.join(INTERMEDIATE);
        let pem = read(path)?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<_, _>>()
            .map_err(|error| content(path, &error))?;
        let first = chain.first().ok_or_else(|| content(path, "there is no certificate in it"))?;
        let (_, certificate) =
            x509_parser::parse_x509_certificate(first).map_err(|error| content(path, &error))?;
        if !certificate.is_ca() {
            return Err(content(path, "the first certificate is not an authority's (basicConstraints)"));
        }
        let trust_domain = trust_domain_of(&certificate).ok_or_else(|| {
            content(path, "the certificate does not name a trust domain as its one URI (spiffe://…)")
        })?;
        let expiry = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        let not_after = UNIX_EPOCH + Duration::from_secs(expiry);

        let path = &dir.join(INTERMEDIATE_KEY);
        let key = read_key(path)?;
        if key.subject_public_key_info() != certificate.public_key().raw {
            return Err(content(path, "this is not the key of the certificate in intermediate.pem"));
        }
        let issuer = Issuer::from_ca_cert_der(first, key)?;
        Ok(Self { issuer, trust_domain, not_after, chain })
    }
}

/// Reads the roots from `dir`.
pub(super) fn read_roots(dir: &Path) -> Result<TrustBundle, CaError> {
    let path = dir.join(ROOTS);
    TrustBundle::from_pem(&read(&path)?).map_err(|source| CaError::Roots { path, source })
}

/// A key pair whose PKCS#8 form is wiped when it goes; `rcgen` can wipe it, but does not by itself.
pub(super) struct WipedKey(pub(super) Zeroizing<KeyPair>);

impl rcgen::PublicKeyData for WipedKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl rcgen::SigningKey for WipedKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

/// X.509-SVID §3.2: a signing certificate's SPIFFE ID is the trust domain, without a path.
fn trust_domain_of(certificate: &X509Certificate<'_>) -> Option<TrustDomain> {
    single_uri(certificate).ok()?.strip_prefix("spiffe://")?.parse().ok()
}

/// Reads a private key, and says so where others than its owner can read it too.
fn read_key(path: &Path) -> Result<WipedKey, CaError> {
    let pem = read(path)?;
    let text = str::from_utf8(&pem).map_err(|error| content(path, &error))?;
    let key = KeyPair::from_pem(text).map_err(|error| content(path, &error))?;
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(content(path, "not an ECDSA key on the curve P-256"));
    }
    if others_can_read(path).map_err(|source| CaError::Read { path: path.to_owned(), source })? {
        tracing::warn!(path = %path.display(), "others than its owner can read this private key: chmod 0600 it");
    }
    Ok(WipedKey(Zeroizing::new(key)))
}

fn others_can_read(path: &Path) -> io::Result<bool> {
    Ok(fs::metadata(path)?.mode() & 0o077 != 0)
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, CaError> {
    fs::read(path).map(Zeroizing::new).map_err(|source| CaError::Read { path: path.to_owned(), source })
}

fn content(path: &Path, problem: &(impl ToString + ?Sized)) -> CaError {
    CaError::Content { path: path.to_owned(), problem: problem.to_string() }
}

pub(super) const ROOTS: &str = "root.pem";
pub(super) const ROOT_KEY: &str = "root.key";
pub(super) const INTERMEDIATE: &str = "intermediate.pem";
pub(super) const INTERMEDIATE_KEY: &str = "intermediate.key";
