//! The trust bundle of an authority in a directory: which roots there are, and which of them may go.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use humantime::format_rfc3339_seconds as rfc3339;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::X509Certificate;

use super::{
    directory::CaDirectory,
    expiry::listed,
    files::{
        INTERMEDIATE, RETIRED, ROOTS, SIGNED, WipedKey, check_signs_certificates, content, not_after, parse,
        pem_files, read_chain, trust_domain_of,
    },
    params,
    signed::Signed,
    write::{PRIVATE, PUBLIC, WriteError, create, replace},
};
use crate::{
    identity::{CaError, Fingerprint, TrustBundle, TrustError, ca::certificate_pem},
    mesh::TrustDomain,
};

/// Why the trust bundle is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// A file cannot be read, or does not hold what it should.
    #[error(transparent)]
    File(#[from] CaError),
    /// A file cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A certificate cannot be trusted as a root.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A lifetime is zero, or leads beyond the year 9999.
    #[error("the lifetime {} is not possible", humantime::format_duration(*.0))]
    Lifetime(Duration),
    /// All roots of the file are in the bundle.
    #[error("every root in {} is trusted already", .0.display())]
    Known(PathBuf),
    /// No root, or more than one, has such a fingerprint.
    #[error(
        "{found} roots have a fingerprint that begins with {asked:?}: `culvert ca root list` shows them all"
    )]
    NotOne {
        /// What was asked for.
        asked: String,
        /// How many.
        found: usize,
    },
    /// It is the only one.
    #[error(
        "{0} is the only root: without it nobody could be trusted; add another first (`culvert ca root new`)"
    )]
    Last(String),
    /// Certificates need it.
    #[error(
        "{root} is still needed:{}\nWait until then, or give --force: every connection of those certificates fails then.",
        .needs.iter().map(|need| format!("\n  {need}")).collect::<String>()
    )]
    Needed {
        /// Which root.
        root: String,
        /// What needs it.
        needs: Vec<Need>,
    },
    /// The cryptographic library failed.
    #[error("making the root failed: {0}")]
    Crypto(#[from] rcgen::Error),
}

/// What needs a root.
#[derive(Clone, Debug)]
pub struct Need {
    /// The intermediate between, for people.
    pub issuer: String,
    /// Until when.
    pub until: SystemTime,
    /// How that is known.
    pub source: NeedSource,
}

/// How it is known that a root is needed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NeedSource {
    /// The intermediate signs for this directory.
    Signing,
    /// Signers recorded what they signed with it.
    Recorded,
    /// Nobody recorded anything, so the intermediate's own end counts.
    Unrecorded,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { issuer, until, source } = self;
        let until = rfc3339(*until);
        match source {
            NeedSource::Signing => {
                write!(f, "{issuer} signs in this directory: replace it first (`culvert ca intermediate`)")
            }
            NeedSource::Recorded => write!(f, "certificates by {issuer} are valid until {until}"),
            NeedSource::Unrecorded => write!(
                f,
                "{issuer} is valid until {until}, and nothing here says what it signed: name the records of the nodes that signed with it (--signed)"
            ),
        }
    }
}

/// One trusted root.
#[derive(Clone, Debug)]
pub struct RootInfo {
    /// Which.
    pub fingerprint: Fingerprint,
    /// Its name.
    pub subject: String,
    /// When it expires.
    pub not_after: SystemTime,
    /// What needs it now.
    pub needs: Vec<Need>,
}

impl CaDirectory {
    /// Returns the roots that are trusted, and what needs each.
    ///
    /// # Errors
    /// Where a file cannot be read.
    pub fn roots(&self, records: &[PathBuf]) -> Result<Vec<RootInfo>, RootsError> {
        let bundle = self.bundle()?;
        let issuers = self.issuers(records)?;
        bundle
            .iter()
            .map(|root| {
                let parsed = parse(&self.path(), root)?;
                Ok(RootInfo {
                    fingerprint: Fingerprint::of(root),
                    subject: parsed.subject().to_string(),
                    not_after: not_after(&parsed),
                    needs: needs(root, &bundle, &issuers)?,
                })
            })
            .collect()
    }

    /// Makes a root, writes its key to `key` (or beside the others), and has it trusted beside the others. Returns the
    /// root, for people, and the key's path.
    ///
    /// # Errors
    /// Where the key's file is there already, or something cannot be written.
    pub fn new_root(&self, key: Option<&Path>, lifetime: Duration) -> Result<(String, PathBuf), RootsError> {
        let trust_domain = self.trust_domain()?;
        let mut bundle = self.bundle()?;
        let until = params::end_of(lifetime).ok_or(RootsError::Lifetime(lifetime))?;
        let root_key = WipedKey::generate()?;
        let certificate: CertificateDer<'static> =
            params::root(&trust_domain, until)?.self_signed(&root_key)?.into();
        let path = key.map_or_else(
            || self.dir.join(format!("root-{:.16}.key", Fingerprint::of(&certificate))),
            Path::to_owned,
        );
        let name = listed(std::slice::from_ref(&certificate));
        bundle.push(certificate);
        // The key first: a root whose key is lost would be trusted for nothing.
        create(&path, PRIVATE, &root_key.pem())?;
        self.write_bundle(bundle).inspect_err(|_| drop(std::fs::remove_file(&path)))?;
        Ok((name, path))
    }

    /// Has the roots in `file` trusted beside the others. Returns those that were not yet.
    ///
    /// # Errors
    /// Where one of them is no root of the directory's trust domain, has expired, or all are trusted already.
    pub fn add_roots(&self, file: &Path) -> Result<Vec<String>, RootsError> {
        let trust_domain = self.trust_domain()?;
        let mut bundle = self.bundle()?;
        let offered = read_chain(file)?;
        if offered.is_empty() {
            return Err(content(file, "there is no certificate in it").into());
        }
        let mut added = Vec::new();
        for root in offered {
            check_root(file, &parse(file, &root)?, &trust_domain)?;
            if !bundle.contains(&root) {
                added.push(listed(std::slice::from_ref(&root)));
                bundle.push(root);
            }
        }
        if added.is_empty() {
            return Err(RootsError::Known(file.to_owned()));
        }
        self.write_bundle(bundle)?;
        Ok(added)
    }

    /// Has a root trusted no more. Its fingerprint may be shortened. `records` are directories of what signers elsewhere
    /// recorded (`signed/` of their copies of this directory). Returns the root, for people.
    ///
    /// # Errors
    /// Where it is the only one, or, unless `force` says otherwise, this directory's intermediate or a live certificate
    /// chains to it.
    pub fn remove_root(
        &self,
        fingerprint: &str,
        records: &[PathBuf],
        force: Force,
    ) -> Result<String, RootsError> {
        let mut bundle = self.bundle()?;
        let found: Vec<_> =
            bundle.iter().filter(|root| Fingerprint::of(root).begins_with(fingerprint)).cloned().collect();
        let [root] = &found[..] else {
            return Err(RootsError::NotOne { asked: fingerprint.to_owned(), found: found.len() });
        };
        let name = listed(&found);
        if bundle.len() == 1 {
            return Err(RootsError::Last(name));
        }
        if force == Force::No {
            let needs = needs(root, &bundle, &self.issuers(records)?)?;
            if !needs.is_empty() {
                return Err(RootsError::Needed { root: name, needs });
            }
        }
        bundle.retain(|other| other != root);
        self.write_bundle(bundle)?;
        Ok(name)
    }

    fn path(&self) -> PathBuf {
        self.dir.join(ROOTS)
    }

    fn bundle(&self) -> Result<Vec<CertificateDer<'static>>, CaError> {
        read_chain(&self.path())
    }

    /// Writes the roots, once it is clear that an agent will take them.
    fn write_bundle(&self, roots: Vec<CertificateDer<'static>>) -> Result<(), RootsError> {
        let bundle = TrustBundle::new(roots)?;
        let text: String = bundle.certificates().iter().map(certificate_pem).collect();
        Ok(replace(&self.path(), PUBLIC, text.as_bytes())?)
    }

    /// Everybody who signed for this mesh, as far as is known here.
    fn issuers(&self, records: &[PathBuf]) -> Result<Vec<Issuer>, RootsError> {
        let mut issuers = BTreeMap::new();
        let mut add = |chain: Vec<CertificateDer<'static>>, until: Option<SystemTime>, signing: bool| {
            let Some(first) = chain.first() else { return };
            let issuer = issuers.entry(Fingerprint::of(first)).or_insert_with(|| Issuer {
                chain,
                signing: false,
                recorded: None,
            });
            issuer.signing |= signing;
            issuer.recorded = issuer.recorded.max(until);
        };
        add(read_chain(&self.dir.join(INTERMEDIATE))?, None, true);
        for path in pem_files(&self.dir.join(RETIRED))? {
            add(read_chain(&path)?, None, false);
        }
        for dir in records {
            if !dir.is_dir() {
                return Err(
                    content(dir, "this is no directory of records: name a copy of a node's signed/").into()
                );
            }
        }
        for dir in [self.dir.join(SIGNED)].iter().chain(records) {
            for Signed { chain, until } in Signed::read_all(dir)? {
                add(chain, Some(until), false);
            }
        }
        Ok(issuers.into_values().collect())
    }
}

/// Whether a root goes although it is needed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Force {
    /// It does not.
    No,
    /// It does.
    Yes,
}

/// An intermediate that signs or signed workloads' certificates.
struct Issuer {
    chain: Vec<CertificateDer<'static>>,
    signing: bool,
    /// The latest end of what it signed.
    recorded: Option<SystemTime>,
}

/// What needs `root` now, and would find no other root in `bundle`.
fn needs(
    root: &CertificateDer<'_>,
    bundle: &[CertificateDer<'_>],
    issuers: &[Issuer],
) -> Result<Vec<Need>, CaError> {
    let now = SystemTime::now();
    let mut found = Vec::new();
    for Issuer { chain, signing, recorded } in issuers {
        let others = bundle.iter().filter(|other| *other != root);
        if !vouches(root, chain) || others.into_iter().any(|other| vouches(other, chain)) {
            continue;
        }
        let ends = not_after(&parse(Path::new(INTERMEDIATE), &chain[0])?);
        let (until, source) = match (signing, recorded) {
            (true, _) => (ends, NeedSource::Signing),
            (false, Some(recorded)) => (ends.min(*recorded), NeedSource::Recorded),
            (false, None) => (ends, NeedSource::Unrecorded),
        };
        if until > now {
            found.push(Need { issuer: listed(&chain[..1]), until, source });
        }
    }
    Ok(found)
}

/// Whether `root` signed one of the certificates of a chain.
fn vouches(root: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) -> bool {
    let Ok((_, root)) = x509_parser::parse_x509_certificate(root) else { return false };
    chain.iter().any(|certificate| {
        x509_parser::parse_x509_certificate(certificate).is_ok_and(|(_, certificate)| {
            certificate.issuer() == root.subject()
                && certificate.verify_signature(Some(root.public_key())).is_ok()
        })
    })
}

fn check_root(path: &Path, root: &X509Certificate<'_>, ours: &TrustDomain) -> Result<(), CaError> {
    check_signs_certificates(path, root)?;
    if not_after(root) <= SystemTime::now() {
        return Err(content(path, &format!("{} expired at {}", root.subject(), rfc3339(not_after(root)))));
    }
    match trust_domain_of(root) {
        Some(theirs) if theirs != *ours => Err(content(
            path,
            &format!("{} is of trust domain {theirs}, and the authority of {ours}", root.subject()),
        )),
        _ => Ok(()),
    }
}
