//! The authority in a directory: an intermediate that this process signs with, under a root whose key may be elsewhere.
//!
//! | file | what | needed by the agent |
//! | --- | --- | --- |
//! | `root.pem` | the roots that the mesh trusts | yes |
//! | `root.key` | the root's key; signs intermediates only | no: keep it offline |
//! | `intermediate.pem` | what signs workloads; names the trust domain | yes |
//! | `intermediate.key` | its key | yes |

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::{
    crypto::aws_lc_rs::sign::any_ecdsa_type,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    sign::CertifiedKey,
};
use time::OffsetDateTime;
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::{
    CaError, CertificateAuthority, Csr, InitError, Issued, Lifetimes, Signing,
    files::{Intermediate, read_roots},
    init,
};
use crate::{
    identity::{
        svid::Svid,
        trust::{Trust, TrustBundle},
    },
    mesh::{Identity, TrustDomain},
};

/// A certificate authority in a directory.
pub struct LocalCa {
    dir: PathBuf,
    intermediate: Intermediate,
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
        let (trust, _) = watch::channel(Arc::new(read_roots(dir)?));
        let intermediate = Intermediate::read(dir)?;
        let ca = Self { dir: dir.to_owned(), intermediate, lifetime: Self::LIFETIME, trust };
        ca.sign_for_nobody(dir)?;
        if ca.not_after() < SystemTime::now() + EXPIRY_WARNING {
            let not_after = humantime::format_rfc3339_seconds(ca.not_after());
            tracing::warn!(dir = %dir.display(), %not_after, "the intermediate certificate expires soon: replace it");
        }
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
        &self.intermediate.trust_domain
    }

    /// Returns when its own certificate expires. No certificate that it signs outlives it.
    pub fn not_after(&self) -> SystemTime {
        self.intermediate.not_after
    }

    /// Makes a key and signs a certificate for a server of these names, for TLS as on the web: no member of the mesh
    /// takes it for one of its own, since no SPIFFE ID is in it.
    ///
    /// # Errors
    /// Where the authority's own certificate has expired, or the cryptographic library fails.
    pub fn certify_server(
        &self,
        names: &[ServerName<'_>],
        lifetime: Duration,
    ) -> Result<CertifiedKey, CaError> {
        let Intermediate { chain, issuer, not_after, .. } = &self.intermediate;
        let now = SystemTime::now();
        if *not_after <= now {
            return Err(CaError::Expired(*not_after));
        }
        let key = Zeroizing::new(KeyPair::generate()?);
        let until = now.checked_add(lifetime).map_or(*not_after, |until| until.min(*not_after));
        let leaf = server_params(names, now, until)?.signed_by(&*key, issuer)?;
        let pkcs8 = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der()));
        let signer = any_ecdsa_type(&pkcs8).expect("rcgen makes keys that rustls takes");
        let chain = [leaf.into()].into_iter().chain(chain.iter().cloned()).collect();
        Ok(CertifiedKey::new(chain, signer))
    }

    fn issue(&self, csr: &Csr, identity: &Identity) -> Result<Issued, CaError> {
        let Intermediate { chain, issuer, trust_domain, not_after } = &self.intermediate;
        if identity.trust_domain() != trust_domain {
            return Err(CaError::TrustDomain { ours: trust_domain.clone(), asked: identity.clone() });
        }
        let now = SystemTime::now();
        if *not_after <= now {
            return Err(CaError::Expired(*not_after));
        }
        // Only the key is taken from the request: what is certified is decided here.
        let request = CertificateSigningRequestParams::from_der(csr.der())?;
        let lifetime = csr.lifetime().map_or(self.lifetime, |wanted| wanted.min(self.lifetime));
        let until = now.checked_add(lifetime).map_or(*not_after, |until| until.min(*not_after));
        let leaf = leaf_params(identity, now, until)?.signed_by(&request.public_key, issuer)?;
        Ok(Issued { chain: [leaf.into()].into_iter().chain(chain.iter().cloned()).collect() })
    }

    fn sign_for_nobody(&self, dir: &Path) -> Result<(), CaError> {
        let nobody = Identity::new(self.trust_domain().clone(), "culvert-trial", "nobody")
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

    fn source(&self) -> String {
        format!("local {}", self.dir.display())
    }

    fn trust(&self) -> Trust {
        self.trust.subscribe()
    }
}

impl std::fmt::Debug for LocalCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalCa")
            .field("trust_domain", self.trust_domain())
            .field("not_after", &self.not_after())
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

/// A server's certificate, by the names that clients know it by.
fn server_params(
    names: &[ServerName<'_>],
    now: SystemTime,
    until: SystemTime,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let name = |name: &ServerName<'_>| match name {
        ServerName::IpAddress(address) => Ok(SanType::IpAddress((*address).into())),
        name => Ok(SanType::DnsName(name.to_str().into_owned().try_into()?)),
    };
    params.subject_alt_names = names.iter().map(name).collect::<Result<_, rcgen::Error>>()?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(random_serial());
    params.not_before = OffsetDateTime::from(now - BACKDATE);
    params.not_after = OffsetDateTime::from(until);
    Ok(params)
}

/// 16 random bytes, but for the sign, which must be positive (RFC 5280 §4.1.2.2), and the bit after it, which keeps
/// the number from being zero.
pub(super) fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// How far back certificates are dated, for peers whose clocks run behind ours. Kubernetes' own signer takes as much
/// (`pkg/controller/certificates/signer/signer.go`).
pub(super) const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// How long before the intermediate's end an agent that starts says so.
const EXPIRY_WARNING: Duration = Duration::from_secs(30 * 24 * 60 * 60);
