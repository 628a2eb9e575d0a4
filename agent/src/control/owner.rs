//! The thread that owns the index: it takes what the sources say, and publishes what comes of it.

use std::{
    collections::HashSet,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{
    mpsc::{Receiver, error::TryRecvError},
    watch,
};

use super::{Problem, batch::Batch, merge::Merged, publish::Publisher};

/// The index, and where what is in it goes.
pub(super) struct Owner {
    pub(super) merged: Merged,
    pub(super) publisher: Publisher,
    pub(super) problems: watch::Sender<Arc<Vec<Problem>>>,
    /// Whether there has been a first snapshot.
    pub(super) complete: watch::Sender<bool>,
}

impl Owner {
    /// Takes what the sources say until there is none any more. Building a snapshot takes as long as the mesh is large, so
    /// this must not be a thread of the runtime's.
    pub(super) fn follow(mut self, mut inbox: Receiver<Batch>) {
        let mut due = Instant::now();
        while let Some(batch) = inbox.blocking_recv() {
            self.merged.take(batch);
            // A change that comes alone counts at once; what comes in a burst is taken together.
            while self.is_early(due) {
                match inbox.try_recv() {
                    Ok(batch) => self.merged.take(batch),
                    Err(TryRecvError::Empty) => thread::sleep(NAP),
                    Err(TryRecvError::Disconnected) => break,
                }
            }
            let begun = Instant::now();
            self.publish();
            due = Instant::now() + pause(begun.elapsed(), self.publisher.pods());
        }
    }

    fn is_early(&self, due: Instant) -> bool {
        *self.complete.borrow() && Instant::now() < due
    }

    /// Publishes what changed, once there is a complete mesh.
    pub(super) fn publish(&mut self) {
        if self.merged.take_problems_changed() {
            report(&self.problems, self.merged.problems());
        }
        let first = !*self.complete.borrow();
        if first && !self.merged.is_complete() {
            return;
        }
        if self.merged.take_changed() || first {
            self.publisher.publish(self.merged.snapshot());
        }
        if first {
            self.complete.send_replace(true);
        }
    }
}

/// Returns how long no snapshot is built after one of so many pods that took `cost`: what changes in between is taken together.
/// Who reads a snapshot may look at every pod of it.
pub fn pause(cost: Duration, pods: usize) -> Duration {
    let readers = READ_A_POD.saturating_mul(u32::try_from(pods).unwrap_or(u32::MAX));
    (cost.saturating_add(readers).saturating_mul(IDLE_SHARE)).clamp(PAUSE, PAUSE_MAX)
}

/// Lists the problems, and logs those that are new.
fn report(listed: &watch::Sender<Arc<Vec<Problem>>>, problems: Vec<Problem>) {
    listed.send_if_modified(|known| {
        if **known == problems {
            return false;
        }
        // Not by the line: what is still there is not new because something was written above it.
        let old: HashSet<(Option<&Path>, &str)> = known.iter().map(gist).collect();
        for problem in problems.iter().filter(|problem| !old.contains(&gist(problem))) {
            match &problem.file {
                Some(file) => {
                    let line = problem.line;
                    tracing::warn!(file = %file.display(), line, "manifest: {}", problem.message);
                }
                None => tracing::warn!("API server: {}", problem.message),
            }
        }
        if problems.is_empty() {
            tracing::info!("nothing is wrong in the objects of the mesh any more");
        }
        *known = Arc::new(problems);
        true
    });
}

fn gist(problem: &Problem) -> (Option<&Path>, &str) {
    (problem.file.as_deref(), &problem.message)
}

/// The least time between two snapshots.
const PAUSE: Duration = Duration::from_millis(20);
/// The most: a change of policy takes effect well within a second.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// For so many times as long as it took to build a snapshot none is built: changes that never end take a quarter of a
/// processor and not all of it.
const IDLE_SHARE: u32 = 3;
/// An allowance for what each pod of a snapshot costs its readers. `Snapshot::destinations` was measured at 0.2 µs
/// (docs/scale.md); the comparison with what the kernel has, and the other readers, were not.
const READ_A_POD: Duration = Duration::from_nanos(800);
/// How long to wait for what belongs to a burst.
const NAP: Duration = Duration::from_millis(2);
