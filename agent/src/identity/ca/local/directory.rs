//! What an operator does with an authority in a directory: another intermediate, at once or by a request that is signed
//! where the root's key is.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use humantime::format_rfc3339_seconds as rfc3339;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, Issuer, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject as _};

use super::{
    files::{
        INTERMEDIATE, INTERMEDIATE_KEY, Intermediate, NEXT_KEY, REQUEST, RETIRED, ROOTS, WipedKey, content,
        not_after, parse, read, read_chain, read_key, read_roots, trust_domain_of,
    },
    params,
    write::{PRIVATE, PUBLIC, WriteError, ensure_dir, rename, replace},
};
use crate::{
    identity::{CaError, Fingerprint, ca::certificate_pem},
    mesh::TrustDomain,
};

/// An authority's directory that one command at a time works on. Its methods are blocking, and change all that they
/// say or nothing.
pub struct CaDirectory {
    pub(super) dir: PathBuf,
    /// Held until the command ends.
    _lock: File,
}

/// Why there is no other intermediate. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum IntermediateError {
    /// A file cannot be read, or does not hold what it should.
    #[error(transparent)]
    File(#[from] CaError),
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Another command works on the directory.
    #[error("another `culvert ca` works on {}: try again when it has ended", .0.display())]
    Busy(PathBuf),
    /// The key is none of a trusted root's.
    #[error(
        "{} is not the key of a root in {}: name the right key (--root-key), or have its root trusted first (`culvert ca root add`)",
        .key.display(), .roots.display()
    )]
    OtherRoot {
        /// The key's file.
        key: PathBuf,
        /// The roots' file.
        roots: PathBuf,
    },
    /// The intermediate would be valid longer than its root.
    #[error(
        "the root {root} expires at {}, before the intermediate would: choose a shorter --lifetime, or make another root (`culvert ca root new`)",
        rfc3339(*.not_after)
    )]
    RootSooner {
        /// Which root.
        root: String,
        /// When it expires.
        not_after: SystemTime,
    },
    /// A lifetime is zero, or leads beyond the year 9999.
    #[error("the lifetime {} is not possible", humantime::format_duration(*.0))]
    Lifetime(Duration),
    /// A request waits for its certificate.
    #[error(
        "{} waits for its certificate: `culvert ca install` it, or remove that file to give the request up",
        .0.display()
    )]
    Pending(PathBuf),
    /// The trust domains differ.
    #[error("it is of trust domain {found}, and the authority of {ours}")]
    TrustDomain {
        /// The authority's.
        ours: TrustDomain,
        /// The other's.
        found: TrustDomain,
    },
    /// The cryptographic library failed.
    #[error("signing failed: {0}")]
    Crypto(#[from] rcgen::Error),
}

impl CaDirectory {
    /// Takes the directory for one command.
    ///
    /// # Errors
    /// Where it cannot be read, or another command has it.
    pub fn open(dir: &Path) -> Result<Self, IntermediateError> {
        let failed = |source| CaError::Read { path: dir.to_owned(), source };
        let lock = File::open(dir).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { dir: dir.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(IntermediateError::Busy(dir.to_owned())),
            Err(TryLockError::Error(source)) => Err(failed(source).into()),
        }
    }

    /// Replaces the intermediate by one of a new key that the root key in the file `root_key` signs. Returns what signs
    /// from now on, for people.
    ///
    /// # Errors
    /// Where the key belongs to none of the directory's roots, or its root expires before the intermediate would.
    pub fn renew_intermediate(
        &self,
        root_key: &Path,
        lifetime: Duration,
    ) -> Result<String, IntermediateError> {
        let trust_domain = self.trust_domain()?;
        self.refuse_pending()?;
        let root = Root::find(&self.dir.join(ROOTS), root_key)?;
        let key = WipedKey::generate()?;
        let certificate = root.sign(&key, &trust_domain, lifetime)?;
        self.write(NEXT_KEY, PRIVATE, &key.pem())?;
        self.put_in_place(&self.dir.join(INTERMEDIATE), vec![certificate])
            .inspect_err(|_| self.forget_request())
    }

    /// Makes a key, and writes a request for its certificate, for a machine that has the root's key. Returns the path
    /// of the request.
    ///
    /// # Errors
    /// Where a request waits already.
    pub fn request(&self) -> Result<PathBuf, IntermediateError> {
        let trust_domain = self.trust_domain()?;
        self.refuse_pending()?;
        let key = WipedKey::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
        let request = params.serialize_request(&key)?.pem()?;
        self.write(NEXT_KEY, PRIVATE, &key.pem())?;
        self.write(REQUEST, PUBLIC, request.as_bytes()).inspect_err(|_| self.forget_request())?;
        Ok(self.dir.join(REQUEST))
    }

    /// Puts the certificate in the file `certificate` into place, which answers [`Self::request`]. Returns what signs
    /// from now on, for people.
    ///
    /// # Errors
    /// Where it is not for the key of the request, or does not chain to one of the directory's roots.
    pub fn install(&self, certificate: &Path) -> Result<String, IntermediateError> {
        self.put_in_place(certificate, read_chain(certificate)?)
    }

    /// The trust domain of the intermediate that is there.
    pub(super) fn trust_domain(&self) -> Result<TrustDomain, CaError> {
        let path = self.dir.join(INTERMEDIATE);
        let chain = read_chain(&path)?;
        let first = chain.first().ok_or_else(|| content(&path, "there is no certificate in it"))?;
        trust_domain_of(&parse(&path, first)?).ok_or_else(|| {
            content(&path, "the certificate does not name a trust domain as its one URI (spiffe://…)")
        })
    }

    /// Tries the new intermediate out and replaces the old one. The certificate's renaming is the moment of the change:
    /// readers find the key that fits in either of two files, so a crash leaves the old pair or the new.
    fn put_in_place(
        &self,
        path: &Path,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<String, IntermediateError> {
        let ours = self.trust_domain()?;
        let text: String = chain.iter().map(certificate_pem).collect();
        let new = Intermediate::new(path, chain, &self.dir.join(NEXT_KEY))?;
        if new.trust_domain != ours {
            return Err(IntermediateError::TrustDomain { ours, found: new.trust_domain });
        }
        new.try_out(&self.dir, &Arc::new(read_roots(&self.dir)?))?;
        self.retire()?;
        self.write(INTERMEDIATE, PUBLIC, text.as_bytes())?;
        rename(&self.dir.join(NEXT_KEY), &self.dir.join(INTERMEDIATE_KEY))?;
        drop(fs::remove_file(self.dir.join(REQUEST)));
        Ok(super::expiry::listed(&new.chain[..1]))
    }

    /// Keeps the certificate that is about to be replaced: workloads have certificates by it.
    fn retire(&self) -> Result<(), IntermediateError> {
        let old = read(&self.dir.join(INTERMEDIATE))?;
        let chain = read_chain(&self.dir.join(INTERMEDIATE))?;
        let Some(issuer) = chain.first() else { return Ok(()) };
        let retired = self.dir.join(RETIRED);
        ensure_dir(&retired)?;
        replace(&retired.join(format!("{}.pem", Fingerprint::of(issuer))), PUBLIC, &old)?;
        Ok(())
    }

    fn refuse_pending(&self) -> Result<(), IntermediateError> {
        let path = self.dir.join(NEXT_KEY);
        if path.exists() { Err(IntermediateError::Pending(path)) } else { Ok(()) }
    }

    fn forget_request(&self) {
        drop(fs::remove_file(self.dir.join(NEXT_KEY)));
    }

    fn write(&self, name: &str, mode: u32, bytes: &[u8]) -> Result<(), WriteError> {
        replace(&self.dir.join(name), mode, bytes)
    }
}

/// Signs the request in the file `request`, where the root's key is. Returns the intermediate's certificate in PEM.
///
/// Only the key and the trust domain are taken from the request.
///
/// # Errors
/// Where the request is none, names no trust domain, or the key belongs to no root in `roots`.
pub fn sign_request(
    request: &Path,
    root_key: &Path,
    roots: &Path,
    lifetime: Duration,
) -> Result<String, IntermediateError> {
    let der = CertificateSigningRequestDer::from_pem_slice(&read(request)?)
        .map_err(|error| content(request, &error))?;
    let asked = CertificateSigningRequestParams::from_der(&der).map_err(|error| content(request, &error))?;
    let problem = |problem: &str| content(request, problem);
    let [SanType::URI(uri)] = &asked.params.subject_alt_names[..] else {
        return Err(problem("the request does not name a trust domain as its one URI (spiffe://…)").into());
    };
    let trust_domain: TrustDomain = uri
        .as_str()
        .strip_prefix("spiffe://")
        .and_then(|name| name.parse().ok())
        .ok_or_else(|| problem("the request does not name a trust domain as its one URI (spiffe://…)"))?;
    if asked.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
        return Err(problem("its key is not an ECDSA key on the curve P-256").into());
    }
    let root = Root::find(roots, root_key)?;
    Ok(certificate_pem(&root.sign(&asked.public_key, &trust_domain, lifetime)?))
}

/// A root with its key.
struct Root {
    issuer: Issuer<'static, WipedKey>,
    name: String,
    trust_domain: Option<TrustDomain>,
    not_after: SystemTime,
}

impl Root {
    /// Finds the root in the file `roots` whose key `key` holds; of several, the one that is valid longest.
    fn find(roots: &Path, key: &Path) -> Result<Self, IntermediateError> {
        let (key_path, key) = (key, read_key(key)?);
        let mut found: Option<(SystemTime, CertificateDer<'static>)> = None;
        for certificate in read_chain(roots)? {
            let parsed = parse(roots, &certificate)?;
            let until = not_after(&parsed);
            let fits = parsed.public_key().raw == key.subject_public_key_info();
            if fits && found.as_ref().is_none_or(|(best, _)| *best < until) {
                found = Some((until, certificate));
            }
        }
        let (not_after, certificate) = found.ok_or_else(|| IntermediateError::OtherRoot {
            key: key_path.to_owned(),
            roots: roots.to_owned(),
        })?;
        let parsed = parse(roots, &certificate)?;
        let (name, trust_domain) = (parsed.subject().to_string(), trust_domain_of(&parsed));
        Ok(Self { issuer: Issuer::from_ca_cert_der(&certificate, key)?, name, trust_domain, not_after })
    }

    /// Signs an intermediate.
    fn sign(
        &self,
        key: &impl PublicKeyData,
        trust_domain: &TrustDomain,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, IntermediateError> {
        if let Some(found) = self.trust_domain.as_ref().filter(|root| *root != trust_domain) {
            return Err(IntermediateError::TrustDomain { ours: trust_domain.clone(), found: found.clone() });
        }
        let until = params::end_of(lifetime).ok_or(IntermediateError::Lifetime(lifetime))?;
        if until > self.not_after {
            return Err(IntermediateError::RootSooner { root: self.name.clone(), not_after: self.not_after });
        }
        Ok(params::intermediate(trust_domain, until)?.signed_by(key, &self.issuer)?.into())
    }
}
