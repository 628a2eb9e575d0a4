//! The task that gets one identity's certificate and renews it for as long as it is wanted.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rand::Rng as _;
use rcgen::KeyPair;
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;
use zeroize::Zeroizing;

use super::{
    ca::{CaError, CertificateAuthority, Csr},
    queue::Queue,
    standing::CLOCK_CHECK,
    store::{Counters, SvidError},
    svid::Svid,
    trust::{Trust, changed},
};
use crate::mesh::Identity;

/// What all keepers of a store share.
pub(super) struct Issuance {
    pub(super) ca: Arc<dyn CertificateAuthority>,
    /// Whom certificates and their peers are judged by.
    pub(super) trust: Trust,
    pub(super) counters: Counters,
    pub(super) queue: Queue,
}

/// The certificate of one identity, kept fresh by a task that ends when this is dropped.
pub(super) struct Keeper {
    state: watch::Receiver<State>,
    wake: Arc<Notify>,
    _task: AbortOnDropHandle<()>,
}

/// What the task has achieved.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// The newest certificate; it may be expired.
    pub(super) svid: Option<Arc<Svid>>,
    /// When the newest certificate is to be renewed.
    pub(super) renew_at: Option<SystemTime>,
    /// Why the last attempt failed; none after a success.
    pub(super) error: Option<Arc<SvidError>>,
    /// Failures since the last success.
    pub(super) failures: u32,
}

impl State {
    /// Whether the first attempt is over.
    pub(super) fn is_known(&self) -> bool {
        self.svid.is_some() || self.error.is_some()
    }
}

impl Keeper {
    /// Starts the task.
    pub(super) fn start(identity: Identity, issuance: Arc<Issuance>) -> Self {
        let (sender, state) = watch::channel(State::default());
        let wake = Arc::new(Notify::new());
        let task = tokio::spawn(keep(identity, issuance, sender, Arc::clone(&wake)));
        Self { state, wake, _task: AbortOnDropHandle::new(task) }
    }

    /// Returns what the task has achieved, now and later.
    pub(super) fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Says that somebody waits for the certificate. A task that waits for its turn passes those that nobody waits for.
    /// One that rests looks at the clock at once: its certificate turned out to be expired, so time has passed that it
    /// did not see, such as while the machine slept.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }
}

/// Which certificate an identity is to get.
#[derive(Clone, Copy, Debug)]
pub(super) enum Attempt {
    /// Its first.
    Issuance,
    /// One in place of another.
    Renewal,
}

impl Attempt {
    fn of(state: &State) -> Self {
        if state.svid.is_some() { Self::Renewal } else { Self::Issuance }
    }
}

async fn keep(identity: Identity, issuance: Arc<Issuance>, state: watch::Sender<State>, wake: Arc<Notify>) {
    let mut generation = issuance.ca.generation();
    loop {
        // Before the request, so that a change during it is not missed.
        generation.mark_unchanged();
        let attempt = Attempt::of(&state.borrow());
        let mut trust = issuance.trust.clone();
        trust.mark_unchanged();
        let obtained = {
            let _turn = issuance.queue.turn(&wake).await;
            obtain(&identity, &*issuance.ca, issuance.trust.clone()).await
        };
        match obtained {
            Ok(svid) => {
                issuance.counters.issued(attempt);
                let svid = Arc::new(svid);
                let renew_at = renewal(&svid, SystemTime::now(), rand::rng().random_range(0.0..JITTER));
                tracing::info!(%identity, serial = svid.serial(), not_after = %rfc3339(svid.not_after()), "certificate issued");
                state.send_replace(State {
                    svid: Some(Arc::clone(&svid)),
                    renew_at: Some(renew_at),
                    ..State::default()
                });
                tokio::select! {
                    () = rest(&svid, renew_at, &wake, &mut trust) => continue,
                    () = reissued(&mut generation) => {}
                }
                let soon = replacement(&svid, SystemTime::now(), rand::rng().random_range(0.0..1.0));
                let renew_at = renew_at.min(soon);
                tracing::info!(%identity, renew_at = %rfc3339(renew_at), "another issuer signs from now on: the certificate is renewed soon");
                state.send_modify(|state| state.renew_at = Some(renew_at));
                rest(&svid, renew_at, &wake, &mut trust).await;
            }
            Err(error) => {
                issuance.counters.failed(attempt, &error);
                let failures = state.borrow().failures.saturating_add(1);
                let pause = back_off(failures, rand::rng().random_range(0.5..1.0));
                tracing::warn!(%identity, %error, failures, retry_in = %humantime::format_duration(whole(pause)), "no certificate");
                state.send_modify(|state| {
                    state.error = Some(Arc::new(error));
                    state.failures = failures;
                });
                sleep(pause).await;
            }
        }
    }
}

/// Makes a new key and has it certified. Each certificate has a key of its own, so that a leaked one is of use for one
/// lifetime at most.
async fn obtain(identity: &Identity, ca: &dyn CertificateAuthority, trust: Trust) -> Result<Svid, SvidError> {
    let authority = |source| SvidError::Authority { identity: identity.clone(), source: Arc::new(source) };
    let key = KeyPair::generate().map(Zeroizing::new).map_err(|error| authority(error.into()))?;
    let csr = Csr::new(identity, &key).map_err(|error| authority(error.into()))?;
    let issued = timeout(SIGN_TIMEOUT, ca.sign(&csr, identity))
        .await
        .unwrap_or(Err(CaError::Timeout(SIGN_TIMEOUT)))
        .map_err(authority)?;
    Svid::new(identity, &key, issued, trust)
        .map_err(|source| SvidError::Rejected { identity: identity.clone(), source })
}

/// Waits until the certificate is due for renewal by the wall clock, or is trusted no more: its root was removed, or an
/// authority in its chain revoked. The runtime's clock stands still while the machine sleeps, and the wall clock can be
/// set: so no wait is longer than [`CLOCK_CHECK`].
async fn rest(svid: &Svid, renew_at: SystemTime, wake: &Notify, trust: &mut Trust) {
    while let Some(left) = until_due(svid, renew_at, SystemTime::now()) {
        tokio::select! {
            () = sleep(left.min(CLOCK_CHECK)) => {}
            () = wake.notified() => {}
            () = changed(trust) => if let Err(error) = svid.check() {
                let identity = svid.identity();
                tracing::warn!(
                    %identity, serial = svid.serial(), %error, "the certificate is no longer trusted: it is renewed"
                );
                return;
            }
        }
    }
}

/// Waits until the authority signs with another issuer.
async fn reissued(generation: &mut watch::Receiver<u64>) {
    if generation.changed().await.is_err() {
        // It never will.
        std::future::pending::<()>().await;
    }
}

/// When a certificate is replaced whose issuer was replaced: within a minute or a tenth of what is left of its life, the
/// moment left to `chance` (0 to 1), so that the certificates of a mesh are not all renewed at once.
fn replacement(svid: &Svid, now: SystemTime, chance: f64) -> SystemTime {
    let left = svid.not_after().duration_since(now).unwrap_or_default();
    now + (left / 10).min(REPLACED_WITHIN).mul_f64(chance)
}

/// How long a certificate can still be used; none where it is due for renewal.
fn until_due(svid: &Svid, renew_at: SystemTime, now: SystemTime) -> Option<Duration> {
    // A clock that was set back: peers with the right time call this certificate not yet valid.
    if now < svid.not_before() {
        return None;
    }
    renew_at.duration_since(now).ok().filter(|left| !left.is_zero())
}

/// When a certificate that was issued at `now` is renewed: at half of what is left of its life, less `jitter` (0 to 1)
/// of that, so that the certificates of a node that started with many pods are not renewed at one moment for ever.
fn renewal(svid: &Svid, now: SystemTime, jitter: f64) -> SystemTime {
    let left = svid.not_after().duration_since(now).unwrap_or_default();
    now + (left / 2).mul_f64(1.0 - jitter).max(MIN_REST)
}

/// How long to wait after a number of failures in a row: twice as long each time, times `spread`.
pub(super) fn back_off(failures: u32, spread: f64) -> Duration {
    let doubled = FIRST_RETRY.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(MAX_RETRY).mul_f64(spread)
}

fn whole(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

fn rfc3339(time: SystemTime) -> impl std::fmt::Display {
    humantime::format_rfc3339_seconds(time)
}

/// How long an authority may take. A pod that starts waits for it.
const SIGN_TIMEOUT: Duration = Duration::from_secs(10);
/// The first pause after a failure.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// The longest pause: an authority that came back is found within half a minute, out of twelve hours.
const MAX_RETRY: Duration = Duration::from_secs(30);
/// Bounds the rate of renewals where an authority gives out certificates that are about to expire.
const MIN_REST: Duration = Duration::from_secs(1);
/// How soon certificates of a replaced issuer are renewed.
const REPLACED_WITHIN: Duration = Duration::from_secs(60);
/// The part of the time to renewal that is left to chance.
const JITTER: f64 = 0.1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::{HOUR, TestRoot, WEB, identity, leaf};

    /// An SVID that is valid from an hour ago until an hour from now.
    fn svid() -> Svid {
        let (root, key) = (TestRoot::new("test root"), KeyPair::generate().unwrap());
        let chain = vec![root.sign(&leaf(WEB), &key)];
        Svid::new(&identity(WEB), &key, crate::identity::Issued { chain }, root.trust()).unwrap()
    }

    #[test]
    fn renewed_at_half_of_what_is_left_or_a_little_earlier() {
        let svid = svid();
        let issued = svid.not_after() - HOUR;
        assert_eq!(renewal(&svid, issued, 0.0), issued + HOUR / 2);
        assert_eq!(renewal(&svid, issued, 0.1), issued + HOUR / 2 - HOUR / 20);
    }

    #[test]
    fn certificate_that_is_about_to_expire_does_not_spin() {
        let svid = svid();
        assert_eq!(renewal(&svid, svid.not_after(), 0.0), svid.not_after() + MIN_REST);
    }

    #[test]
    fn due_by_the_wall_clock_also_where_it_was_set_back() {
        let svid = svid();
        let now = SystemTime::now();
        assert_eq!(until_due(&svid, now + HOUR, now), Some(HOUR));
        assert_eq!(until_due(&svid, now, now), None);
        assert_eq!(until_due(&svid, now, now + HOUR), None);
        assert_eq!(until_due(&svid, now + HOUR, svid.not_before() - HOUR), None);
    }

    #[test]
    fn pauses_double_up_to_a_bound() {
        let pauses: Vec<_> =
            [1, 2, 3, 8, 100, u32::MAX].map(|failures| back_off(failures, 1.0).as_millis()).into();
        assert_eq!(pauses, [250, 500, 1000, 30_000, 30_000, 30_000]);
    }
}
