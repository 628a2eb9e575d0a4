//! How the agent ends: first `drain` (take nothing new, let what runs finish), then `abort` (end what still runs). Before
//! that it may have handed the node over to a successor (`succeeded`).

use std::time::Duration;

use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

/// The agent's end, shared by all of its tasks. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    drain: CancellationToken,
    abort: CancellationToken,
    succeeded: CancellationToken,
    tasks: TaskTracker,
}

impl Shutdown {
    /// Returns the token that is cancelled when nothing new is to be taken.
    pub fn drain(&self) -> &CancellationToken {
        &self.drain
    }

    /// Returns the token that is cancelled when the grace period is over.
    pub fn abort(&self) -> &CancellationToken {
        &self.abort
    }

    /// Returns the token that is cancelled when the node has been handed over to a successor.
    pub fn succeeded(&self) -> &CancellationToken {
        &self.succeeded
    }

    /// Returns the tracker of the tasks that own a connection.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Returns a token that keeps the agent from ending before it is dropped.
    pub fn hold(&self) -> TaskTrackerToken {
        self.tasks.token()
    }

    /// Drains for at most `grace`, then aborts, and returns when every task has ended.
    pub async fn run(&self, grace: Duration) {
        self.drain.cancel();
        self.tasks.close();
        if tokio::time::timeout(grace, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                connections = self.tasks.len(),
                "the grace period of {} is over: resetting the connections that still run",
                humantime::format_duration(grace)
            );
        }
        self.abort.cancel();
        // Tasks end at their next wake-up; what does not within this is a bug, and must not hold the node's upgrade.
        if tokio::time::timeout(ABORT_LIMIT, self.tasks.wait()).await.is_err() {
            tracing::error!(
                tasks = self.tasks.len(),
                "tasks did not end after the abort; exiting without them"
            );
        }
    }
}

/// How long aborted tasks may take to end.
const ABORT_LIMIT: Duration = Duration::from_secs(5);
