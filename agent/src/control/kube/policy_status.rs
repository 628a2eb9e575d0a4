//! The status of policies: whether each could be read, what people must know of it, and whether it is for any pod. One
//! agent of the cluster writes it, and only what changed.

mod conditions;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::conditions::{Selection, conditions};
use super::{
    super::{Key, Kind},
    policies::{Policies, Policy},
};
use crate::{
    apiserver::Lease,
    mesh::{PolicyKind, PolicyName, Snapshot},
};

/// Writes the status of policies.
pub struct PolicyStatus {
    client: Client,
    policies: Policies,
    mesh: watch::Receiver<Arc<Snapshot>>,
    namespace: String,
    holder: String,
    /// What could not be written, and when to try again.
    failed: HashMap<Key, Instant>,
}

/// A status that is not what it ought to be.
struct Wrong {
    key: Key,
    policy: Policy,
    conditions: Vec<serde_json::Value>,
}

impl PolicyStatus {
    pub(super) fn new(
        client: Client,
        policies: Policies,
        mesh: watch::Receiver<Arc<Snapshot>>,
        (namespace, holder): (&str, &str),
    ) -> Self {
        let (namespace, holder) = (namespace.to_owned(), holder.to_owned());
        Self { client, policies, mesh, namespace, holder, failed: HashMap::new() }
    }

    /// Writes until `ended`. The Lease is asked for only where something is to be written, and has not been after a while:
    /// else every agent of the cluster would ask for it all the time.
    pub async fn run(mut self, ended: CancellationToken) {
        let mut changed = self.policies.subscribe();
        // What has been listed before.
        changed.mark_changed();
        loop {
            tokio::select! {
                () = ended.cancelled() => return,
                () = async { drop(changed.changed().await) } => {}
                () = sleep(LOOK_AGAIN) => {}
            }
            sleep(PAUSE).await;
            if self.wrong().await.is_empty() {
                continue;
            }
            // Not all agents at once: the first that comes sees to it.
            sleep(PAUSE.mul_f64(rand::random::<f64>() * SPREAD)).await;
            if !self.wrong().await.is_empty() {
                self.lead(ended.child_token()).await;
            }
        }
    }

    /// Writes while this process leads and there is something to write.
    async fn lead(&mut self, ended: CancellationToken) {
        let lease = Lease::new(self.client.clone(), &self.namespace, LEASE, &self.holder);
        let (sender, leading) = watch::channel(false);
        let election = tokio::spawn(lease.lead(sender, ended.clone()));
        while !ended.is_cancelled() {
            let wrong = self.wrong().await;
            if wrong.is_empty() {
                break;
            }
            for wrong in wrong {
                if *leading.borrow() {
                    self.write(wrong).await;
                }
                sleep(BETWEEN).await;
            }
        }
        ended.cancel();
        // The Lease is given up.
        drop(election.await);
    }

    /// Returns what is to be written.
    async fn wrong(&mut self) -> Vec<Wrong> {
        let now = Instant::now();
        self.failed.retain(|_, retry| *retry > now);
        let policies = self.policies.all();
        if policies.is_empty() {
            return Vec::new();
        }
        let snapshot = self.mesh.borrow().clone();
        // Asks every pod, of which there may be many.
        let in_effect = spawn_blocking(move || in_effect(&snapshot)).await.unwrap_or_default();
        let policies = policies.into_iter().filter(|(key, _)| !self.failed.contains_key(key));
        let wrong = policies.filter_map(|(key, policy)| {
            let selection = match in_effect.contains(&name(&key)?) {
                true => Selection::Some,
                false => Selection::None,
            };
            let conditions = conditions(&policy, selection)?;
            Some(Wrong { key, policy, conditions })
        });
        wrong.collect()
    }

    async fn write(&mut self, Wrong { key, policy, conditions }: Wrong) {
        let (group, plural) = key.kind.resource();
        let kind = GroupVersionKind::gvk(group, &policy.api_version, key.kind.as_str());
        let resource = ApiResource::from_gvk_with_plural(&kind, plural);
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &key.namespace, &resource);
        // With the version that was read, so that what somebody else wrote meanwhile is not lost.
        let patch = Patch::Merge(json!({
            "metadata": {"resourceVersion": policy.resource_version},
            "status": {"observedGeneration": policy.generation, "conditions": conditions},
        }));
        let params = PatchParams::default();
        let error = match timeout(LIMIT, api.patch_status(&key.name, &params, &patch)).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("no answer".to_owned()),
        };
        // Until the watch shows what was written, too.
        self.failed.insert(key.clone(), Instant::now() + if error.is_some() { RETRY } else { SETTLE });
        if let Some(error) = error {
            tracing::debug!(policy = %key, error, "the policy's status could not be written");
        }
    }
}

/// The policies that are for any pod.
fn in_effect(snapshot: &Snapshot) -> HashSet<PolicyName> {
    let mut names = HashSet::new();
    let policies = snapshot.policies();
    for pod in snapshot.workloads() {
        let authorization = policies.applicable(pod).into_iter().map(|policy| &policy.name);
        for name in authorization.chain(policies.authenticating(pod).map(|policy| &policy.name)) {
            if !names.contains(name) {
                names.insert(name.clone());
            }
        }
    }
    names
}

fn name(key: &Key) -> Option<PolicyName> {
    let kind = match key.kind {
        Kind::PeerAuthentication => PolicyKind::PeerAuthentication,
        Kind::AuthorizationPolicy => PolicyKind::AuthorizationPolicy,
        _ => return None,
    };
    Some(PolicyName { kind, namespace: key.namespace.as_str().into(), name: key.name.as_str().into() })
}

impl fmt::Debug for PolicyStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyStatus").field("holder", &self.holder).finish_non_exhaustive()
    }
}

const LEASE: &str = "culvert-policy-status";
/// A policy that is being edited is not written about at each keystroke.
const PAUSE: Duration = Duration::from_secs(1);
/// Agents begin within so many pauses of each other.
const SPREAD: f64 = 8.0;
/// How often to look whether a policy has come to be for a pod, or for none.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Between two writes.
const BETWEEN: Duration = Duration::from_millis(100);
const LIMIT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(30);
/// How long the watch may take to show what was written.
const SETTLE: Duration = Duration::from_secs(5);
