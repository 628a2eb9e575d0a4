//! Which of several processes leads, by a Lease (`coordination.k8s.io/v1`), with the rules and times of client-go's
//! leader election.
//!
//! Clocks are never compared: a lease is over when its record has not changed for its duration, by the clock of who
//! looks. Writes carry the version that was read, so of two that take an abandoned lease at once one fails.

use std::{
    mem,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::coordination::v1::{Lease as Object, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// A process's part in an election.
#[derive(Debug)]
pub struct Lease {
    leases: Api<Object>,
    namespace: String,
    name: String,
    holder: String,
    /// The object as it was last seen, and when it was first seen so.
    seen: Option<(Object, Instant)>,
    /// Until when nobody else can have taken the lease, as long as this process has it.
    until: Option<Instant>,
    failing: bool,
}

/// What is to be done about a lease.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    /// It is ours, and is to be renewed.
    Renew,
    /// It is nobody's, or was not renewed in time.
    Take,
    /// Somebody else has it.
    Wait,
}

/// What one attempt found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Found {
    /// The lease is ours, written just now.
    Ours,
    /// Somebody else has it.
    Others,
    /// Somebody wrote in between: whose it is will be seen next time.
    Changed,
}

/// Why one attempt failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("the API server did not answer within {}", humantime::format_duration(REQUEST_LIMIT))]
    Timeout(#[from] tokio::time::error::Elapsed),
}

impl Lease {
    /// Makes the part of `holder`, which must be another name for each process, in the election by the Lease `name`.
    pub fn new(client: Client, namespace: &str, name: &str, holder: &str) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            holder: holder.to_owned(),
            seen: None,
            until: None,
            failing: false,
        }
    }

    /// Takes part until `ended`, and keeps `leading` at whether this process leads. Then gives the lease up, so that
    /// another process leads at once.
    ///
    /// While the API server cannot be reached a leader leads for [`RENEW_DEADLINE`] more, which is over before anybody
    /// else may take the lease.
    pub async fn lead(mut self, leading: watch::Sender<bool>, ended: CancellationToken) {
        loop {
            let attempt = Instant::now();
            let outcome = tokio::select! {
                () = ended.cancelled() => break,
                outcome = self.attempt() => outcome,
            };
            self.note(outcome, attempt);
            self.publish(&leading);
            let pause = RETRY_PERIOD.mul_f64(1.0 + rand::random::<f64>() * JITTER);
            // A leader whose time ends during the pause stops in time, and not at the next attempt.
            tokio::select! {
                () = ended.cancelled() => break,
                () = sleep(self.at_most(pause)) => self.publish(&leading),
            }
        }
        let led = self.until.take().is_some();
        self.publish(&leading);
        if led {
            self.release().await;
        }
    }

    /// Cuts a time short where this process leads, and that would be over before.
    fn at_most(&self, time: Duration) -> Duration {
        self.until.map_or(time, |until| until.saturating_duration_since(Instant::now()).min(time))
    }

    async fn attempt(&mut self) -> Result<Found, Failure> {
        timeout(self.at_most(REQUEST_LIMIT), self.look()).await?
    }

    /// Looks at the lease, and does what follows from it.
    async fn look(&mut self) -> Result<Found, Failure> {
        // A leader renews what it wrote last; where that was changed meanwhile, the server says so.
        let found = match (&self.until, &self.seen) {
            (Some(_), Some((object, _))) => Some(object.clone()),
            _ => self.leases.get_opt(&self.name).await?,
        };
        let Some(object) = found else {
            let new = Object {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                spec: Some(taken(None, &self.holder)),
            };
            return self.wrote(self.leases.create(&PostParams::default(), &new).await);
        };
        let unchanged = self.observe(&object).elapsed();
        let before = object.spec.clone().unwrap_or_default();
        let spec = match step(&before, &self.holder, unchanged) {
            Step::Wait => return Ok(Found::Others),
            Step::Renew => LeaseSpec { renew_time: Some(now()), ..taken_by_us(before) },
            Step::Take => taken(Some(&before), &self.holder),
        };
        let new = Object { spec: Some(spec), ..object };
        self.wrote(self.leases.replace(&self.name, &PostParams::default(), &new).await)
    }

    /// Notes the object, and returns since when it is as it is.
    fn observe(&mut self, object: &Object) -> Instant {
        match &self.seen {
            Some((before, since)) if before.spec == object.spec => *since,
            _ => {
                let now = Instant::now();
                self.seen = Some((object.clone(), now));
                now
            }
        }
    }

    fn wrote(&mut self, outcome: kube::Result<Object>) -> Result<Found, Failure> {
        match outcome {
            Ok(object) => {
                self.seen = Some((object, Instant::now()));
                Ok(Found::Ours)
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                self.seen = None;
                Ok(Found::Changed)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn note(&mut self, outcome: Result<Found, Failure>, attempt: Instant) {
        match outcome {
            Ok(found) => {
                if mem::take(&mut self.failing) {
                    tracing::info!(
                        namespace = self.namespace,
                        lease = self.name,
                        "the lease can be used again"
                    );
                }
                match found {
                    Found::Ours => self.until = Some(attempt + RENEW_DEADLINE),
                    Found::Others => self.until = None,
                    Found::Changed => {}
                }
            }
            Err(error) => {
                // What was written before the failure is not known.
                if self.until.is_some() {
                    self.seen = None;
                }
                if !mem::replace(&mut self.failing, true) {
                    tracing::warn!(namespace = self.namespace, lease = self.name, %error, "the lease cannot be used: it is tried again every {RETRY_PERIOD:?}");
                }
            }
        }
    }

    fn publish(&mut self, leading: &watch::Sender<bool>) {
        self.until = self.until.filter(|until| Instant::now() < *until);
        let leads = self.until.is_some();
        let changed = leading.send_if_modified(|was| mem::replace(was, leads) != leads);
        if changed {
            let (namespace, lease, holder) = (&self.namespace, &self.name, &self.holder);
            tracing::info!(
                namespace,
                lease,
                holder,
                "this process {}",
                if leads { "leads" } else { "leads no more" }
            );
        }
    }

    /// Writes that nobody has the lease. Where that fails, it is over by itself.
    async fn release(&mut self) {
        let Some((object, _)) = self.seen.take() else { return };
        let before = object.spec.clone().unwrap_or_default();
        let spec = LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            renew_time: Some(now()),
            ..before
        };
        let new = Object { spec: Some(spec), ..object };
        let params = PostParams::default();
        let replacing = self.leases.replace(&self.name, &params, &new);
        if let Err(error) =
            timeout(RELEASE_LIMIT, replacing).await.map_err(Failure::from).and_then(|it| Ok(it?))
        {
            tracing::warn!(namespace = self.namespace, lease = self.name, %error, "the lease was not given up: it ends by itself");
        }
    }
}

/// Decides what is to be done about a lease whose record has been the same for `unchanged`.
fn step(record: &LeaseSpec, holder: &str, unchanged: Duration) -> Step {
    match record.holder_identity.as_deref() {
        None | Some("") => Step::Take,
        Some(other) if other == holder => Step::Renew,
        Some(_) => {
            let seconds = record.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            let duration = seconds.map_or(LEASE_DURATION, Duration::from_secs).min(MAX_DURATION);
            if unchanged < duration { Step::Wait } else { Step::Take }
        }
    }
}

/// Returns a record of a new holder.
fn taken(before: Option<&LeaseSpec>, holder: &str) -> LeaseSpec {
    let transitions =
        before.map_or(0, |before| before.lease_transitions.unwrap_or_default().saturating_add(1));
    taken_by_us(LeaseSpec {
        acquire_time: Some(now()),
        renew_time: Some(now()),
        holder_identity: Some(holder.to_owned()),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    })
}

fn taken_by_us(spec: LeaseSpec) -> LeaseSpec {
    let seconds = i32::try_from(LEASE_DURATION.as_secs()).unwrap_or(i32::MAX);
    LeaseSpec { lease_duration_seconds: Some(seconds), ..spec }
}

fn now() -> MicroTime {
    MicroTime(Timestamp::now())
}

/// How long others wait for a leader that does not renew. This and the next two are client-go's defaults in Kubernetes'
/// own components (`k8s.io/component-base/config/v1alpha1`).
const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How long a leader leads after the last renewal that succeeded.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often it is tried to take or to renew the lease.
const RETRY_PERIOD: Duration = Duration::from_secs(2);
/// By how much of the period a pause is longer, at random.
const JITTER: f64 = 0.2;
/// How long one attempt may take: two of them fit before the deadline.
const REQUEST_LIMIT: Duration = Duration::from_secs(4);
/// How long giving up the lease may take, as the process ends.
const RELEASE_LIMIT: Duration = Duration::from_secs(2);
/// The longest that another's record may ask to be waited for.
const MAX_DURATION: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn record(holder: Option<&str>, seconds: Option<i32>) -> LeaseSpec {
        LeaseSpec {
            holder_identity: holder.map(str::to_owned),
            lease_duration_seconds: seconds,
            lease_transitions: Some(3),
            ..LeaseSpec::default()
        }
    }

    fn check(holder: Option<&str>, seconds: Option<i32>, unchanged: u64, expected: Step) {
        let found = step(&record(holder, seconds), "me", Duration::from_secs(unchanged));
        assert_eq!(found, expected, "{holder:?}, {seconds:?} s, unchanged for {unchanged} s");
    }

    #[test]
    fn a_lease_is_anothers_until_its_record_has_not_changed_for_its_duration() {
        check(Some("other"), Some(15), 14, Step::Wait);
        check(Some("other"), Some(15), 15, Step::Take);
        check(Some("other"), Some(5), 5, Step::Take);
        check(Some("other"), None, 14, Step::Wait);
        check(Some("other"), Some(-1), 14, Step::Wait);
        check(Some("other"), None, 15, Step::Take);
        // Nobody locks the lease for ever by a large number.
        check(Some("other"), Some(i32::MAX), 60, Step::Take);
    }

    #[test]
    fn a_lease_that_was_given_up_is_taken_at_once_and_ones_own_renewed() {
        check(None, None, 0, Step::Take);
        check(Some(""), Some(1), 0, Step::Take);
        check(Some("me"), Some(15), 0, Step::Renew);
        check(Some("me"), Some(15), 100, Step::Renew);
    }

    #[test]
    fn a_new_holder_is_a_transition_and_the_first_is_none() {
        assert_eq!(taken(None, "me").lease_transitions, Some(0));
        let after = taken(Some(&record(Some("other"), Some(1))), "me");
        assert_eq!(after.lease_transitions, Some(4));
        assert_eq!(after.holder_identity.as_deref(), Some("me"));
        assert_eq!(after.lease_duration_seconds, Some(15));
        assert!(after.acquire_time.is_some() && after.renew_time.is_some());
    }
}
