//! The authority in a directory: an intermediate that this process signs with, under a root whose key may be elsewhere.
//!
//! | file | what | needed by the agent |
//! | --- | --- | --- |
//! | `root.pem` | the roots that the mesh trusts | yes |
//! | `root.key` | the root's key; signs intermediates only | no: keep it offline |
//! | `intermediate.pem` | what signs workloads; names the trust domain | yes |
//! | `intermediate.key` | its key | yes |

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use time::OffsetDateTime;
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::{CaError, CertificateAuthority, Csr, InitError, Issued, Lifetimes, Signing, init};
use crate::{
    identity::{
        spiffe::single_uri,
        svid::Svid,
        trust::{Trust, TrustBundle},
    },
    mesh::{Identity, TrustDomain},
};

/// A certificate authority in a directory.
pub struct LocalCa {
    trust_domain: TrustDomain,
    chain: Vec<CertificateDer<'static>>,
    issuer: Issuer<'static, WipedKey>,
    not_after: SystemTime,
    lifetime: Duration,
    trust: watch::Sender<Arc<TrustBundle>>,
}

impl LocalCa {
    /// How long a workload's certificate is valid: 24 hours, as in Istio and Linkerd. Renewed at half of it, a node
    /// lives through twelve hours without its authority.
    pub const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

    /// Makes a new authority in `dir`, which must be absent or empty: a root, and an intermediate that it signs.
    ///
    /// The directory appears complete or not at all. Blocking.
    ///
    /// # Errors
    /// Where `dir` has something in it, cannot be written, or a lifetime is not possible.
    pub fn init(dir: &Path, trust_domain: &TrustDomain, lifetimes: Lifetimes) -> Result<(), InitError> {
        init::init(dir, trust_domain, lifetimes)
    }

    /// Opens the authority in `dir` and signs a certificate for nobody to see that its files work. Blocking.
    ///
    /// # Errors
    /// Where a file is missing, unreadable or expired, or they do not belong together.
    pub fn open(dir: &Path) -> Result<Self, CaError> {
        let roots_file = dir.join(ROOTS);
        let roots = TrustBundle::from_pem(&read(&roots_file)?)
            .map_err(|source| CaError::Roots { path: roots_file, source })?;
        let (chain, trust_domain, not_after) = read_intermediate(&dir.join(INTERMEDIATE))?;
        let key = read_key(&dir.join(INTERMEDIATE_KEY))?;
        let issuer = Issuer::from_ca_cert_der(&chain[0], key)?;
        let (trust, _) = watch::channel(Arc::new(roots));
        let ca = Self { trust_domain, chain, issuer, not_after, lifetime: Self::LIFETIME, trust };
        ca.sign_for_nobody(dir)?;
        Ok(ca)
    }

    /// Returns the authority with another lifetime of the certificates that it signs; whole seconds.
    #[must_use]
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// Returns the trust domain that it signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Returns when its own certificate expires. No certificate that it signs outlives it.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    fn issue(&self, csr: &Csr, identity: &Identity) -> Result<Issued, CaError> {
        if *identity.trust_domain() != self.trust_domain {
            return Err(CaError::TrustDomain { ours: self.trust_domain.clone(), asked: identity.clone() });
        }
        let now = SystemTime::now();
        if self.not_after <= now {
            return Err(CaError::Expired(self.not_after));
        }
        // Only the key is taken from the request: what is certified is decided here.
        let request = CertificateSigningRequestParams::from_der(csr.der())?;
        let until = now.checked_add(self.lifetime).map_or(self.not_after, |until| until.min(self.not_after));
        let leaf = leaf_params(identity, now, until)?.signed_by(&request.public_key, &self.issuer)?;
        let mut chain = vec![leaf.into()];
        chain.extend(self.chain.iter().cloned());
        Ok(Issued { chain })
    }

    fn sign_for_nobody(&self, dir: &Path) -> Result<(), CaError> {
        let nobody = Identity::new(self.trust_domain.clone(), "culvert-trial", "nobody")
            .expect("the names are those of Kubernetes objects");
        let key = Zeroizing::new(KeyPair::generate()?);
        let issued = self.issue(&Csr::new(&nobody, &key)?, &nobody)?;
        Svid::new(&nobody, &key, issued, self.trust())
            .map(drop)
            .map_err(|source| CaError::Unsound { path: dir.to_owned(), source })
    }
}

impl CertificateAuthority for LocalCa {
    fn sign<'a>(&'a self, csr: &'a Csr, identity: &'a Identity) -> Signing<'a> {
        // Some 100 µs of arithmetic: not worth another thread.
        Box::pin(std::future::ready(self.issue(csr, identity)))
    }

    fn trust(&self) -> Trust {
        self.trust.subscribe()
    }
}

impl std::fmt::Debug for LocalCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalCa")
            .field("trust_domain", &self.trust_domain)
            .field("not_after", &self.not_after)
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

/// A workload's certificate: an X.509-SVID (§4 and §5 of its standard) that is good for both ends of a connection.
fn leaf_params(
    identity: &Identity,
    now: SystemTime,
    until: SystemTime,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(random_serial());
    params.not_before = OffsetDateTime::from(now - BACKDATE);
    params.not_after = OffsetDateTime::from(until);
    Ok(params)
}

/// 127 random bits: positive, as RFC 5280 §4.1.2.2 demands, and unguessable.
pub(super) fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = bytes[0] & 0x7f | 0x40; // never zero, never shorter
    SerialNumber::from_slice(&bytes)
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

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, CaError> {
    fs::read(path).map(Zeroizing::new).map_err(|source| CaError::Read { path: path.to_owned(), source })
}

fn content(path: &Path, problem: &(impl ToString + ?Sized)) -> CaError {
    CaError::Content { path: path.to_owned(), problem: problem.to_string() }
}

/// Reads the certificate that signs, with those that vouch for it after it, and what it says of itself.
fn read_intermediate(
    path: &Path,
) -> Result<(Vec<CertificateDer<'static>>, TrustDomain, SystemTime), CaError> {
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
    // X.509-SVID §3.2: a signing certificate's SPIFFE ID is the trust domain, without a path.
    let domain = single_uri(&certificate)
        .ok()
        .and_then(|uri| uri.strip_prefix("spiffe://"))
        .and_then(|name| name.parse().ok())
        .ok_or_else(|| {
            content(path, "the certificate does not name a trust domain as its one URI (spiffe://…)")
        })?;
    let not_after = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    Ok((chain.clone(), domain, UNIX_EPOCH + Duration::from_secs(not_after)))
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

/// How far back certificates are dated, for peers whose clocks run behind ours. Kubernetes' own signer takes as much
/// (`pkg/controller/certificates/signer/signer.go`).
pub(super) const BACKDATE: Duration = Duration::from_secs(5 * 60);

pub(super) const ROOTS: &str = "root.pem";
pub(super) const ROOT_KEY: &str = "root.key";
pub(super) const INTERMEDIATE: &str = "intermediate.pem";
pub(super) const INTERMEDIATE_KEY: &str = "intermediate.key";
