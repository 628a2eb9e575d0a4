//! Where an authority is: in a directory that `culvert ca` keeps, in files wherever somebody else puts them, or in no file
//! at all.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use zeroize::Zeroizing;

use super::files::{
    INTERMEDIATE, INTERMEDIATE_KEY, Intermediate, ROOTS, bundle_of, chain_of, content, key_of, read_bundle,
    read_chain, read_key, read_roots,
};
use crate::{
    identity::{CaError, trust::TrustBundle},
    mesh::TrustDomain,
};

/// The files of an authority that somebody else keeps, such as those of a Secret that cert-manager makes.
#[derive(Clone, Debug)]
pub struct IssuerFiles {
    /// The intermediate's certificate, then those that vouch for it (`tls.crt`).
    pub certificate: PathBuf,
    /// Its key (`tls.key`).
    pub key: PathBuf,
    /// The roots that the mesh trusts (`ca.crt`).
    pub roots: PathBuf,
    /// The trust domain, where the certificate names none.
    pub trust_domain: Option<TrustDomain>,
}

/// An authority that was read from elsewhere than a file, such as a Secret in the API server.
pub struct IssuerPem {
    /// What errors call it, such as `Secret culvert-system/culvert-ca`; the names of its parts are added.
    pub name: PathBuf,
    /// The intermediate's certificate, then those that vouch for it.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: Zeroizing<Vec<u8>>,
    /// The roots that the mesh trusts.
    pub roots: Vec<u8>,
    /// The trust domain, where the certificate names none.
    pub trust_domain: Option<TrustDomain>,
}

impl IssuerPem {
    /// The part of the intermediate's certificate, as cert-manager names it in a Secret.
    pub const CERTIFICATE: &str = "tls.crt";
    /// The part of its key.
    pub const KEY: &str = "tls.key";
    /// The part of the roots.
    pub const ROOTS: &str = "ca.crt";
    /// The part of roots that are trusted besides, which may be absent.
    pub const MORE_ROOTS: &str = "more-roots.pem";

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.certificate.is_empty()
    }

    /// Whether all of its parts are those of another.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.certificate, &self.key, &self.roots) == (&other.certificate, &other.key, &other.roots)
    }
}

/// Without the key.
impl fmt::Debug for IssuerPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuerPem").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Where an authority is.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// A directory that `culvert ca init` made.
    Directory(PathBuf),
    /// Files that somebody else keeps.
    Files(IssuerFiles),
    /// What was read from elsewhere.
    Given(Arc<IssuerPem>),
}

impl Place {
    /// The file of the intermediate's certificate, which errors name.
    pub(super) fn certificate(&self) -> PathBuf {
        match self {
            Self::Directory(dir) => dir.join(INTERMEDIATE),
            Self::Files(files) => files.certificate.clone(),
            Self::Given(given) => given.name.join(IssuerPem::CERTIFICATE),
        }
    }

    /// The file of the roots.
    pub(super) fn roots(&self) -> PathBuf {
        match self {
            Self::Directory(dir) => dir.join(ROOTS),
            Self::Files(files) => files.roots.clone(),
            Self::Given(given) => given.name.join(IssuerPem::ROOTS),
        }
    }

    /// All files that signing depends on.
    pub(super) fn all(&self) -> Vec<PathBuf> {
        let key = match self {
            Self::Directory(dir) => dir.join(INTERMEDIATE_KEY),
            Self::Files(files) => files.key.clone(),
            Self::Given(given) => given.name.join(IssuerPem::KEY),
        };
        vec![self.certificate(), key, self.roots()]
    }

    /// The directory in which is noted what was signed; none where it is not ours to write to.
    pub(super) fn directory(&self) -> Option<&Path> {
        match self {
            Self::Directory(dir) => Some(dir),
            Self::Files(_) | Self::Given(_) => None,
        }
    }

    /// What errors about all the files together name.
    pub(super) fn named(&self) -> PathBuf {
        match self {
            Self::Directory(dir) => dir.clone(),
            Self::Files(_) => self.certificate(),
            Self::Given(given) => given.name.clone(),
        }
    }

    pub(super) fn read_intermediate(&self) -> Result<Intermediate, CaError> {
        let certificate = &self.certificate();
        let (chain, key_path, key, trust_domain) = match self {
            Self::Directory(dir) => return Intermediate::read(dir),
            Self::Files(IssuerFiles { key, trust_domain, .. }) => {
                (read_chain(certificate)?, key.clone(), read_key(key)?, trust_domain)
            }
            Self::Given(given) => {
                let path = given.name.join(IssuerPem::KEY);
                let key = key_of(&path, &given.key)?;
                (chain_of(certificate, &given.certificate)?, path, key, &given.trust_domain)
            }
        };
        let problem =
            "the certificate names no trust domain as its one URI (spiffe://…): name it by --trust-domain";
        let none = || content(certificate, problem);
        let named = |named: Option<TrustDomain>| named.or_else(|| trust_domain.clone()).ok_or_else(none);
        Intermediate::named(certificate, chain, (&key_path, key), named)
    }

    pub(super) fn read_roots(&self) -> Result<TrustBundle, CaError> {
        match self {
            Self::Directory(dir) => read_roots(dir),
            Self::Files(files) => read_bundle(&files.roots),
            Self::Given(given) => bundle_of(&self.roots(), &given.roots),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.named().display())
    }
}
