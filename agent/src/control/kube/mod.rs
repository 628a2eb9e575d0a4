//! The Kubernetes API server as the source of the mesh, and what the agent tells it.
//!
//! ```text
//! one watch a kind ──► convert ──► Batch           PodReport ──► Reporter ──► the Pod's annotation, Events
//!         └─► Health: readiness, metrics
//! ```
//!
//! Objects are converted as they come and then dropped: the index is the only store. A lost API server leaves everything
//! in force, and is caught up with when it is back.

mod health;
mod kinds;
mod policies;
mod policy_status;
mod report;
mod watch;

use std::{fmt, sync::Arc};

use kube::Client;
use tokio::{
    sync::{mpsc::Sender, watch::Receiver},
    task::JoinSet,
};

use self::policies::Policies;
use super::{Settings, batch::Batch};
use crate::{apiserver::Connection, mesh::Snapshot};

pub use health::Health;
pub use policy_status::PolicyStatus;
pub use report::{PodReport, PodState, Reporter};

pub(super) use kinds::KINDS;

/// The watches, which end when this is dropped.
pub(super) struct Watches {
    health: Health,
    client: Client,
    policies: Policies,
    _tasks: JoinSet<()>,
}

impl Watches {
    /// Starts to watch every kind, within a Tokio runtime.
    pub(super) fn start(connection: Connection, settings: &Settings, inbox: &Sender<Batch>) -> Self {
        let Connection { client, traffic } = connection;
        let health = Health::new(traffic);
        let policies = Policies::new(settings.trust_domain.clone());
        let mut tasks = JoinSet::new();
        for &kind in KINDS {
            let feed = watch::Feed {
                kind,
                settings: settings.clone(),
                inbox: inbox.clone(),
                health: health.clone(),
                policies: policies.clone(),
            };
            tasks.spawn(kinds::follow(kind, client.clone(), feed));
        }
        Self { health, client, policies, _tasks: tasks }
    }

    /// Prepares to write the status of policies.
    pub(super) fn policy_status(
        &self,
        mesh: Receiver<Arc<Snapshot>>,
        (namespace, holder): (&str, &str),
    ) -> PolicyStatus {
        PolicyStatus::new(self.client.clone(), self.policies.clone(), mesh, (namespace, holder))
    }

    pub(super) fn health(&self) -> Health {
        self.health.clone()
    }
}

/// Without the client, which has nothing to show.
impl fmt::Debug for Watches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watches").field("health", &self.health).finish_non_exhaustive()
    }
}
