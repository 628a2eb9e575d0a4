//! A directory of Kubernetes manifests as the source of the mesh: no cluster is needed.
//!
//! ```text
//! inotify ──► thread: wait until it is quiet ──► Directory::scan ──► Batch
//! a clock ─────┘  (for symlinks to elsewhere, network file systems, lost events)
//! ```
//!
//! Files that end in `.yaml`, `.yml` or `.json` count, subdirectories do not. A file counts whole or not at all: while
//! it is broken, what it said before stays in force. All that is wrong is listed with file and line.

mod directory;
mod document;
mod items;
mod objects;
mod source;
mod tree;
mod watcher;

use std::{any::Any, io, path::PathBuf, sync::Arc, thread, time::SystemTime};

use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};

use self::{
    directory::Directory,
    watcher::{Stopper, Watcher},
};
use super::{Config, Control, Problem, Settings, batch::Batch};
use crate::mesh::{Snapshot, TrustDomain};

pub use objects::{Objects, Place};
pub use source::Source;

/// A directory alone as the source of the mesh, watched for as long as this lives.
#[derive(Debug)]
pub struct Manifests(Control);

/// A directory that has been read once.
pub(super) struct Opened {
    watcher: Watcher,
    directory: Directory,
    stop: Stopper,
    first: Option<Batch>,
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
    /// As [`Control::start`].
    pub fn start(dir: PathBuf, trust_domain: TrustDomain, root_namespace: String) -> Result<Self, Error> {
        Control::start(Config { manifests: Some(dir), api_server: None, trust_domain, root_namespace })
            .map(Self)
    }

    /// Returns the snapshots; the first, complete one is there already.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.0.snapshots()
    }

    /// Returns everything that is wrong at the moment; empty where nothing is.
    pub fn problems(&self) -> watch::Receiver<Arc<Vec<Problem>>> {
        self.0.problems()
    }

    /// Registers the metrics of what is wrong with policies.
    pub fn register(&self, registry: &mut Registry) {
        self.0.register(registry);
    }
}

impl Opened {
    /// Reads a directory.
    ///
    /// # Errors
    /// Where it cannot be read at all, or a file in it that may hold policies.
    pub(super) fn new(dir: PathBuf, settings: Settings) -> Result<Self, Error> {
        // Before the first scan, so that no change falls between the two.
        let (watcher, stop) = Watcher::new(dir.clone());
        let mut directory = Directory::new(dir.clone(), settings);
        let changes = directory.scan(SystemTime::now());
        let changes = changes.map_err(|source| Error::Directory { path: dir, source })?.unwrap_or_default();
        if let Some(problem) = directory.hidden_policies() {
            return Err(Error::Policies(problem.clone()));
        }
        let first = Some(Batch::Files { changes, problems: directory.problems() });
        Ok(Self { watcher, directory, stop, first })
    }

    /// Returns what it says; once.
    pub(super) fn take_first(&mut self) -> Option<Batch> {
        self.first.take()
    }

    /// Follows the directory until nobody wants it any more. What this returns must be kept for as long.
    ///
    /// # Errors
    /// Where the thread cannot be started.
    pub(super) fn follow(self, inbox: mpsc::Sender<Batch>) -> Result<Box<dyn Any + Send + Sync>, Error> {
        let Self { watcher, directory, stop, first: _ } = self;
        thread::Builder::new()
            .name("manifests".to_owned())
            .spawn(move || follow(watcher, directory, &inbox))
            .map_err(Error::Thread)?;
        Ok(Box::new(stop))
    }
}

fn follow(mut watcher: Watcher, mut directory: Directory, inbox: &mpsc::Sender<Batch>) {
    while watcher.wait() {
        // Whether it can be read or not stands in the problems.
        let Some(changes) = directory.scan(SystemTime::now()).unwrap_or_else(|_| Some(Vec::new())) else {
            continue;
        };
        if inbox.blocking_send(Batch::Files { changes, problems: directory.problems() }).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
