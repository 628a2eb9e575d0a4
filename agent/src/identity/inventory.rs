//! The certificates of this node as they are shown: what each workload has, the authorities above it, and what is
//! wrong. No key material.
//!
//! The types are both ends of one page: the agent writes them as JSON, `culvert certs` reads them. docs/operations.md
//! names the fields, which are stable.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::SystemTime,
};

use rustls::pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};

use super::{
    FileState, SvidStatus, SvidStore,
    at::At,
    certificate::CertificateFacts,
    follow,
    svid::Svid,
    trust::{TrustBundle, Usage},
};

/// The certificates of a node.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    /// Which authority signs: its kind and where it is.
    pub source: String,
    /// What each identity of the node has, ordered by identity.
    pub certificates: Vec<Held>,
    /// The roots that are trusted.
    pub roots: Vec<CertificateFacts>,
    /// The intermediates that vouch for the node's certificates, the one that expires first at the head.
    pub intermediates: Vec<CertificateFacts>,
    /// The files that are followed while they change.
    pub files: Vec<FollowedFile>,
}

/// What one identity has.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// The SPIFFE ID.
    pub identity: String,
    /// How it stands.
    pub state: HeldState,
    /// What the last attempt to get a certificate met; none after a success.
    pub error: Option<String>,
    /// Attempts that have failed since the last success.
    pub failures: u32,
    /// The newest certificate; none before the first.
    pub certificate: Option<CertificateFacts>,
    /// When it is to be renewed.
    pub renew_at: Option<At>,
    /// The root that vouches for it; none where no trusted root does.
    pub root: Option<RootName>,
    /// Which authority signed it.
    pub source: String,
}

/// Which root it is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RootName {
    /// Its name.
    pub subject: String,
    /// SHA-256 of its certificate, in hexadecimal.
    pub fingerprint: String,
}

/// How an identity's certificate stands, the worst first.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeldState {
    /// There is none yet.
    Missing,
    /// It has expired: no new connection is made with it.
    Expired,
    /// It is not valid yet by this node's clock.
    NotYetValid,
    /// None of the roots that are trusted now vouches for it: peers refuse it.
    Untrusted,
    /// It serves, and the last attempt to renew it failed.
    RenewalFailing,
    /// It serves.
    Ok,
}

/// Files that are read again when they change.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FollowedFile {
    /// What they are to the agent.
    pub what: String,
    /// Where they are.
    pub paths: Vec<String>,
    /// When their content was last taken into use.
    pub loaded_at: Option<At>,
    /// Why the newest content is not in use.
    pub error: Option<String>,
    /// How often content was refused since the start.
    pub failures: u64,
}

impl Inventory {
    /// Takes the inventory of a store.
    pub fn of(store: &SvidStore) -> Self {
        let now = SystemTime::now();
        let bundle = Arc::clone(&store.trust().borrow());
        let held = store.snapshot();
        let mut roots = Vouching::new(&bundle);
        let source = store.source();
        let certificates = held.iter().map(|status| Held::of(status, &source, &mut roots, now)).collect();
        Self {
            source,
            certificates,
            roots: facts(bundle.certificates()),
            intermediates: intermediates(&held),
            files: follow::followed().into_iter().map(FollowedFile::from).collect(),
        }
    }
}

impl Held {
    fn of(status: &SvidStatus, source: &str, roots: &mut Vouching, now: SystemTime) -> Self {
        let SvidStatus { identity, svid, renew_at, error, failures } = status;
        let certificate = svid.as_ref().and_then(|svid| CertificateFacts::read(svid.chain().first()?));
        let root = svid.as_ref().and_then(|svid| roots.of(svid, now));
        let state = match (svid, &root) {
            (None, _) => HeldState::Missing,
            (Some(svid), _) if now > svid.not_after() => HeldState::Expired,
            (Some(svid), _) if now < svid.not_before() => HeldState::NotYetValid,
            (_, None) => HeldState::Untrusted,
            _ if error.is_some() => HeldState::RenewalFailing,
            _ => HeldState::Ok,
        };
        Self {
            identity: identity.to_string(),
            state,
            error: error.as_ref().map(ToString::to_string),
            failures: *failures,
            certificate,
            renew_at: renew_at.map(At),
            root,
            source: source.to_owned(),
        }
    }
}

impl From<FileState> for FollowedFile {
    fn from(state: FileState) -> Self {
        let FileState { what, paths, loaded_at, error, failures } = state;
        Self {
            what: what.to_owned(),
            paths: paths.iter().map(|path| path.display().to_string()).collect(),
            loaded_at: loaded_at.map(At),
            error,
            failures,
        }
    }
}

/// Returns the distinct intermediates of the certificates, the one that expires first at the head, so that a bound
/// drops those that matter least.
pub(super) fn intermediates(held: &[SvidStatus]) -> Vec<CertificateFacts> {
    let chains = held.iter().filter_map(|status| status.svid.as_ref()?.chain().get(1..));
    let distinct: HashSet<&CertificateDer<'_>> = chains.flatten().collect();
    let mut facts: Vec<_> = distinct.into_iter().filter_map(CertificateFacts::read).collect();
    facts.sort_by(|a, b| (a.not_after, &a.fingerprint).cmp(&(b.not_after, &b.fingerprint)));
    facts
}

/// Returns what certificates say of themselves.
pub(super) fn facts(certificates: &[CertificateDer<'_>]) -> Vec<CertificateFacts> {
    certificates.iter().filter_map(CertificateFacts::read).collect()
}

/// Finds the root that vouches for a chain. All chains of one authority end alike, so the answer is kept by the last
/// certificate of a chain.
struct Vouching {
    /// Without revocation lists: one certificate that is revoked says nothing of the others of its authority.
    bundle: TrustBundle,
    known: HashMap<CertificateDer<'static>, Option<RootName>>,
}

impl Vouching {
    fn new(bundle: &TrustBundle) -> Self {
        Self { bundle: bundle.with_lists(Vec::new()), known: HashMap::new() }
    }

    fn of(&mut self, svid: &Svid, now: SystemTime) -> Option<RootName> {
        let (leaf, intermediates) = svid.chain().split_first()?;
        let last = svid.chain().last()?.clone();
        if let Some(known) = self.known.get(&last) {
            return known.clone();
        }
        // One that has expired was vouched for all the same.
        let then = now.min(svid.not_after()).max(svid.not_before());
        let then = UnixTime::since_unix_epoch(then.duration_since(SystemTime::UNIX_EPOCH).ok()?);
        let root = self.bundle.verify(Usage::Client, (leaf, intermediates), then).ok();
        let found = root.and_then(CertificateFacts::read);
        let found =
            found.map(|CertificateFacts { subject, fingerprint, .. }| RootName { subject, fingerprint });
        self.known.insert(last, found.clone());
        found
    }
}
