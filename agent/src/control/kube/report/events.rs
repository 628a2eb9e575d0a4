//! Events on pods that cannot be enrolled: one for each cause, now and then again while it lasts, and never many at once.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::time::{Instant, timeout};

use super::{PodReport, PodState};

/// Writes Events.
pub(super) struct Events {
    client: Client,
    node: String,
    told: HashMap<Arc<str>, Told>,
    budget: Budget,
}

/// A pod that cannot be enrolled, and what was told of it.
struct Told {
    why: String,
    /// Of this cause alone, since it would repeat its first text with any other. None: nothing was told yet.
    recorder: Option<Recorder>,
    again: Instant,
}

/// How many Events may be written: some at once, then one now and then.
#[derive(Debug)]
struct Budget {
    left: u32,
    refilled: Instant,
}

impl Events {
    pub(super) fn new(client: Client, node: &str) -> Self {
        let budget = Budget { left: BURST, refilled: Instant::now() };
        Self { client, node: node.to_owned(), told: HashMap::new(), budget }
    }

    /// Tells what is new. Returns when there is something to tell again.
    pub(super) async fn tell(&mut self, reports: &[PodReport]) -> Option<Instant> {
        let failed = reports.iter().filter_map(|report| match &report.state {
            PodState::Failed(why) => Some((report, why)),
            PodState::Enrolled | PodState::Leaving => None,
        });
        let failed: Vec<_> = failed.collect();
        let uids: HashSet<_> = failed.iter().map(|(report, _)| &report.uid).collect();
        self.told.retain(|uid, _| uids.contains(uid));
        for (report, why) in failed {
            let now = Instant::now();
            let told = self.told.entry(Arc::clone(&report.uid)).or_insert_with(|| Told {
                why: why.clone(),
                recorder: None,
                again: now + SETTLE,
            });
            if told.why != *why {
                *told = Told { why: why.clone(), recorder: None, again: told.again.min(now + SETTLE) };
            }
            if told.again > now {
                continue;
            }
            let recorder = told.recorder.clone();
            match self.budget.take(now) {
                Ok(()) => self.publish(report, why, recorder).await,
                Err(next) => return Some(next),
            }
        }
        self.told.values().map(|told| told.again).min()
    }

    async fn publish(&mut self, report: &PodReport, why: &str, recorder: Option<Recorder>) {
        let recorder = recorder.unwrap_or_else(|| {
            let instance = Some(self.node.clone());
            Recorder::new(
                self.client.clone(),
                Reporter { controller: "culvert.dev/agent".to_owned(), instance },
            )
        });
        let pod = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(report.namespace.to_string()),
            name: Some(report.name.to_string()),
            uid: Some(report.uid.to_string()),
            ..ObjectReference::default()
        };
        let note = format!("Cannot be enrolled in the mesh: {why}");
        let event = Event {
            type_: EventType::Warning,
            reason: "MeshEnrollmentFailed".to_owned(),
            note: Some(note.chars().take(NOTE).collect()),
            action: "Enroll".to_owned(),
            secondary: None,
        };
        let written = timeout(LIMIT, recorder.publish(&event, &pod)).await;
        let pause = match written {
            Ok(Ok(())) => AGAIN,
            Ok(Err(error)) => {
                tracing::debug!(pod = %report.name, %error, "the Event could not be written");
                RETRY
            }
            Err(_) => RETRY,
        };
        let told = Told { why: why.to_owned(), recorder: Some(recorder), again: Instant::now() + pause };
        self.told.insert(Arc::clone(&report.uid), told);
    }
}

impl Budget {
    /// Takes one, or says when there is one again.
    fn take(&mut self, now: Instant) -> Result<(), Instant> {
        while self.left < BURST && now >= self.refilled + REFILL {
            self.left += 1;
            self.refilled += REFILL;
        }
        if self.left == BURST {
            self.refilled = now;
        }
        self.left = self.left.checked_sub(1).ok_or(self.refilled + REFILL)?;
        Ok(())
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("budget", &self.budget).finish_non_exhaustive()
    }
}

/// Events that may be written at once: a node has some hundred pods, and they may fail for one cause.
const BURST: u32 = 25;
/// Then one in so long.
const REFILL: Duration = Duration::from_secs(5);
/// Every pod that starts has no address, or no sandbox, for a moment.
const SETTLE: Duration = Duration::from_secs(5);
/// A cause that lasts is told again after so long; the API server forgets Events after an hour.
const AGAIN: Duration = Duration::from_secs(600);
/// What could not be written is tried again after so long.
const RETRY: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(10);
/// The API server takes no longer note.
const NOTE: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn budget_gives_a_burst_and_then_one_now_and_then() {
        let start = Instant::now();
        let mut budget = Budget { left: BURST, refilled: start };
        let burst = (0..100).filter(|_| budget.take(start).is_ok()).count();
        assert_eq!(burst, BURST as usize);
        assert_eq!(budget.take(start), Err(start + REFILL));
        assert!(budget.take(start + REFILL).is_ok());
        assert!(budget.take(start + REFILL).is_err());
        let later = start + REFILL * 1000;
        let burst = (0..100).filter(|_| budget.take(later).is_ok()).count();
        assert_eq!(burst, BURST as usize, "what was not used does not add up");
    }
}
