//! Notices the cgroups of pods and containers that come and go.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::{sync::Notify, time::sleep};

use super::{
    Sandboxes,
    cgroups::{each_kubepods, is_qos, pod_uid},
};

/// How often the cgroups are looked at where no event comes: the kubelet makes those of all pods once.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long events are gathered: a pod's start makes several.
const GATHER: Duration = Duration::from_millis(20);
/// More directories than a node has pods: beyond, the clock has to do.
const MAX_WATCHES: usize = 2048;

/// Wakes whoever waits for the sandboxes, whenever a cgroup of a pod or of a container comes, goes, or gets its first
/// process (the kernel reports `cgroup.events` as modified then).
pub(super) async fn follow(sandboxes: Sandboxes) {
    let events = Arc::new(Notify::new());
    let noted = Arc::clone(&events);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if !event.is_ok_and(|event| matches!(event.kind, EventKind::Access(_))) {
            noted.notify_one();
        }
    });
    let mut watcher = match watcher {
        Ok(watcher) => Some(Watched { watcher, directories: HashSet::new() }),
        Err(error) => {
            tracing::warn!(%error, "no inotify: new pods are noticed when the API server tells of them");
            None
        }
    };
    loop {
        let root = sandboxes.cgroups().to_owned();
        let looked = tokio::task::spawn_blocking(move || {
            // It does not matter that it takes the watcher along: there is one task.
            let changed = watcher.as_mut().is_some_and(|watcher| watcher.look(&root));
            (watcher, changed)
        });
        let Ok((back, changed)) = looked.await else { return };
        watcher = back;
        if changed {
            sandboxes.wake();
        }
        tokio::select! {
            () = events.notified() => {
                sleep(GATHER).await;
                sandboxes.wake();
            }
            () = sleep(LOOK_AGAIN) => {}
        }
    }
}

struct Watched {
    watcher: RecommendedWatcher,
    directories: HashSet<PathBuf>,
}

impl Watched {
    /// Watches every directory that is new, and returns whether there was one.
    fn look(&mut self, root: &Path) -> bool {
        let mut found = HashSet::new();
        // What cannot be read is looked at again.
        let _ = each_kubepods(root, &mut |all| {
            if let Some(name) = all.file_name().to_str() {
                let _ = search_pods(&all.path(), name, &mut found);
            }
        });
        for gone in self.directories.difference(&found) {
            // The kernel has removed it with the directory.
            let _ = self.watcher.unwatch(gone);
        }
        self.directories.retain(|directory| found.contains(directory));
        let mut changed = false;
        for new in found {
            if self.directories.len() < MAX_WATCHES
                && !self.directories.contains(&new)
                && self.watcher.watch(&new, RecursiveMode::NonRecursive).is_ok()
            {
                self.directories.insert(new);
                changed = true;
            }
        }
        changed
    }
}

/// Finds the cgroup of all pods itself, those of the QoS classes in it, and those of pods.
fn search_pods(directory: &Path, all: &str, found: &mut HashSet<PathBuf>) -> io::Result<()> {
    found.insert(directory.to_owned());
    for (name, path) in directories(directory)? {
        if is_qos(&name, all) {
            let _ = search_pods(&path, all, found);
        } else if pod_uid(&name, all).is_some() {
            found.insert(path);
        }
    }
    Ok(())
}

fn directories(directory: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}
