//! Files that others replace while the agent runs: roots, intermediates, tokens, revocation lists.
//!
//! A look at the clock's pace, not inotify: a mounted Secret is a chain of symbolic links that the kubelet swaps, and
//! watches on such chains miss changes. A look is one `stat` a file.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::sleep};
use tokio_util::task::AbortOnDropHandle;

use crate::file_stamp::FileStamp;

/// What files hold, read again when they change. Cheap to clone; the last clone's end stops the looking.
pub struct Followed<T> {
    value: watch::Receiver<Arc<T>>,
    state: watch::Receiver<FileState>,
    _task: Arc<AbortOnDropHandle<()>>,
}

/// How reading the files went.
#[derive(Clone, Debug, Default)]
pub struct FileState {
    /// What the files are to the agent, such as `trust bundle`.
    pub what: &'static str,
    /// The files.
    pub paths: Vec<PathBuf>,
    /// When their content was last taken into use.
    pub loaded_at: Option<SystemTime>,
    /// Why the newest content is not in use; the one before it is.
    pub error: Option<String>,
    /// How often content was refused since the start.
    pub failures: u64,
}

impl FileState {
    /// Says what is wrong, where the newest content is not in use.
    pub fn problem(&self) -> Option<String> {
        Some(format!("the {} is not in use as it is now: {}", self.what, self.error.as_ref()?))
    }
}

impl<T: Send + Sync + 'static> Followed<T> {
    /// Reads the files, and reads them again whenever one of them changes. What cannot be used is logged and counted,
    /// and the content before it stays in force.
    ///
    /// `read` is called on a thread that may block. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// Where the first reading fails.
    pub fn start<E: fmt::Display + 'static>(
        what: &'static str,
        paths: Vec<PathBuf>,
        read: impl Fn() -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, E> {
        let seen = Stamps::take(&paths);
        let (sender, value) = watch::channel(Arc::new(read()?));
        let (states, state) = register(what, paths);
        let task = tokio::spawn(follow(seen, Arc::new(read), sender, states));
        Ok(Self { value, state, _task: Arc::new(AbortOnDropHandle::new(task)) })
    }

    /// Makes it of what another task reads from elsewhere than a file, such as from the API server: `paths` are the names
    /// that people know it by. Otherwise as [`Self::start`].
    ///
    /// # Errors
    /// Where the first content cannot be used.
    pub fn derive<S: Send + Sync + 'static, E: fmt::Display + 'static>(
        what: &'static str,
        paths: Vec<PathBuf>,
        mut source: watch::Receiver<Arc<S>>,
        read: impl Fn(&Arc<S>) -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, E> {
        let first = Arc::clone(&source.borrow_and_update());
        let (sender, value) = watch::channel(Arc::new(read(&first)?));
        let (states, state) = register(what, paths);
        let task = tokio::spawn(async move {
            while source.changed().await.is_ok() {
                let new = Arc::clone(&source.borrow_and_update());
                note(read(&new).map_err(|error| error.to_string()), true, &sender, &states);
            }
        });
        Ok(Self { value, state, _task: Arc::new(AbortOnDropHandle::new(task)) })
    }

    /// Returns the content in force.
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.value.borrow())
    }

    /// Returns the content in force, now and later.
    pub fn watch(&self) -> watch::Receiver<Arc<T>> {
        self.value.clone()
    }

    /// Returns how reading went, now and later.
    pub fn state(&self) -> watch::Receiver<FileState> {
        self.state.clone()
    }
}

impl<T> Clone for Followed<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), state: self.state.clone(), _task: Arc::clone(&self._task) }
    }
}

impl<T> fmt::Debug for Followed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Followed").field(&*self.state.borrow()).finish()
    }
}

/// Returns how reading went for all files that this process follows now, ordered by what they are. Every [`Followed`] is
/// among them by itself: a file that somebody forgets to report would be outdated without anybody's knowing.
pub fn followed() -> Vec<FileState> {
    let mut all = FOLLOWED.lock().unwrap_or_else(PoisonError::into_inner);
    // The sender goes with the task, and that with the last clone of what it reads for.
    all.retain(|state| state.has_changed().is_ok());
    let mut states: Vec<_> = all.iter().map(|state| state.borrow().clone()).collect();
    states.sort_by(|a, b| (a.what, &a.paths).cmp(&(b.what, &b.paths)));
    states
}

fn register(
    what: &'static str,
    paths: Vec<PathBuf>,
) -> (watch::Sender<FileState>, watch::Receiver<FileState>) {
    let state = FileState { what, paths, loaded_at: Some(SystemTime::now()), ..FileState::default() };
    let (states, state) = watch::channel(state);
    FOLLOWED.lock().unwrap_or_else(PoisonError::into_inner).push(state.clone());
    (states, state)
}

static FOLLOWED: Mutex<Vec<watch::Receiver<FileState>>> = Mutex::new(Vec::new());

async fn follow<T, E, F>(
    mut seen: Stamps,
    read: Arc<F>,
    sender: watch::Sender<Arc<T>>,
    states: watch::Sender<FileState>,
) where
    T: Send + Sync + 'static,
    E: fmt::Display + 'static,
    F: Fn() -> Result<T, E> + Send + Sync + 'static,
{
    let paths = states.borrow().paths.clone();
    loop {
        sleep(INTERVAL).await;
        let now = Stamps::take(&paths);
        if now == seen && now.settled {
            continue;
        }
        let changed = now != seen;
        seen = now;
        let reading = Arc::clone(&read);
        let Ok(outcome) =
            tokio::task::spawn_blocking(move || reading().map_err(|error| error.to_string())).await
        else {
            continue;
        };
        note(outcome, changed, &sender, &states);
    }
}

/// Takes new content into use, or says why not.
fn note<T>(
    outcome: Result<T, String>,
    changed: bool,
    sender: &watch::Sender<Arc<T>>,
    states: &watch::Sender<FileState>,
) {
    match outcome {
            Ok(value) => {
                sender.send_replace(Arc::new(value));
                states.send_modify(|state| {
                    if changed || state.error.is_some() {
                        tracing::info!(what = state.what, files = %listed(&state.paths), "read again: the new content is in force");
                    }
                    state.error = None;
                    state.loaded_at = Some(SystemTime::now());
                });
            }
            Err(error) => states.send_modify(|state| {
                if changed || state.error.is_none() {
                    tracing::error!(what = state.what, files = %listed(&state.paths), %error, "the new content cannot be used: what was there before stays in force");
                    state.failures += 1;
                }
                state.error = Some(error);
            }),
        }
}

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// What tells one content of files from another, without reading them.
struct Stamps {
    files: Vec<Option<FileStamp>>,
    /// Whether the last change is so long ago that a further one would have another time.
    settled: bool,
}

impl Stamps {
    fn take(paths: &[PathBuf]) -> Self {
        let now = SystemTime::now();
        let files: Vec<_> = paths.iter().map(|path| FileStamp::of(path).ok()).collect();
        let mut ages = files.iter().flatten().map(|stamp| stamp.age(now));
        Self { settled: ages.all(|age| age.is_none_or(|age| age > UNSETTLED)), files }
    }
}

impl PartialEq for Stamps {
    fn eq(&self, other: &Self) -> bool {
        self.files == other.files
    }
}

/// How often the files are looked at: a new root or token is in force within a second or so.
const INTERVAL: Duration = Duration::from_secs(1);
/// A file that was changed this short ago is read again once more.
const UNSETTLED: Duration = Duration::from_millis(1500);

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn number(path: &std::path::Path) -> Result<u32, String> {
        let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
        text.trim().parse().map_err(|error| format!("{text:?}: {error}"))
    }

    /// Writes a file whole: one that is written in place is read half as well, which is a failure of its own.
    fn replace(path: &std::path::Path, text: &str) {
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, path).unwrap();
    }

    async fn until(followed: &Followed<u32>, wanted: impl Fn(&Followed<u32>) -> bool) {
        tokio::time::timeout(Duration::from_secs(20), async {
            while !wanted(followed) {
                sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("the files were read again");
    }

    #[tokio::test]
    async fn content_that_cannot_be_used_changes_nothing_and_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("number");
        fs::write(&path, "1").unwrap();
        let read = path.clone();
        let followed = Followed::start("number", vec![path.clone()], move || number(&read)).unwrap();
        assert_eq!(*followed.get(), 1);

        replace(&path, "none");
        until(&followed, |followed| followed.state().borrow().error.is_some()).await;
        assert_eq!(*followed.get(), 1);
        assert_eq!(followed.state().borrow().failures, 1);

        replace(&path, "2");
        until(&followed, |followed| *followed.get() == 2).await;
        assert!(followed.state().borrow().error.is_none());
    }

    #[tokio::test]
    async fn links_that_are_swapped_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in [("a", "1"), ("b", "2")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("number"), content).unwrap();
        }
        let (data, path) = (dir.path().join("data"), dir.path().join("number"));
        std::os::unix::fs::symlink("a", &data).unwrap();
        std::os::unix::fs::symlink("data/number", &path).unwrap();
        let read = path.clone();
        let followed = Followed::start("number", vec![path], move || number(&read)).unwrap();
        assert_eq!(*followed.get(), 1);

        let new = dir.path().join("new");
        std::os::unix::fs::symlink("b", &new).unwrap();
        fs::rename(new, data).unwrap();
        until(&followed, |followed| *followed.get() == 2).await;
    }

    #[tokio::test]
    async fn a_file_is_among_those_that_are_followed_until_nobody_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("number");
        fs::write(&path, "1").unwrap();
        let read = path.clone();
        let numbers = Followed::start("number", vec![path.clone()], move || number(&read)).unwrap();
        let is_followed = || followed().iter().any(|state| state.paths == [path.clone()]);
        assert!(is_followed());
        drop(numbers);
        tokio::time::timeout(Duration::from_secs(20), async {
            while is_followed() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("the file is forgotten");
    }

    #[tokio::test]
    async fn first_content_must_be_usable() {
        let missing = PathBuf::from("/nowhere/number");
        let read = missing.clone();
        assert!(Followed::<u32>::start("number", vec![missing], move || number(&read)).is_err());
    }
}
