//! A directory of Kubernetes manifests as the source of the mesh: no cluster is needed.
//!
//! ```text
//! inotify ──► thread: wait until it is quiet ──► Directory::scan ──► Index ──► Publisher
//! a clock ─────┘  (for symlinks to elsewhere, network file systems, lost events)
//! ```
//!
//! Files that end in `.yaml`, `.yml` or `.json` count, subdirectories do not. A file counts whole or not at all: while
//! it is broken, what it said before stays in force. All that is wrong is listed with file and line.

mod directory;
mod document;
mod items;
mod metrics;
mod objects;
mod problem;
mod source;
mod tree;
mod watcher;

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use prometheus_client::registry::Registry;
use tokio::sync::watch;

use self::{
    directory::Directory,
    metrics::PolicyProblems,
    watcher::{Stopper, Watcher},
};
use super::{Readiness, Settings, publish::Publisher};
use crate::mesh::{Snapshot, TrustDomain};

pub use objects::{Objects, Place};
pub use problem::Problem;
pub use source::Source;

/// A directory that is being watched, for as long as this lives.
#[derive(Debug)]
pub struct Manifests {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    problems: watch::Receiver<Arc<Vec<Problem>>>,
    _stop: Stopper,
}

/// Why a directory cannot be the source of the mesh.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read the manifest directory {path}: it must exist and be readable for the agent")]
    Directory {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is a file that may hold policies and cannot be read, and so nobody knows what they refuse.
    #[error("{0}: it may hold policies, and without them more would be permitted: mend it or take it away")]
    Policies(Problem),
    /// The thread that watches it cannot be started.
    #[error("cannot start the thread that watches the manifests")]
    Thread(#[source] io::Error),
}

impl Manifests {
    /// Reads the directory and goes on watching it. The first snapshot is there when this returns.
    ///
    /// # Errors
    /// Where the directory cannot be read at all, or a file in it that may hold policies. What else is wrong in its files is
    /// no error: see [`Self::problems`]. Nor is it later on, when what a file said before stays in force.
    pub fn start(dir: PathBuf, trust_domain: TrustDomain, root_namespace: String) -> Result<Self, Error> {
        let settings = Settings { trust_domain, root_namespace, readiness: Readiness::Enrollment };
        // Before the first scan, so that no change falls between the two.
        let (watcher, stop) = Watcher::new(dir.clone());
        let mut directory = Directory::new(dir.clone(), settings);
        directory.scan().map_err(|source| Error::Directory { path: dir, source })?;
        if let Some(problem) = directory.hidden_policies() {
            return Err(Error::Policies(problem.clone()));
        }
        let publisher = Publisher::new(directory.snapshot());
        let problems = watch::Sender::new(Arc::default());
        report(&problems, directory.problems());
        let manifests =
            Self { snapshots: publisher.subscribe(), problems: problems.subscribe(), _stop: stop };
        thread::Builder::new()
            .name("manifests".to_owned())
            .spawn(move || follow(watcher, directory, publisher, &problems))
            .map_err(Error::Thread)?;
        Ok(manifests)
    }

    /// Returns the snapshots; the first, complete one is there already.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// Returns everything that is wrong at the moment; empty where nothing is.
    pub fn problems(&self) -> watch::Receiver<Arc<Vec<Problem>>> {
        self.problems.clone()
    }

    /// Registers the metrics of what is wrong with policies.
    pub fn register(&self, registry: &mut Registry) {
        PolicyProblems::register(registry, self.problems());
    }
}

fn follow(
    mut watcher: Watcher,
    mut directory: Directory,
    mut publisher: Publisher,
    problems: &watch::Sender<Arc<Vec<Problem>>>,
) {
    while watcher.wait() {
        // Whether it can be read or not stands in the problems.
        let changed = directory.scan().unwrap_or(false);
        report(problems, directory.problems());
        if changed {
            publisher.publish(directory.snapshot());
        }
    }
}

/// Lists the problems, and logs those that are new.
fn report(listed: &watch::Sender<Arc<Vec<Problem>>>, problems: Vec<Problem>) {
    listed.send_if_modified(|known| {
        if **known == problems {
            return false;
        }
        // Not by the line: what is still there is not new because something was written above it.
        let old: HashSet<(&Path, &str)> = known.iter().map(gist).collect();
        for problem in problems.iter().filter(|problem| !old.contains(&gist(problem))) {
            tracing::warn!(file = %problem.file.display(), line = problem.line, "manifest: {}", problem.message);
        }
        if problems.is_empty() {
            tracing::info!("nothing is wrong in the manifests any more");
        }
        *known = Arc::new(problems);
        true
    });
}

fn gist(problem: &Problem) -> (&Path, &str) {
    (&problem.file, &problem.message)
}

#[cfg(test)]
mod tests;
