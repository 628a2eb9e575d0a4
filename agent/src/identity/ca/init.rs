//! Making a new authority in a directory.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{
    files::{INTERMEDIATE, INTERMEDIATE_KEY, ROOT_KEY, ROOTS, WipedKey},
    local::{BACKDATE, random_serial},
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
    #[error("{} cannot be written: {source}", .path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The cryptographic library failed.
    #[error("making keys and certificates failed: {0}")]
    Crypto(#[from] rcgen::Error),
}

/// Makes an authority in `dir`: written beside it, synced, then renamed into place, which fails where `dir` has
/// something in it (rename(2)).
pub(super) fn init(dir: &Path, trust_domain: &TrustDomain, lifetimes: Lifetimes) -> Result<(), InitError> {
    refuse_existing(dir)?;
    let staging = Staging::create(dir)?;
    write_authority(&staging, trust_domain, lifetimes)?;
    staging.commit(dir)
}

fn write_authority(
    staging: &Staging,
    trust_domain: &TrustDomain,
    lifetimes: Lifetimes,
) -> Result<(), InitError> {
    let now = SystemTime::now();
    let root_key = WipedKey(Zeroizing::new(KeyPair::generate()?));
    let root = authority_params("root", trust_domain, now, lifetimes.root, BasicConstraints::Unconstrained)?;
    let root_certificate = root.self_signed(&root_key)?;

    let key = WipedKey(Zeroizing::new(KeyPair::generate()?));
    let lifetime = lifetimes.intermediate.min(lifetimes.root);
    // Path length 0: it signs workloads, never another authority (RFC 5280 §4.2.1.9).
    let constraint = BasicConstraints::Constrained(0);
    let certificate = authority_params("intermediate", trust_domain, now, lifetime, constraint)?
        .signed_by(&key, &Issuer::from_params(&root, &root_key))?;

    staging.write(ROOT_KEY, PRIVATE, &pem(&root_key))?;
    staging.write(ROOTS, PUBLIC, root_certificate.pem().as_bytes())?;
    staging.write(INTERMEDIATE_KEY, PRIVATE, &pem(&key))?;
    staging.write(INTERMEDIATE, PUBLIC, certificate.pem().as_bytes())
}

fn pem(key: &WipedKey) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(key.0.serialize_pem().into_bytes())
}

fn authority_params(
    role: &str,
    trust_domain: &TrustDomain,
    now: SystemTime,
    lifetime: Duration,
    constraint: BasicConstraints,
) -> Result<CertificateParams, InitError> {
    let until = now
        .checked_add(lifetime)
        .filter(|until| !lifetime.is_zero() && *until <= year_9999())
        .ok_or(InitError::Lifetime(lifetime))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Culvert");
    // A name of its own: two authorities of one name make verifiers speak of a wrong signature where the truth is
    // an unknown root.
    let name = format!("Culvert {role} {:08x}", rand::random::<u32>());
    params.distinguished_name.push(DnType::CommonName, name);
    // X.509-SVID §3.2: the SPIFFE ID of a signing certificate is the trust domain's.
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.is_ca = IsCa::Ca(constraint);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(random_serial());
    params.not_before = OffsetDateTime::from(now - BACKDATE);
    params.not_after = OffsetDateTime::from(until);
    Ok(params)
}

/// The last moment that a certificate can name (RFC 5280 §4.1.2.5): 9999-12-31T23:59:59Z.
fn year_9999() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799)
}

fn refuse_existing(dir: &Path) -> Result<(), InitError> {
    match fs::read_dir(dir).map(Iterator::count) {
        Ok(0) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(InitError::Exists(dir.to_owned())),
    }
}

/// A directory beside the final one, so that a rename puts it into place; removed unless that happened.
struct Staging(PathBuf);

impl Staging {
    fn create(dir: &Path) -> Result<Self, InitError> {
        let name = dir.file_name().ok_or_else(|| InitError::Path(dir.to_owned()))?;
        let parent = parent_of(dir);
        fs::create_dir_all(parent).map_err(|source| write_error(parent, source))?;
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".new-{:016x}", rand::random::<u64>()));
        let path = parent.join(hidden);
        DirBuilder::new().mode(0o700).create(&path).map_err(|source| write_error(&path, source))?;
        Ok(Self(path))
    }

    fn write(&self, name: &str, mode: u32, bytes: &[u8]) -> Result<(), InitError> {
        let path = self.0.join(name);
        let written =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&path).and_then(|mut file| {
                file.write_all(bytes)?;
                file.sync_all()
            });
        written.map_err(|source| write_error(&path, source))
    }

    fn commit(self, dir: &Path) -> Result<(), InitError> {
        sync_dir(&self.0)?;
        match fs::rename(&self.0, dir) {
            Ok(()) => sync_dir(parent_of(dir)),
            Err(error) if is_occupied(&error) => Err(InitError::Exists(dir.to_owned())),
            Err(source) => Err(write_error(dir, source)),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "remove this directory: it holds unused private keys");
            }
            _ => {}
        }
    }
}

fn sync_dir(dir: &Path) -> Result<(), InitError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| write_error(dir, source))
}

fn is_occupied(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::DirectoryNotEmpty | K::AlreadyExists | K::NotADirectory)
}

/// The directory that `dir` is in; for a bare name, the working directory.
fn parent_of(dir: &Path) -> &Path {
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn write_error(path: &Path, source: io::Error) -> InitError {
    InitError::Write { path: path.to_owned(), source }
}

const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;
