//! Certificate revocation lists (RFC 5280 §5): what files hold of them, whose they are, and what they revoke.
//!
//! webpki can consult lists while it builds a path, but it takes the first that has the issuer's name, and refuses
//! everybody of that issuer where the signature is not the issuer's: one wrong list, or two authorities of one name,
//! would cut the mesh. Here a list speaks for a key, by its signature; a list that is nobody's revokes nothing.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::pki_types::{
    SubjectPublicKeyInfoDer,
    pem::{PemObject as _, SectionKind},
};
use webpki::{CertRevocationList, OwnedCertRevocationList, RawPublicKeyEntity};
use x509_parser::{parse_x509_certificate, parse_x509_crl};

use super::{spiffe::shorten, tls::provider};

/// One list. What it is signed with is found out key by key, once each.
pub(super) struct Crl {
    list: CertRevocationList<'static>,
    /// The issuer's name, for people.
    pub(super) issuer: String,
    /// When the next list was to be there.
    pub(super) next_update: SystemTime,
    /// How many certificates it revokes.
    pub(super) revoked: usize,
    tbs: Vec<u8>,
    signature: Vec<u8>,
    judged: Mutex<Vec<(Vec<u8>, bool)>>,
}

/// What the files hold.
pub(super) struct CrlFiles {
    pub(super) lists: Vec<Arc<Crl>>,
    /// Certificates of issuers, as name and key, that stand beside the lists.
    pub(super) issuers: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Why revocation lists cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CrlError {
    /// A file cannot be read.
    #[error("the revocation lists in {} cannot be read: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("the revocation lists in {} cannot be used: {problem}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
}

impl CrlFiles {
    /// Reads the lists of several files. Blocking.
    pub(super) fn read(paths: &[PathBuf]) -> Result<Self, CrlError> {
        let mut all = Self { lists: Vec::new(), issuers: Vec::new() };
        for path in paths {
            let pem = read(path).map_err(|source| CrlError::Read { path: path.clone(), source })?;
            all.add(&pem).map_err(|problem| CrlError::Content { path: path.clone(), problem })?;
        }
        Ok(all)
    }

    fn add(&mut self, pem: &[u8]) -> Result<(), String> {
        if pem.len() as u64 > MAX_FILE {
            return Err(format!("it has more than {MAX_FILE} bytes, which is the limit"));
        }
        let before = self.lists.len();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
            let (kind, der) = section.map_err(|error| format!("it is not valid PEM: {error}"))?;
            match kind {
                SectionKind::Crl => self.lists.push(Arc::new(
                    Crl::parse(&der)
                        .map_err(|problem| format!("list {}: {problem}", self.lists.len() - before + 1))?,
                )),
                SectionKind::Certificate => {
                    let (_, certificate) = parse_x509_certificate(&der)
                        .map_err(|error| format!("a certificate beside the lists: {error}"))?;
                    let name = contents(certificate.subject().as_raw()).to_vec();
                    self.issuers.push((name, certificate.public_key().raw.to_vec()));
                }
                _ => {}
            }
            if self.lists.len() > MAX_LISTS || self.issuers.len() > MAX_LISTS {
                return Err(format!("there are more than {MAX_LISTS} lists, which is the limit"));
            }
        }
        if self.lists.len() == before {
            return Err("there is no list in it (BEGIN X509 CRL); one in DER becomes PEM by \
                        `openssl crl -inform DER -in FILE -out FILE.pem`"
                .to_owned());
        }
        Ok(())
    }
}

impl Crl {
    fn parse(der: &[u8]) -> Result<Self, String> {
        let list = OwnedCertRevocationList::from_der(der).map_err(|error| format!("{error}"))?;
        let (_, parsed) = parse_x509_crl(der).map_err(|error| error.to_string())?;
        // webpki requires it.
        let next_update = parsed.next_update().ok_or("it has no nextUpdate")?.timestamp();
        Ok(Self {
            list: list.into(),
            issuer: shorten(parsed.issuer().to_string()),
            next_update: UNIX_EPOCH + Duration::from_secs(next_update.try_into().unwrap_or(0)),
            revoked: parsed.tbs_cert_list.revoked_certificates.len(),
            tbs: parsed.tbs_cert_list.as_ref().to_vec(),
            signature: parsed.signature_value.data.to_vec(),
            judged: Mutex::default(),
        })
    }

    /// Whether it bears this name as its issuer's: the contents of the name's SEQUENCE.
    pub(super) fn is_named(&self, issuer: &[u8]) -> bool {
        self.list.issuer() == issuer
    }

    /// Whether another list has the same issuer, by name.
    pub(super) fn shares_issuer(&self, other: &Self) -> bool {
        self.is_named(other.list.issuer())
    }

    /// Whether another is the very same list.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (&self.tbs, &self.signature) == (&other.tbs, &other.signature)
    }

    /// Whether this key signed it. Key usage is not asked for (RFC 5280 §6.3.3 would): whoever signs with an
    /// authority's key could sign certificates too, and a revocation is the safe side.
    pub(super) fn is_signed_by(&self, spki: &[u8]) -> bool {
        if let Some((_, verdict)) = self.judged().iter().find(|(key, _)| key == spki) {
            return *verdict;
        }
        let der = SubjectPublicKeyInfoDer::from(spki);
        let verdict = RawPublicKeyEntity::try_from(&der).is_ok_and(|key| {
            let algorithms = provider().signature_verification_algorithms.all;
            algorithms
                .iter()
                .any(|algorithm| key.verify_signature(*algorithm, &self.tbs, &self.signature).is_ok())
        });
        let mut judged = self.judged();
        if judged.len() < MAX_JUDGED {
            judged.push((spki.to_vec(), verdict));
        }
        verdict
    }

    /// The keys that are known to have signed it.
    pub(super) fn signers(&self) -> Vec<Vec<u8>> {
        self.judged().iter().filter(|(_, verdict)| *verdict).map(|(key, _)| key.clone()).collect()
    }

    /// Whether anybody is known to have signed it.
    pub(super) fn is_verified(&self) -> bool {
        self.judged().iter().any(|(_, verdict)| *verdict)
    }

    /// Whether its signature was tried with anybody's key.
    pub(super) fn was_tried(&self) -> bool {
        !self.judged().is_empty()
    }

    /// Whether a newer list ought to be there.
    pub(super) fn is_outdated(&self, now: SystemTime) -> bool {
        self.next_update <= now
    }

    /// Whether it lists a serial number. Where a list is one part of several (issuingDistributionPoint) does not
    /// matter: its issuer gives a number once.
    pub(super) fn revokes(&self, serial: &[u8]) -> bool {
        // Nothing is malformed: the list was parsed as a whole.
        self.list.find_serial(serial).is_ok_and(|found| found.is_some())
    }

    fn judged(&self) -> MutexGuard<'_, Vec<(Vec<u8>, bool)>> {
        self.judged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut pem = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut pem)?;
    Ok(pem)
}

/// The contents of a DER SEQUENCE, which is how webpki compares names.
pub(super) fn contents(sequence: &[u8]) -> &[u8] {
    let header = match sequence.get(1) {
        Some(length) if length & 0x80 != 0 => 2 + usize::from(length & 0x7f),
        _ => 2,
    };
    sequence.get(header..).unwrap_or_default()
}

/// Bytes of one file: some 300,000 revocations.
const MAX_FILE: u64 = 16 << 20;
/// Lists in all files: one for each authority of the mesh, old ones included.
const MAX_LISTS: usize = 64;
/// Keys that a list's signature is tried with; they are of authorities that a root vouches for.
const MAX_JUDGED: usize = 64;
