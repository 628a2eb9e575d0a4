//! The files of an authority in a directory: their names, and what they hold.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{CertificateSigningRequestParams, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use rustls::{
    crypto::aws_lc_rs::sign::any_ecdsa_type,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject as _},
    sign::CertifiedKey,
};
use tokio::sync::watch;
use x509_parser::prelude::X509Certificate;
use zeroize::Zeroizing;

use super::params;
use crate::{
    identity::{CaError, Csr, Issued, Svid, certificate::time, spiffe::single_uri, trust::TrustBundle},
    mesh::{Identity, TrustDomain},
};

/// What signs the workloads' certificates.
pub(super) struct Intermediate {
    /// Its certificate, then those that vouch for it, without the root.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// Its name and key.
    issuer: Issuer<'static, WipedKey>,
    /// The trust domain that it names.
    pub(super) trust_domain: TrustDomain,
    /// When it expires.
    pub(super) not_after: SystemTime,
}

impl Intermediate {
    /// Reads certificate and key from `dir`. The key may still be in the file that is about to take the place of
    /// `intermediate.key`: the certificate is replaced first.
    pub(super) fn read(dir: &Path) -> Result<Self, CaError> {
        let certificate = &dir.join(INTERMEDIATE);
        let chain = read_chain(certificate)?;
        let current = Self::new(certificate, chain.clone(), &dir.join(INTERMEDIATE_KEY));
        match current {
            Err(error) => Self::new(certificate, chain, &dir.join(NEXT_KEY)).map_err(|_| error),
            found => found,
        }
    }

    /// Makes it of the certificates that `path` holds and of the key in the file `key`.
    pub(super) fn new(path: &Path, chain: Vec<CertificateDer<'static>>, key: &Path) -> Result<Self, CaError> {
        Self::named(path, chain, (key, read_key(key)?), |trust_domain| {
            trust_domain.ok_or_else(|| {
                content(path, "the certificate does not name a trust domain as its one URI (spiffe://…)")
            })
        })
    }

    /// As [`Self::new`], where `trust_domain` says what follows from what the certificate names.
    pub(super) fn named(
        path: &Path,
        chain: Vec<CertificateDer<'static>>,
        key: (&Path, WipedKey),
        trust_domain: impl FnOnce(Option<TrustDomain>) -> Result<TrustDomain, CaError>,
    ) -> Result<Self, CaError> {
        let first = chain.first().ok_or_else(|| content(path, "there is no certificate in it"))?;
        let certificate = parse(path, first)?;
        check_signs_certificates(path, &certificate)?;
        let trust_domain = trust_domain(trust_domain_of(&certificate))?;
        let not_after = not_after(&certificate);
        let (key_path, key) = key;
        if key.0.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(content(key_path, "not an ECDSA key on the curve P-256"));
        }
        if key.subject_public_key_info() != certificate.public_key().raw {
            let problem = format!("this is not the key of the certificate in {}", path.display());
            return Err(content(key_path, &problem));
        }
        let issuer = Issuer::from_ca_cert_der(first, key)?;
        Ok(Self { issuer, trust_domain, not_after, chain })
    }

    /// Signs a workload's certificate that is valid until `until`, and never longer than the intermediate itself.
    pub(super) fn issue(&self, csr: &Csr, identity: &Identity, until: SystemTime) -> Result<Issued, CaError> {
        if *identity.trust_domain() != self.trust_domain {
            return Err(CaError::TrustDomain { ours: self.trust_domain.clone(), asked: identity.clone() });
        }
        if self.not_after <= SystemTime::now() {
            return Err(CaError::Expired(self.not_after));
        }
        // Only the key is taken from the request: what is certified is decided here.
        let request = CertificateSigningRequestParams::from_der(csr.der())?;
        let leaf = params::leaf(identity, until.min(self.not_after))?
            .signed_by(&request.public_key, &self.issuer)?;
        Ok(Issued { chain: [leaf.into()].into_iter().chain(self.chain.iter().cloned()).collect() })
    }

    /// Makes a key and signs a certificate for a server of these names that is valid until `until`, and never longer
    /// than the intermediate itself.
    pub(super) fn certify_server(
        &self,
        names: &[ServerName<'_>],
        until: SystemTime,
    ) -> Result<CertifiedKey, CaError> {
        if self.not_after <= SystemTime::now() {
            return Err(CaError::Expired(self.not_after));
        }
        let key = Zeroizing::new(KeyPair::generate()?);
        let leaf = params::server(names, until.min(self.not_after))?.signed_by(&*key, &self.issuer)?;
        let pkcs8 = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der()));
        let signer = any_ecdsa_type(&pkcs8).expect("rcgen makes keys that rustls takes");
        let chain = [leaf.into()].into_iter().chain(self.chain.iter().cloned()).collect();
        Ok(CertifiedKey::new(chain, signer))
    }

    /// Signs a certificate for nobody to see that it works under `bundle`. `dir` is named where it does not.
    pub(super) fn try_out(&self, dir: &Path, bundle: &Arc<TrustBundle>) -> Result<(), CaError> {
        let nobody = Identity::new(self.trust_domain.clone(), "culvert-trial", "nobody")
            .expect("the names are those of Kubernetes objects");
        let key = Zeroizing::new(KeyPair::generate()?);
        let issued = self.issue(&Csr::new(&nobody, &key)?, &nobody, SystemTime::now() + TRIAL)?;
        Svid::new(&nobody, &key, issued, watch::channel(Arc::clone(bundle)).1)
            .map(drop)
            .map_err(|source| CaError::Unsound { path: dir.to_owned(), source })
    }
}

/// Reads the roots from `dir`.
pub(super) fn read_roots(dir: &Path) -> Result<TrustBundle, CaError> {
    read_bundle(&dir.join(ROOTS))
}

/// Reads the roots from a file.
pub(super) fn read_bundle(path: &Path) -> Result<TrustBundle, CaError> {
    bundle_of(path, &read(path)?)
}

/// Takes the roots that `path` holds.
pub(super) fn bundle_of(path: &Path, pem: &[u8]) -> Result<TrustBundle, CaError> {
    TrustBundle::from_pem(pem).map_err(|source| CaError::Roots { path: path.to_owned(), source })
}

/// Reads all certificates of a file.
pub(super) fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, CaError> {
    chain_of(path, &read(path)?)
}

/// Takes all certificates that `path` holds.
pub(super) fn chain_of(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CaError> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| content(path, &error))
}

/// A key pair whose PKCS#8 form is wiped when it goes; `rcgen` can wipe it, but does not by itself.
pub(super) struct WipedKey(Zeroizing<KeyPair>);

impl WipedKey {
    /// Makes a new one, on the curve P-256.
    pub(super) fn generate() -> Result<Self, rcgen::Error> {
        Ok(Self(Zeroizing::new(KeyPair::generate()?)))
    }

    /// Returns it as it is written into a file.
    pub(super) fn pem(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialize_pem().into_bytes())
    }
}

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

/// Returns the files of a directory whose names end in `.pem`; none where there is no such directory.
pub(super) fn pem_files(dir: &Path) -> Result<Vec<PathBuf>, CaError> {
    let failed = |source| CaError::Read { path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "pem") {
            found.push(path);
        }
    }
    Ok(found)
}

/// Takes a certificate apart that `path` holds.
pub(super) fn parse<'a>(
    path: &Path,
    certificate: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, CaError> {
    let (_, certificate) =
        x509_parser::parse_x509_certificate(certificate).map_err(|error| content(path, &error))?;
    Ok(certificate)
}

/// Refuses a certificate that may not sign others.
pub(super) fn check_signs_certificates(
    path: &Path,
    certificate: &X509Certificate<'_>,
) -> Result<(), CaError> {
    if !certificate.is_ca() {
        return Err(content(path, "the first certificate is not an authority's (basicConstraints)"));
    }
    match certificate.key_usage() {
        Ok(Some(usage)) if !usage.value.key_cert_sign() => {
            Err(content(path, "the first certificate may not sign certificates (keyUsage lacks keyCertSign)"))
        }
        _ => Ok(()),
    }
}

/// X.509-SVID §3.2: a signing certificate's SPIFFE ID is the trust domain, without a path.
pub(super) fn trust_domain_of(certificate: &X509Certificate<'_>) -> Option<TrustDomain> {
    single_uri(certificate).ok()?.strip_prefix("spiffe://")?.parse().ok()
}

/// When a certificate becomes valid.
pub(super) fn not_before(certificate: &X509Certificate<'_>) -> SystemTime {
    time(certificate.validity().not_before.timestamp())
}

/// When a certificate expires.
pub(super) fn not_after(certificate: &X509Certificate<'_>) -> SystemTime {
    time(certificate.validity().not_after.timestamp())
}

/// Reads a private key, and says so where others than its owner can read it too.
pub(super) fn read_key(path: &Path) -> Result<WipedKey, CaError> {
    let key = key_of(path, &read(path)?)?;
    if others_can_read(path).map_err(|source| CaError::Read { path: path.to_owned(), source })? {
        tracing::warn!(path = %path.display(), "others than its owner can read this private key: chmod 0600 it");
    }
    Ok(key)
}

/// Takes the private key that `path` holds.
pub(super) fn key_of(path: &Path, pem: &[u8]) -> Result<WipedKey, CaError> {
    let text = str::from_utf8(pem).map_err(|error| content(path, &error))?;
    let key = KeyPair::from_pem(text).map_err(|error| content(path, &error))?;
    Ok(WipedKey(Zeroizing::new(key)))
}

fn others_can_read(path: &Path) -> io::Result<bool> {
    Ok(fs::metadata(path)?.mode() & 0o077 != 0)
}

/// Reads a file whose content is wiped when it goes.
pub(super) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, CaError> {
    fs::read(path).map(Zeroizing::new).map_err(|source| CaError::Read { path: path.to_owned(), source })
}

pub(super) fn content(path: &Path, problem: &(impl ToString + ?Sized)) -> CaError {
    CaError::Content { path: path.to_owned(), problem: problem.to_string() }
}

/// The roots that the mesh trusts.
pub(super) const ROOTS: &str = "root.pem";
/// The root's key, where it is kept with the rest.
pub(super) const ROOT_KEY: &str = "root.key";
/// What signs workloads, then what vouches for it.
pub(super) const INTERMEDIATE: &str = "intermediate.pem";
/// Its key.
pub(super) const INTERMEDIATE_KEY: &str = "intermediate.key";
/// The key of an intermediate that is not in place yet.
pub(super) const NEXT_KEY: &str = "intermediate.key.next";
/// The request for that intermediate.
pub(super) const REQUEST: &str = "intermediate.csr";
/// The certificates of intermediates that were replaced.
pub(super) const RETIRED: &str = "retired";
/// How long each issuer's certificates are needed.
pub(super) const SIGNED: &str = "signed";

/// The lifetime of the certificate that is signed for nobody.
const TRIAL: Duration = Duration::from_secs(60 * 60);
