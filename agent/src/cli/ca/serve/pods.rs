//! Which pods run where, by a watch of pods alone: this server needs no right to read anything else of the mesh.

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt as _,
        utils::Backoff,
        watcher::{Config, Event, watcher},
    },
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    control::{Index, Object, Readiness, Record, Settings},
    mesh::{Snapshot, TrustDomain},
};

/// The pods of the cluster, followed for as long as somebody reads them.
#[derive(Clone, Debug)]
pub(super) struct Pods {
    /// What is known of them; the first snapshot is empty, until `listed`.
    pub(super) snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Whether all were listed once.
    pub(super) listed: watch::Receiver<bool>,
}

impl Pods {
    /// Starts to watch. Must be called within a Tokio runtime.
    pub(super) fn watch(client: Client, trust_domain: TrustDomain) -> Self {
        let settings =
            Settings { trust_domain, root_namespace: String::new(), readiness: Readiness::Annotation };
        let (sender, snapshots) = watch::channel(Arc::default());
        let (done, listed) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! {
                () = sender.closed() => {}
                () = follow(client, settings, &sender, &done) => {}
            }
        });
        Self { snapshots, listed }
    }
}

async fn follow(
    client: Client,
    settings: Settings,
    sender: &watch::Sender<Arc<Snapshot>>,
    listed: &watch::Sender<bool>,
) {
    let mut events = pin!(watcher(Api::<Pod>::all(client), Config::default()).backoff(Patience::default()));
    let mut index = Index::new("");
    // A new list takes the place of the old one when it is complete.
    let mut relisted = Index::new("");
    // When what came is published: what comes together is published together, and nothing waits for quiet.
    let mut due: Option<Instant> = None;
    let mut failing = false;
    loop {
        let event = tokio::select! {
            Some(event) = events.next() => event,
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                sender.send_replace(Arc::new(index.snapshot()));
                due = None;
                continue;
            }
        };
        let mut changed = false;
        match event {
            Ok(Event::Init) => relisted = Index::new(""),
            Ok(Event::InitApply(pod)) => drop(apply(&mut relisted, pod, &settings)),
            Ok(Event::InitDone) => {
                index = std::mem::replace(&mut relisted, Index::new(""));
                sender.send_replace(Arc::new(index.snapshot()));
                listed.send_replace(true);
                (due, failing) = (None, false);
            }
            Ok(Event::Apply(pod)) => changed = apply(&mut index, pod, &settings),
            Ok(Event::Delete(pod)) => {
                let key = Object::Pod(Box::new(pod)).key();
                changed = key.is_ok_and(|key| index.delete(&key));
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "pods cannot be watched: what is known of them stays in force");
                }
            }
        }
        if changed && due.is_none() {
            due = Some(Instant::now() + GATHER);
        }
    }
}

/// Puts a pod in force. One that cannot be read is nobody.
fn apply(index: &mut Index, pod: Pod, settings: &Settings) -> bool {
    let object = Object::Pod(Box::new(pod));
    match (Record::new(&object, settings), object.key()) {
        (Ok(record), _) => index.apply(&record),
        (Err(error), Ok(key)) => {
            tracing::debug!(pod = ?key, %error, "a pod cannot be read");
            index.delete(&key)
        }
        (Err(_), Err(_)) => false,
    }
}

/// How long a watch that failed waits before it is tried again. The library's own back-off, made for the thousands of a cluster,
/// waits for up to half a minute after the API server is back; of these servers there are two, and without news of a pod they
/// refuse it a certificate.
#[derive(Debug, Default)]
struct Patience(u32);

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = SHORTEST.saturating_mul(1 << self.0.min(3));
        self.0 = self.0.saturating_add(1);
        Some(wait)
    }
}

impl Backoff for Patience {
    fn reset(&mut self) {
        self.0 = 0;
    }
}

/// The first wait; the longest is eight times as long.
const SHORTEST: Duration = Duration::from_millis(250);

/// How long changes are gathered before they are published.
const GATHER: Duration = Duration::from_millis(20);
