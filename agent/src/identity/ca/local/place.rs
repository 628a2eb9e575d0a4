//! Where the files of an authority are: in a directory that `culvert ca` keeps, or wherever somebody else puts them.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::files::{
    INTERMEDIATE, INTERMEDIATE_KEY, Intermediate, ROOTS, content, read_bundle, read_chain, read_roots,
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

/// Where the files of an authority are.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// A directory that `culvert ca init` made.
    Directory(PathBuf),
    /// Files that somebody else keeps.
    Files(IssuerFiles),
}

impl Place {
    /// The file of the intermediate's certificate, which errors name.
    pub(super) fn certificate(&self) -> PathBuf {
        match self {
            Self::Directory(dir) => dir.join(INTERMEDIATE),
            Self::Files(files) => files.certificate.clone(),
        }
    }

    /// The file of the roots.
    pub(super) fn roots(&self) -> PathBuf {
        match self {
            Self::Directory(dir) => dir.join(ROOTS),
            Self::Files(files) => files.roots.clone(),
        }
    }

    /// All files that signing depends on.
    pub(super) fn all(&self) -> Vec<PathBuf> {
        let key = match self {
            Self::Directory(dir) => dir.join(INTERMEDIATE_KEY),
            Self::Files(files) => files.key.clone(),
        };
        vec![self.certificate(), key, self.roots()]
    }

    /// The directory in which is noted what was signed; none where it is not ours to write to.
    pub(super) fn directory(&self) -> Option<&Path> {
        match self {
            Self::Directory(dir) => Some(dir),
            Self::Files(_) => None,
        }
    }

    /// What errors about all the files together name.
    pub(super) fn named(&self) -> PathBuf {
        self.directory().map_or_else(|| self.certificate(), Path::to_owned)
    }

    pub(super) fn read_intermediate(&self) -> Result<Intermediate, CaError> {
        match self {
            Self::Directory(dir) => Intermediate::read(dir),
            Self::Files(IssuerFiles { certificate, key, trust_domain, .. }) => {
                let problem = "the certificate names no trust domain as its one URI (spiffe://…): name it by --trust-domain";
                let none = || content(certificate, problem);
                let named =
                    |named: Option<TrustDomain>| named.or_else(|| trust_domain.clone()).ok_or_else(none);
                Intermediate::named(certificate, read_chain(certificate)?, key, named)
            }
        }
    }

    pub(super) fn read_roots(&self) -> Result<TrustBundle, CaError> {
        match self {
            Self::Directory(dir) => read_roots(dir),
            Self::Files(files) => read_bundle(&files.roots),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.named().display())
    }
}
