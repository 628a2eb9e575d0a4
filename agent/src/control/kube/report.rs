//! What the agent tells the API server of this node's pods: the annotation that says that a pod receives tunnels, and an
//! Event where it cannot be enrolled.

mod events;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use self::events::Events;
use super::super::convert::ENROLLED;
use crate::mesh::{Snapshot, Workload};

/// How a pod of this node is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodReport {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its uid: another pod may bear its name by now.
    pub uid: Arc<str>,
    /// How it is.
    pub state: PodState,
}

/// How a pod is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PodState {
    /// It receives tunnels.
    Enrolled,
    /// It leaves the mesh: nobody is to open a tunnel to it any more.
    Leaving,
    /// It cannot be enrolled, and why.
    Failed(String),
}

/// Tells the API server how this node's pods are.
#[derive(Debug)]
pub struct Reporter {
    client: Client_,
    node: String,
    mesh: watch::Receiver<Arc<Snapshot>>,
    /// None until the pods of the first snapshot have been seen to: what an earlier agent wrote stays until then.
    reports: watch::Receiver<Option<Vec<PodReport>>>,
    /// What was written, or could not be, by the pod's uid; until the watch shows it.
    written: HashMap<Arc<str>, Written>,
    events: Events,
}

/// A client, which has nothing to show.
struct Client_(Client);

#[derive(Debug)]
struct Written {
    enrolled: bool,
    attempts: u32,
    /// Not again before.
    retry: Instant,
}

impl Reporter {
    /// Prepares to tell.
    pub fn new(
        client: Client,
        node: &str,
        mesh: watch::Receiver<Arc<Snapshot>>,
        reports: watch::Receiver<Option<Vec<PodReport>>>,
    ) -> Self {
        let events = Events::new(client.clone(), node);
        let client = Client_(client);
        Self { client, node: node.to_owned(), mesh, reports, written: HashMap::new(), events }
    }

    /// Tells until nobody reports any more.
    pub async fn run(mut self) {
        loop {
            let next = self.tell().await;
            let changed = tokio::select! {
                changed = self.mesh.changed() => changed,
                changed = self.reports.changed() => changed,
                () = sleep_until(next) => Ok(()),
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Brings the annotations in step. Returns when to do so again where nothing changes.
    async fn tell(&mut self) -> Instant {
        let idle = Instant::now() + IDLE;
        let Some(reports) = self.reports.borrow_and_update().clone() else { return idle };
        let snapshot = self.mesh.borrow_and_update().clone();
        let enrolled: HashSet<_> = reports
            .iter()
            .filter(|report| report.state == PodState::Enrolled)
            .map(|report| &report.uid)
            .collect();
        let pods = snapshot.on_node(&self.node).map(|pod| (pod, enrolled.contains(&pod.uid)));
        let mut differing: Vec<_> = pods.filter(|(pod, enrolled)| needs_patch(pod, *enrolled)).collect();
        // Those that leave first: their peers are to stop before their agent does.
        differing.sort_by_key(|(_, enrolled)| *enrolled);
        let uids: HashSet<_> = differing.iter().map(|(pod, _)| Arc::clone(&pod.uid)).collect();
        self.written.retain(|uid, _| uids.contains(uid));
        for (pod, enrolled) in differing {
            self.write(pod, enrolled).await;
        }
        let events = self.events.tell(&reports).await;
        let retries = self.written.values().map(|written| written.retry);
        retries.chain(events).fold(idle, Instant::min)
    }

    /// Writes or removes a pod's annotation, unless that was done a moment ago.
    async fn write(&mut self, pod: &Workload, enrolled: bool) {
        let now = Instant::now();
        let before = self.written.get(&pod.uid).filter(|written| written.enrolled == enrolled);
        if before.is_some_and(|written| written.retry > now) {
            return;
        }
        let attempts = before.map_or(0, |written| written.attempts);
        let patch = timeout(PATCH_LIMIT, self.patch(pod, enrolled)).await;
        let (attempts, delay) = match patch {
            Ok(Ok(())) => {
                tracing::debug!(%pod, enrolled, "the pod's annotation is written");
                (0, SETTLE)
            }
            // Gone, or another pod bears the name: the watch will say so.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409 | 422) => {
                tracing::debug!(%pod, error = status.message, "the pod's annotation is not written: it is gone");
                (0, RETRY_MAX)
            }
            failed => {
                let error = match failed {
                    Ok(error) => error.err().map(|error| error.to_string()).unwrap_or_default(),
                    Err(_) => format!("no answer within {} s", PATCH_LIMIT.as_secs()),
                };
                if attempts == 0 {
                    tracing::warn!(
                        %pod, enrolled, error,
                        "the pod's annotation {ENROLLED} cannot be written; it is tried again (the ClusterRole needs the verb patch of pods/status)"
                    );
                }
                (attempts + 1, RETRY_FIRST.saturating_mul(1 << attempts.min(10)).min(RETRY_MAX))
            }
        };
        let retry = Instant::now() + delay;
        self.written.insert(Arc::clone(&pod.uid), Written { enrolled, attempts, retry });
    }

    async fn patch(&self, pod: &Workload, enrolled: bool) -> Result<(), kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.0.clone(), &pod.namespace);
        let value = enrolled.then_some("true");
        // With the uid the API server refuses where another pod bears the name by now.
        let patch = json!({"metadata": {"uid": &*pod.uid, "annotations": {ENROLLED: value}}});
        // By way of the status, so that the agent needs no right to change a pod itself.
        api.patch_status(&pod.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
    }
}

/// Whether a pod's annotation says something else than how the pod is.
fn needs_patch(pod: &Workload, enrolled: bool) -> bool {
    pod.marked != enrolled.then_some(true)
}

impl std::fmt::Debug for Client_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

/// How long the API server may take for one annotation.
const PATCH_LIMIT: Duration = Duration::from_secs(10);
/// How long the watch may take to show what was written.
const SETTLE: Duration = Duration::from_secs(10);
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// When to look again where nothing changes.
const IDLE: Duration = Duration::from_secs(60);
