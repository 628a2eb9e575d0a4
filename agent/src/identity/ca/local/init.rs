//! Making a new authority in a directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::Issuer;
use zeroize::Zeroizing;

use super::{
    files::{INTERMEDIATE, INTERMEDIATE_KEY, ROOT_KEY, ROOTS, WipedKey},
    params,
    write::{PRIVATE, PUBLIC, Staging, WriteError, create},
};
use crate::mesh::TrustDomain;

/// How long the certificates of a new authority are valid.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// The root's.
    pub root: Duration,
    /// The intermediate's; never beyond the root's.
    pub intermediate: Duration,
}

impl Default for Lifetimes {
    /// Ten years and three years: whoever runs a mesh without another authority replaces them by hand.
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self { root: DAY * 3650, intermediate: DAY * 1095 }
    }
}

/// A new authority in PEM, for whoever keeps it elsewhere than in a directory.
pub struct NewAuthority {
    /// The root's certificate.
    pub root: String,
    /// The root's key.
    pub root_key: Zeroizing<Vec<u8>>,
    /// The intermediate's certificate.
    pub intermediate: String,
    /// The intermediate's key.
    pub intermediate_key: Zeroizing<Vec<u8>>,
}

impl NewAuthority {
    /// Makes a root, and an intermediate that it signs. Nothing is written.
    ///
    /// # Errors
    /// Where a lifetime is not possible, or the cryptographic library fails.
    pub fn make(trust_domain: &TrustDomain, lifetimes: Lifetimes) -> Result<Self, InitError> {
        let until = |lifetime| params::end_of(lifetime).ok_or(InitError::Lifetime(lifetime));
        let root_key = WipedKey::generate()?;
        let root = params::root(trust_domain, until(lifetimes.root)?)?;
        let root_certificate = root.self_signed(&root_key)?;

        let key = WipedKey::generate()?;
        let lifetime = lifetimes.intermediate.min(lifetimes.root);
        let certificate = params::intermediate(trust_domain, until(lifetime)?)?
            .signed_by(&key, &Issuer::from_params(&root, &root_key))?;
        Ok(Self {
            root: root_certificate.pem(),
            root_key: root_key.pem(),
            intermediate: certificate.pem(),
            intermediate_key: key.pem(),
        })
    }
}

/// Why no authority was made. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is something at the path.
    #[error("{} exists and is not an empty directory: nothing is overwritten; choose another or remove it", .0.display())]
    Exists(PathBuf),
    /// The path has no last component, such as `/`.
    #[error("{} cannot be made", .0.display())]
    Path(PathBuf),
    /// A lifetime is zero, or leads beyond the year 9999.
    #[error("the lifetime {} is not possible", humantime::format_duration(*.0))]
    Lifetime(Duration),
    /// A file or directory cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The cryptographic library failed.
    #[error("making keys and certificates failed: {0}")]
    Crypto(#[from] rcgen::Error),
}

/// Makes an authority in `dir`: written beside it, synced, then renamed into place. The root's key goes to `root_key`,
/// or into the directory.
pub(super) fn init(
    dir: &Path,
    trust_domain: &TrustDomain,
    lifetimes: Lifetimes,
    root_key: Option<&Path>,
) -> Result<(), InitError> {
    refuse_existing(dir)?;
    if dir.file_name().is_none() {
        return Err(InitError::Path(dir.to_owned()));
    }
    let staging = Staging::create(dir)?;
    let new = NewAuthority::make(trust_domain, lifetimes)?;
    create(&staging.path(ROOTS), PUBLIC, new.root.as_bytes())?;
    create(&staging.path(INTERMEDIATE_KEY), PRIVATE, &new.intermediate_key)?;
    create(&staging.path(INTERMEDIATE), PUBLIC, new.intermediate.as_bytes())?;
    // Last of all, since it may be elsewhere: whatever fails before leaves no trace.
    create(root_key.unwrap_or(&staging.path(ROOT_KEY)), PRIVATE, &new.root_key)?;
    let committed = staging.commit(dir).map_err(|error| match error {
        error if is_occupied(&error.source) => InitError::Exists(dir.to_owned()),
        error => error.into(),
    });
    if let (Err(_), Some(path)) = (&committed, root_key) {
        drop(fs::remove_file(path));
    }
    committed
}

fn refuse_existing(dir: &Path) -> Result<(), InitError> {
    match fs::read_dir(dir).map(Iterator::count) {
        Ok(0) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(InitError::Exists(dir.to_owned())),
    }
}

fn is_occupied(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::DirectoryNotEmpty | K::AlreadyExists | K::NotADirectory)
}
