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
mod report;
mod watch;

use tokio::{sync::mpsc::Sender, task::JoinSet};

use super::{Settings, batch::Batch};
use crate::apiserver::Connection;

pub use health::Health;
pub use report::{PodReport, PodState, Reporter};

pub(super) use kinds::KINDS;

/// The watches, which end when this is dropped.
#[derive(Debug)]
pub(super) struct Watches {
    health: Health,
    _tasks: JoinSet<()>,
}

impl Watches {
    /// Starts to watch every kind, within a Tokio runtime.
    pub(super) fn start(connection: Connection, settings: &Settings, inbox: &Sender<Batch>) -> Self {
        let Connection { client, traffic } = connection;
        let health = Health::new(traffic);
        let mut tasks = JoinSet::new();
        for &kind in KINDS {
            let feed = watch::Feed::new(kind, settings.clone(), inbox.clone(), health.clone());
            tasks.spawn(kinds::follow(kind, client.clone(), feed));
        }
        Self { health, _tasks: tasks }
    }

    pub(super) fn health(&self) -> Health {
        self.health.clone()
    }
}
