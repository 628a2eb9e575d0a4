//! The certificates of this node as they are shown: what each workload has, the authorities above it, and what is
//! wrong. No key material.
//!
//! The types are both ends of one page: the agent writes them as JSON, `culvert certs` reads them. docs/operations.md
//! names the fields, which are stable.

use std::{collections::HashSet, sync::Arc, time::SystemTime};

use rustls::pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};

use super::{
    FileState, IdentityRefusal, SvidStatus, SvidStore, TlsError, Usage, at::At,
    certificate::CertificateFacts, crl::Crl, follow, svid::Svid, trust::TrustBundle,
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
    /// The revocation lists.
    pub revocation_lists: Vec<RevocationList>,
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
    /// It, or the authority that signed it, is on a revocation list: peers refuse it.
    Revoked,
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

/// A revocation list.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RevocationList {
    /// The authority whose list it is.
    pub issuer: String,
    /// How many certificates it revokes.
    pub revoked: usize,
    /// When the next one is due.
    pub next_update: At,
    /// Whether the next one is overdue.
    pub outdated: bool,
    /// Whether it is known that its issuer signed it; it revokes nothing until then.
    pub verified: bool,
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
        let source = store.source();
        let certificates = held.iter().map(|status| Held::of(status, &source, &bundle, now)).collect();
        Self {
            source,
            certificates,
            roots: facts(bundle.certificates()),
            intermediates: intermediates(&held),
            revocation_lists: bundle.lists().iter().map(|list| RevocationList::of(list, now)).collect(),
            files: follow::followed().into_iter().map(FollowedFile::from).collect(),
        }
    }
}

impl Held {
    fn of(status: &SvidStatus, source: &str, bundle: &TrustBundle, now: SystemTime) -> Self {
        let SvidStatus { identity, svid, renew_at, error, failures } = status;
        let certificate = svid.as_ref().and_then(|svid| CertificateFacts::read(svid.chain().first()?));
        let verdict = svid.as_ref().map(|svid| verdict(svid, bundle, now));
        let state = match (svid, &verdict) {
            (None, _) | (_, None) => HeldState::Missing,
            (_, Some(Err(TlsError::Revoked | TlsError::RevokedAuthority { .. }))) => HeldState::Revoked,
            (Some(svid), _) if now > svid.not_after() => HeldState::Expired,
            (Some(svid), _) if now < svid.not_before() => HeldState::NotYetValid,
            (_, Some(Err(_))) => HeldState::Untrusted,
            _ if error.is_some() => HeldState::RenewalFailing,
            _ => HeldState::Ok,
        };
        let root = verdict.and_then(Result::ok);
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

impl RevocationList {
    fn of(list: &Crl, now: SystemTime) -> Self {
        Self {
            issuer: list.issuer.clone(),
            revoked: list.revoked,
            next_update: At(list.next_update),
            outdated: list.is_outdated(now),
            verified: list.is_verified(),
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

/// Asks as a peer does who vouches for a certificate.
fn verdict(svid: &Svid, bundle: &TrustBundle, now: SystemTime) -> Result<RootName, TlsError> {
    let (leaf, intermediates) = svid.chain().split_first().ok_or(IdentityRefusal::Unreadable)?;
    // One that has expired was vouched for all the same.
    let then = now.min(svid.not_after()).max(svid.not_before());
    let then = UnixTime::since_unix_epoch(then.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    let root = bundle.verify(Usage::Client, (leaf, intermediates), then)?;
    let CertificateFacts { subject, fingerprint, .. } =
        CertificateFacts::read(root).ok_or(IdentityRefusal::Unreadable)?;
    Ok(RootName { subject, fingerprint })
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering::Relaxed},
        time::Duration,
    };

    use rcgen::CertificateSigningRequestParams;
    use tokio::sync::watch;

    use super::*;
    use crate::{
        identity::{
            CaError, CertificateAuthority, Csr, Issued, Trust,
            ca::Signing,
            testing::{TestRoot, WEB, identity, leaf},
        },
        mesh::Identity,
    };

    /// An authority that can be told to refuse, and whose root can be taken out of the bundle.
    #[derive(Debug)]
    struct Moody {
        root: TestRoot,
        trust: watch::Sender<Arc<TrustBundle>>,
        refuses: AtomicBool,
        lifetime: Duration,
    }

    impl Moody {
        fn new(lifetime: Duration) -> Arc<Self> {
            let root = TestRoot::new("test root");
            let (trust, _) = watch::channel(Arc::clone(&root.trust().borrow()));
            Arc::new(Self { root, trust, refuses: AtomicBool::new(false), lifetime })
        }
    }

    impl CertificateAuthority for Moody {
        fn sign<'a>(&'a self, csr: &'a Csr, identity: &'a Identity) -> Signing<'a> {
            Box::pin(async move {
                if self.refuses.load(Relaxed) {
                    return Err(CaError::Expired(SystemTime::UNIX_EPOCH));
                }
                let key = CertificateSigningRequestParams::from_der(csr.der())?.public_key;
                let mut params = leaf(&identity.to_string());
                params.not_after = (SystemTime::now() + self.lifetime).into();
                Ok(Issued { chain: vec![self.root.sign(&params, &key)] })
            })
        }

        fn source(&self) -> String {
            "moody".to_owned()
        }

        fn trust(&self) -> Trust {
            self.trust.subscribe()
        }
    }

    fn store(ca: &Arc<Moody>) -> SvidStore {
        SvidStore::new(Arc::clone(ca) as Arc<dyn CertificateAuthority>)
    }

    /// Waits until the store's only identity stands like this.
    async fn until(store: &SvidStore, state: HeldState) -> Held {
        let found = async {
            loop {
                if let Some(held) = Inventory::of(store).certificates.pop().filter(|held| held.state == state)
                {
                    return held;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), found).await.expect("the certificate stands like this")
    }

    #[tokio::test]
    async fn a_certificate_that_serves_is_shown_with_its_root() {
        let ca = Moody::new(Duration::from_secs(3600));
        let store = store(&ca);
        store.svid(&identity(WEB)).await.unwrap();
        let held = until(&store, HeldState::Ok).await;
        let facts = held.certificate.unwrap();
        assert_eq!(
            (held.identity.as_str(), facts.issuer.as_str(), held.source.as_str()),
            (WEB, "CN=test root", "moody")
        );
        assert_eq!(held.root.unwrap().subject, "CN=test root");
        assert!(held.renew_at.unwrap() < facts.not_after);
        let inventory = Inventory::of(&store);
        assert_eq!((inventory.roots.len(), inventory.intermediates.len()), (1, 0));
    }

    #[tokio::test]
    async fn one_whose_renewal_fails_says_why_until_it_has_expired() {
        // Half of it is longer than a machine stands still.
        let ca = Moody::new(Duration::from_secs(12));
        let store = store(&ca);
        store.svid(&identity(WEB)).await.unwrap();
        ca.refuses.store(true, Relaxed);
        let held = until(&store, HeldState::RenewalFailing).await;
        assert!(held.error.unwrap().contains("expired at 1970") && held.failures > 0);
        let held = until(&store, HeldState::Expired).await;
        assert!(held.root.is_some() && held.error.is_some());
        ca.refuses.store(false, Relaxed);
        assert_eq!(until(&store, HeldState::Ok).await.failures, 0);
    }

    #[tokio::test]
    async fn one_that_was_never_issued_is_missing() {
        let ca = Moody::new(Duration::from_secs(3600));
        ca.refuses.store(true, Relaxed);
        let store = store(&ca);
        store.svid(&identity(WEB)).await.unwrap_err();
        let held = until(&store, HeldState::Missing).await;
        assert!(held.certificate.is_none() && held.renew_at.is_none() && held.error.is_some());
    }

    #[tokio::test]
    async fn one_whose_root_is_trusted_no_more_is_untrusted() {
        let ca = Moody::new(Duration::from_secs(3600));
        let store = store(&ca);
        store.svid(&identity(WEB)).await.unwrap();
        // Of the same name, so that the name alone does not tell.
        let other = TestRoot::new("test root");
        ca.trust.send_replace(Arc::clone(&other.trust().borrow()));
        let held = until(&store, HeldState::Untrusted).await;
        assert_eq!(held.root, None);
    }
}
