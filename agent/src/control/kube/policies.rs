//! The policies as the API server has them: what their status says, and what people must know about them. What they mean is
//! the index's.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;
use tokio::sync::watch;

use super::super::{Key, Kind, Object, Record, Severity, convert::Content, lint};
use crate::mesh::TrustDomain;

/// The policies of the API server. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Policies {
    policies: Arc<Mutex<BTreeMap<Key, Policy>>>,
    changed: watch::Sender<()>,
    trust_domain: TrustDomain,
}

/// A policy as the API server has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Policy {
    /// The version of the API that it was read by, such as `v1`.
    pub(super) api_version: String,
    pub(super) resource_version: String,
    pub(super) generation: i64,
    /// Its `status.conditions`.
    pub(super) conditions: Vec<Value>,
    /// Why it cannot be read.
    pub(super) errors: Vec<String>,
    pub(super) warnings: Vec<String>,
    /// Whether a list that is under way has not named it yet.
    unseen: bool,
}

impl Policies {
    pub(super) fn new(trust_domain: TrustDomain) -> Self {
        Self { policies: Arc::default(), changed: watch::Sender::default(), trust_domain }
    }

    /// Returns what tells of each change.
    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(super) fn all(&self) -> BTreeMap<Key, Policy> {
        self.lock().clone()
    }

    /// Notes an object, where it is a policy.
    pub(super) fn note(&self, key: &Key, object: &Object, record: Option<&Record>) {
        let (Object::PeerAuthentication(value) | Object::AuthorizationPolicy(value)) = object else { return };
        let notices = || record.map(Record::notices).unwrap_or_default().iter();
        let of = |severity: fn(Severity) -> bool| {
            let notices = notices().filter(|notice| severity(notice.severity));
            notices.map(|notice| format!("{}: {}", notice.path, notice.message)).collect()
        };
        let mut warnings: Vec<_> = of(|severity| severity != Severity::Error);
        if let Some(Content::AuthorizationPolicy(Some(policy))) = record.map(|record| &record.content) {
            warnings.extend(lint::alone(policy, &self.trust_domain));
        }
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let api_version = text("/apiVersion");
        let conditions = value.pointer("/status/conditions").and_then(Value::as_array);
        let policy = Policy {
            api_version: api_version.rsplit('/').next().unwrap_or_default().to_owned(),
            resource_version: text("/metadata/resourceVersion").to_owned(),
            generation: value.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or_default(),
            conditions: conditions.cloned().unwrap_or_default(),
            errors: of(|severity| severity == Severity::Error),
            warnings,
            unseen: false,
        };
        self.lock().insert(key.clone(), policy);
        self.changed.send_replace(());
    }

    pub(super) fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }

    /// A list of all policies of a kind begins.
    pub(super) fn begin(&self, kind: Kind) {
        let mut policies = self.lock();
        policies.iter_mut().filter(|(key, _)| key.kind == kind).for_each(|(_, policy)| policy.unseen = true);
    }

    /// The list is complete.
    pub(super) fn done(&self, kind: Kind) {
        self.lock().retain(|key, policy| key.kind != kind || !policy.unseen);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Policy>> {
        self.policies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
