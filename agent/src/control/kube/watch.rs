//! The watch of one kind.

use std::{fmt::Debug, pin::pin, time::Duration};

use futures_util::StreamExt as _;
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;

use super::{
    super::{
        Kind, Object, Record, Settings,
        batch::{Batch, Item, WatchEvent},
    },
    Health,
    policies::Policies,
};
use crate::apiserver::chain;

/// Where what a watch says goes.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) kind: Kind,
    pub(super) settings: Settings,
    pub(super) inbox: Sender<Batch>,
    pub(super) health: Health,
    pub(super) policies: Policies,
}

/// Why a watch is over. Errors are no reason: they are noted, and it is tried again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ended {
    /// The API server does not know the kind.
    NotServed,
    /// Nobody takes what it says any more.
    Unwanted,
}

/// What an error means for the watch.
enum Remedy {
    TryAgain,
    /// The API server cannot send a list as a stream of events.
    ListFirst,
    /// What it would go on from is forgotten.
    ListAnew,
    GiveUp,
}

impl Feed {
    /// Watches until that is over.
    pub(super) async fn follow<K>(&self, api: Api<K>, object: impl Fn(K) -> Object) -> Ended
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        // Of the API server's cache, which is all that a mesh needs, and asks nothing of etcd.
        let listing = watcher::Config::default().any_semantic();
        // As a stream the API server never holds a whole list in memory, nor does the agent a page of it.
        let mut config = listing.clone().streaming_lists();
        'anew: loop {
            let mut events = pin!(watcher(api.clone(), config.clone()).default_backoff());
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => {
                        if self.take(event, &object).await.is_err() {
                            return Ended::Unwanted;
                        }
                    }
                    Err(error) => match self.note(&error) {
                        Remedy::TryAgain => {}
                        Remedy::ListFirst => {
                            config = listing.clone();
                            continue 'anew;
                        }
                        // With a new back-off: the list is wanted at once.
                        Remedy::ListAnew => {
                            tokio::time::sleep(ANEW).await;
                            continue 'anew;
                        }
                        Remedy::GiveUp => return Ended::NotServed,
                    },
                }
            }
            return Ended::Unwanted;
        }
    }

    /// Says that the API server does not know the kind.
    pub(super) async fn absent(&self) -> Result<(), Unwanted> {
        self.health.absent(self.kind);
        self.send(WatchEvent::Absent(self.kind)).await
    }

    async fn take<K>(&self, event: Event<K>, object: impl Fn(K) -> Object) -> Result<(), Unwanted> {
        let event = match event {
            Event::Init => {
                self.health.begun(self.kind);
                self.policies.begin(self.kind);
                Some(WatchEvent::Begin(self.kind))
            }
            Event::InitApply(one) => self.item(&object(one)).map(WatchEvent::Listed),
            Event::InitDone => {
                self.policies.done(self.kind);
                Some(WatchEvent::Done(self.kind))
            }
            Event::Apply(one) => self.item(&object(one)).map(WatchEvent::Applied),
            Event::Delete(one) => object(one).key().ok().map(|key| {
                self.policies.forget(&key);
                WatchEvent::Deleted(key)
            }),
        };
        let done = matches!(event, Some(WatchEvent::Done(_)));
        if let Some(event) = event {
            self.send(event).await?;
        }
        if done {
            self.health.done(self.kind);
        }
        Ok(())
    }

    /// An object without a name, which the API server never has, is none.
    fn item(&self, object: &Object) -> Option<Item> {
        let key = object.key().ok()?;
        let record = Record::new(object, &self.settings);
        self.policies.note(&key, object, record.as_ref().ok());
        Some(Item { key, record })
    }

    async fn send(&self, event: WatchEvent) -> Result<(), Unwanted> {
        self.inbox.send(Batch::Watch(event)).await.map_err(|_| Unwanted)
    }

    fn note(&self, error: &watcher::Error) -> Remedy {
        let status = match error {
            watcher::Error::InitialListFailed(kube::Error::Api(status))
            | watcher::Error::WatchStartFailed(kube::Error::Api(status))
            | watcher::Error::WatchFailed(kube::Error::Api(status))
            | watcher::Error::WatchError(status) => Some(status),
            _ => None,
        };
        let (group, resource) = self.kind.resource();
        let code = status.map(|status| status.code);
        match (code, error) {
            // Not found: the kind itself, as a list is never that.
            (Some(404), _) if !group.is_empty() => return Remedy::GiveUp,
            // `sendInitialEvents` is refused where the feature WatchList is off.
            (Some(400 | 422), watcher::Error::WatchStartFailed(_)) => return Remedy::ListFirst,
            _ => {}
        }
        let said = match status {
            Some(status) if status.code == 403 => format!(
                "{}: grant the agent's ClusterRole the verbs list and watch of {resource} in the API group {group:?}",
                status.message
            ),
            // Too old a version: nothing is wrong, a new list follows.
            Some(status) if status.code == 410 => status.message.clone(),
            Some(status) => format!("{} (HTTP {})", status.message, status.code),
            None => chain(error),
        };
        self.health.failed(self.kind, &said);
        if code == Some(410) { Remedy::ListAnew } else { Remedy::TryAgain }
    }
}

/// Before a list that follows a gap.
const ANEW: Duration = Duration::from_millis(200);

/// Nobody takes what is sent any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unwanted;
