//! When to read the directory again: after it changed and came to rest, and now and then.

use std::{
    collections::HashSet,
    fmt, fs,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind},
};

/// Waits for changes of one directory.
pub(super) struct Watcher {
    changes: Receiver<()>,
    shared: Arc<Shared>,
    /// None where the system refused; the clock alone must do then.
    inotify: Option<RecommendedWatcher>,
    /// The device and inode that are being watched: the path may come to lead to another directory.
    watched: Option<(u64, u64)>,
}

/// Ends the wait when dropped.
pub(super) struct Stopper {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    /// Whether the directory that was watched was deleted or moved. Its inode may be used again at once.
    lost: AtomicBool,
    /// Of one place: a change that is pending stands for all that follow it.
    changed: SyncSender<()>,
    stopped: AtomicBool,
    /// The files that were written to and not closed yet.
    unfinished: Mutex<HashSet<PathBuf>>,
}

impl Watcher {
    pub(super) fn new(path: PathBuf) -> (Self, Stopper) {
        let (changed, changes) = sync_channel(1);
        let shared = Arc::new(Shared {
            path,
            lost: AtomicBool::new(false),
            changed,
            stopped: AtomicBool::new(false),
            unfinished: Mutex::default(),
        });
        let events = Arc::clone(&shared);
        let inotify = notify::recommended_watcher(move |event| events.note(event));
        let inotify = inotify.inspect_err(|error| {
            tracing::warn!(%error, "no inotify: changes of the manifests are noticed by reading them again and again");
        });
        let stopper = Stopper { shared: Arc::clone(&shared) };
        let mut watcher = Self { changes, shared, inotify: inotify.ok(), watched: None };
        watcher.watch();
        (watcher, stopper)
    }

    /// Waits until the directory is to be read again; `false` where nobody wants it any more.
    pub(super) fn wait(&mut self) -> bool {
        let pause = if self.watched.is_some() { RESCAN } else { RESCAN_UNWATCHED };
        if self.changes.recv_timeout(pause).is_ok() {
            self.settle();
        }
        self.watch();
        !self.shared.stopped.load(Ordering::Acquire)
    }

    /// Waits for a burst of changes to end, and for files that are being written to be closed; not for ever.
    fn settle(&self) {
        let since = Instant::now();
        while since.elapsed() < SETTLE {
            match self.changes.recv_timeout(QUIET) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) if !self.shared.unfinished().is_empty() => {}
                Err(_) => break,
            }
        }
        self.shared.unfinished().clear();
    }

    /// Watches what the path leads to now.
    fn watch(&mut self) {
        let Some(inotify) = &mut self.inotify else { return };
        let now = fs::metadata(&self.shared.path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        let lost = self.shared.lost.swap(false, Ordering::AcqRel);
        if now == self.watched && !lost {
            return;
        }
        // Fails where the old directory is gone, and its watch with it.
        let _ = inotify.unwatch(&self.shared.path);
        let watched = now.is_some() && inotify.watch(&self.shared.path, RecursiveMode::NonRecursive).is_ok();
        self.watched = now.filter(|_| watched);
    }
}

impl Shared {
    fn note(&self, event: notify::Result<notify::Event>) {
        match event {
            Ok(event) => match event.kind {
                EventKind::Access(AccessKind::Close(AccessMode::Write))
                | EventKind::Remove(_)
                | EventKind::Modify(ModifyKind::Name(_)) => {
                    let mut unfinished = self.unfinished();
                    unfinished.retain(|path| !event.paths.contains(path));
                    if event.paths.contains(&self.path) {
                        self.lost.store(true, Ordering::Release);
                    }
                }
                EventKind::Modify(ModifyKind::Data(_)) => {
                    let mut unfinished = self.unfinished();
                    // Bounded: past that many the clock decides when to read.
                    if unfinished.len() < 4096 {
                        unfinished.extend(event.paths);
                    }
                }
                // Our own reading is an event too.
                EventKind::Access(_) => return,
                _ => {}
            },
            Err(error) => tracing::warn!(%error, "watching the manifests"),
        }
        self.wake();
    }

    fn wake(&self) {
        // Full means that a wake-up is pending already.
        let _ = self.changed.try_send(());
    }

    fn unfinished(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Stopper {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        self.shared.wake();
    }
}

impl fmt::Debug for Stopper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stopper")
    }
}

/// A burst is over when nothing happened for so long: an editor's rename or a ConfigMap's swap takes less.
const QUIET: Duration = Duration::from_millis(20);
/// A burst is cut off after so long, so that a change takes effect well within a second.
const SETTLE: Duration = Duration::from_millis(400);
/// How often to read without being told, as symlinks to elsewhere and network file systems tell nothing.
const RESCAN: Duration = Duration::from_secs(2);
/// The same where nothing will ever be told.
const RESCAN_UNWATCHED: Duration = Duration::from_millis(500);
