//! The certificates of the node's workloads: each is got once, however many ask, and kept fresh.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use humantime::format_rfc3339_seconds as rfc3339;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::{
    ca::{CaError, CertificateAuthority},
    keeper::{Attempt, Issuance, Keeper, State},
    queue::Queue,
    svid::{Rejected, Svid},
    trust::Trust,
};
use crate::mesh::{Identity, Reason};

/// The certificates of the node's workloads. Cheap to clone; all clones are one store.
///
/// It holds one entry an identity that was asked for and not yet given up by [`Self::retain`]: as many as the pods of
/// the node have service accounts.
#[derive(Clone)]
pub struct SvidStore(Arc<Inner>);

struct Inner {
    issuance: Arc<Issuance>,
    keepers: Mutex<HashMap<Identity, Keeper>>,
}

/// What the store knows of one identity's certificate; no key material.
#[derive(Clone, Debug)]
pub struct SvidStatus {
    /// Whose certificate it is.
    pub identity: Identity,
    /// The newest certificate; it may be expired. None before the first success.
    pub svid: Option<Arc<Svid>>,
    /// When it is to be renewed.
    pub renew_at: Option<SystemTime>,
    /// Why the last attempt failed; none after a success.
    pub error: Option<Arc<SvidError>>,
    /// Failures since the last success.
    pub failures: u32,
}

/// Why there is no certificate.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SvidError {
    /// The authority did not sign.
    #[error("no certificate for {identity}: {source}")]
    Authority {
        /// Who was to get one.
        identity: Identity,
        /// Why.
        source: Arc<CaError>,
    },
    /// The authority returned what cannot be used.
    #[error("no certificate for {identity}: {source}")]
    Rejected {
        /// Who was to get one.
        identity: Identity,
        /// What is wrong with it.
        source: Rejected,
    },
    /// The certificate is not valid at this time, and there is no new one yet.
    #[error(
        "the certificate of {identity} is valid from {} to {} only, and not renewed{}",
        rfc3339(*.not_before),
        rfc3339(*.not_after),
        .cause.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default()
    )]
    Expired {
        /// Whose it is.
        identity: Identity,
        /// When it became valid.
        not_before: SystemTime,
        /// When it expired.
        not_after: SystemTime,
        /// Why the last renewal failed, if one did.
        cause: Option<Arc<Self>>,
    },
    /// Nobody on this node has the identity any more.
    #[error("no certificate for {0}: no pod of this node has that identity any more")]
    Forgotten(Identity),
}

impl SvidError {
    /// Returns the reason for the access log and the metrics.
    pub fn reason(&self) -> Reason {
        Reason::NoCertificate
    }
}

impl SvidStore {
    /// Makes an empty store that has its certificates signed by `ca`, and trusts whom `ca` does.
    pub fn new(ca: Arc<dyn CertificateAuthority>) -> Self {
        let trust = ca.trust();
        Self::with_trust(ca, trust)
    }

    /// Makes an empty store that has its certificates signed by `ca`; they and their peers are judged by `trust`.
    pub fn with_trust(ca: Arc<dyn CertificateAuthority>, trust: Trust) -> Self {
        let issuance = Issuance { ca, trust, counters: Counters::default(), queue: Queue::default() };
        Self(Arc::new(Inner { issuance: Arc::new(issuance), keepers: Mutex::default() }))
    }

    /// Returns the trust in force, now and later.
    pub fn trust(&self) -> Trust {
        self.0.issuance.trust.clone()
    }

    /// Returns the certificate of `identity`. The first call for an identity has it signed, in a task that renews it at
    /// half of its life until [`Self::retain`] gives it up; concurrent calls wait for that one request.
    ///
    /// Waits for the first attempt only, ahead of those that [`Self::prefetch`] began; the authority must answer it within
    /// ten seconds. While attempts fail they
    /// are repeated in the background, from a quarter of a second to half a minute apart, and calls return the last
    /// failure at once. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// Where the authority did not sign, what it returned is not usable, or the certificate expired unrenewed.
    pub async fn svid(&self, identity: &Identity) -> Result<Arc<Svid>, SvidError> {
        let mut receiver = self.subscribe(identity);
        if !receiver.borrow().is_known()
            && let Some(keeper) = self.keepers().get(identity)
        {
            keeper.wake();
        }
        let state = match receiver.wait_for(State::is_known).await {
            Ok(state) => state.clone(),
            Err(_) => return Err(SvidError::Forgotten(identity.clone())),
        };
        usable(identity, &state, SystemTime::now()).inspect_err(|error| {
            if matches!(error, SvidError::Expired { .. })
                && let Some(keeper) = self.keepers().get(identity)
            {
                keeper.wake();
            }
        })
    }

    /// Has the certificate of `identity` signed in the background, so that the first connection finds it there.
    pub fn prefetch(&self, identity: &Identity) {
        drop(self.subscribe(identity));
    }

    /// Gives up the certificates of all identities but these, and their renewal. Connections that are open keep theirs.
    pub fn retain(&self, wanted: &HashSet<Identity>) {
        self.keepers().retain(|identity, _| wanted.contains(identity));
    }

    /// Returns what there is, ordered by identity.
    pub fn snapshot(&self) -> Vec<SvidStatus> {
        let mut all: Vec<_> = self
            .keepers()
            .iter()
            .map(|(identity, keeper)| {
                let State { svid, renew_at, error, failures } = keeper.state().borrow().clone();
                SvidStatus { identity: identity.clone(), svid, renew_at, error, failures }
            })
            .collect();
        all.sort_by(|a, b| a.identity.cmp(&b.identity));
        all
    }

    /// Registers `culvert_certificate_requests` (a counter, by `result`: `issued`, `failed`, `rejected`; and by `kind`:
    /// `issuance` for an identity's first certificate, `renewal`).
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "culvert_certificate_requests",
            "Certificates asked of the authority, by result and kind",
            self.0.issuance.counters.requests.clone(),
        );
    }

    /// Returns which authority signs: its kind and where it is.
    pub fn source(&self) -> String {
        self.0.issuance.ca.source()
    }

    /// Returns when the authority last signed something that is usable; none before the first time.
    pub fn last_success(&self) -> Option<Instant> {
        self.0.issuance.counters.last_success()
    }

    fn subscribe(&self, identity: &Identity) -> tokio::sync::watch::Receiver<State> {
        let mut keepers = self.keepers();
        if let Some(keeper) = keepers.get(identity) {
            return keeper.state();
        }
        let keeper = Keeper::start(identity.clone(), Arc::clone(&self.0.issuance));
        let state = keeper.state();
        keepers.insert(identity.clone(), keeper);
        state
    }

    fn keepers(&self) -> MutexGuard<'_, HashMap<Identity, Keeper>> {
        self.0.keepers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for SvidStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SvidStore").field("ca", &self.0.issuance.ca).finish_non_exhaustive()
    }
}

/// The certificate in `state`, if it can be used at `now`.
fn usable(identity: &Identity, state: &State, now: SystemTime) -> Result<Arc<Svid>, SvidError> {
    match (&state.svid, &state.error) {
        (Some(svid), _) if svid.is_valid_at(now) => Ok(Arc::clone(svid)),
        (Some(svid), error) => Err(SvidError::Expired {
            identity: identity.clone(),
            not_before: svid.not_before(),
            not_after: svid.not_after(),
            cause: error.clone(),
        }),
        (None, Some(error)) => Err((**error).clone()),
        (None, None) => Err(SvidError::Forgotten(identity.clone())),
    }
}

/// How the requests to the authority ended.
#[derive(Debug)]
pub(super) struct Counters {
    requests: Family<ResultLabel, Counter>,
    last_success: Mutex<Option<Instant>>,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
    kind: &'static str,
}

impl ResultLabel {
    fn new(result: &'static str, attempt: Attempt) -> Self {
        let kind = match attempt {
            Attempt::Issuance => "issuance",
            Attempt::Renewal => "renewal",
        };
        Self { result, kind }
    }
}

impl Default for Counters {
    /// All at zero: a rate over a counter that is absent is no rate.
    fn default() -> Self {
        let family = Family::default();
        for result in ["issued", "failed", "rejected"] {
            for attempt in [Attempt::Issuance, Attempt::Renewal] {
                drop(family.get_or_create(&ResultLabel::new(result, attempt)));
            }
        }
        Self { requests: family, last_success: Mutex::default() }
    }
}

impl Counters {
    /// Counts a certificate that is in use now.
    pub(super) fn issued(&self, attempt: Attempt) {
        self.requests.get_or_create(&ResultLabel::new("issued", attempt)).inc();
        *self.last_success.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Counts an attempt that failed.
    pub(super) fn failed(&self, attempt: Attempt, error: &SvidError) {
        let result = if matches!(error, SvidError::Rejected { .. }) { "rejected" } else { "failed" };
        self.requests.get_or_create(&ResultLabel::new(result, attempt)).inc();
    }

    fn last_success(&self) -> Option<Instant> {
        *self.last_success.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
