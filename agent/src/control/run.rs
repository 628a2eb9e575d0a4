//! Starts the sources and the owner of what they say.

use std::{any::Any, fmt, path::PathBuf, sync::Arc, thread};

use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};

use super::{
    Error, Problem, Readiness, Settings,
    kube::{self, Health, PolicyStatus, Watches},
    manifests::Opened,
    merge::Merged,
    metrics::PolicyProblems,
    owner::Owner,
    publish::Publisher,
};
use crate::{
    apiserver,
    mesh::{Snapshot, TrustDomain},
};

/// Where objects come from, and what conversion needs to know. At least one of the sources is needed.
#[derive(Clone, Debug)]
pub struct Config {
    /// A directory of manifests.
    pub manifests: Option<PathBuf>,
    /// The API server.
    pub api_server: Option<apiserver::Connection>,
    /// The trust domain of every workload.
    pub trust_domain: TrustDomain,
    /// The namespace of the mesh's own agents, and of the policies for the whole mesh.
    pub root_namespace: String,
}

/// The sources of the mesh, followed for as long as this lives.
pub struct Control {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    problems: watch::Receiver<Arc<Vec<Problem>>>,
    complete: watch::Receiver<bool>,
    watches: Option<Watches>,
    root_namespace: String,
    _sources: Vec<Box<dyn Any + Send + Sync>>,
}

impl Control {
    /// Starts to follow the sources. With manifests alone the first snapshot is there when this returns, otherwise when
    /// [`Self::complete`] does. With an API server it must be called within a Tokio runtime.
    ///
    /// # Errors
    /// Where the directory cannot be read at all, or a file in it that may hold policies. What else is wrong in its files is
    /// no error: see [`Self::problems`]. Nor is it later on, when what a file said before stays in force; nor is an API
    /// server that does not answer.
    pub fn start(config: Config) -> Result<Self, Error> {
        let Config { manifests, api_server, trust_domain, root_namespace } = config;
        let readiness = match api_server {
            Some(_) => Readiness::Annotation,
            None => Readiness::Enrollment,
        };
        let settings = Settings { trust_domain, root_namespace, readiness };
        let kinds = if api_server.is_some() { kube::KINDS } else { &[] };
        let problems = watch::Sender::new(Arc::default());
        let mut owner = Owner {
            merged: Merged::new(&settings.root_namespace, kinds),
            publisher: Publisher::new(),
            problems,
            complete: watch::Sender::new(false),
        };
        let mut control = Self {
            snapshots: owner.publisher.subscribe(),
            problems: owner.problems.subscribe(),
            complete: owner.complete.subscribe(),
            watches: None,
            root_namespace: settings.root_namespace.clone(),
            _sources: Vec::new(),
        };
        let (sender, inbox) = mpsc::channel(INBOX);
        if let Some(directory) = manifests {
            let mut opened = Opened::new(directory, settings.clone())?;
            if let Some(first) = opened.take_first() {
                owner.merged.take(first);
            }
            control._sources.push(opened.follow(sender.clone())?);
        }
        if let Some(connection) = api_server {
            control.watches = Some(Watches::start(connection, &settings, &sender));
        }
        owner.publish();
        control.snapshots.mark_unchanged();
        thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || owner.follow(inbox))
            .map_err(Error::Thread)?;
        Ok(control)
    }

    /// Returns the snapshots. Before the first complete one there is an empty one.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// Waits for the first complete snapshot.
    pub fn complete(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut complete = self.complete.clone();
        async move {
            if complete.wait_for(|complete| *complete).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Returns everything that is wrong at the moment; empty where nothing is.
    pub fn problems(&self) -> watch::Receiver<Arc<Vec<Problem>>> {
        self.problems.clone()
    }

    /// Returns how the watches of the API server are, where that is a source.
    pub fn health(&self) -> Option<Health> {
        self.watches.as_ref().map(Watches::health)
    }

    /// Prepares to write the status of policies, where the API server is a source. `holder` tells this process from
    /// those of other agents.
    pub fn policy_status(&self, holder: &str) -> Option<PolicyStatus> {
        let watches = self.watches.as_ref()?;
        Some(watches.policy_status(self.snapshots(), (&self.root_namespace, holder)))
    }

    /// Registers the metrics of the sources, and of what is wrong with policies.
    pub fn register(&self, registry: &mut Registry) {
        PolicyProblems::register(registry, self.problems());
        if let Some(health) = self.health() {
            registry.register_collector(Box::new(health));
        }
    }
}

/// Without the sources, which are many.
impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

/// What the sources may be ahead of the index; beyond, they wait.
const INBOX: usize = 1024;
