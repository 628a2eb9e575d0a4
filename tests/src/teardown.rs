//! What a mesh leaves on the machine, found by its name alone, and its removal: by the mesh's own drop, by the interrupt
//! handler, and for a process that was killed, by whoever comes next.

use std::{
    collections::HashSet,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{agent, netns, wait::try_eventually};

/// Where agents pin what must outlive them (the agent's default; one directory a node name).
pub(crate) const PINS: &str = "/sys/fs/bpf/culvert";

/// Where agents have their lock and socket (the agent's default; the files' names begin with the node's).
pub(crate) const RUN: &str = "/run/culvert";

/// The file whose lock says that the mesh's process lives. A lock, unlike a process id, is never used again.
const LOCK: &str = "lock";

/// Everything of one mesh: its directory, its namespaces, the processes in them, its agents' pins and locks.
pub(crate) struct Traces {
    name: String,
    directory: PathBuf,
    /// Held until the mesh is removed.
    lock: Option<Flock<File>>,
}

impl Traces {
    /// Claims a name that no other mesh has, and makes its directory.
    pub(crate) fn claim() -> Result<Self> {
        let _whole = lock_all()?;
        let process = std::process::id();
        for number in 1.. {
            let name = format!("{}-{process}-{number}", prefix());
            let directory = std::env::temp_dir().join(&name);
            match fs::create_dir(&directory) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                made => made.with_context(|| format!("making {}", directory.display()))?,
            }
            let file = File::create_new(directory.join(LOCK)).context("making the mesh's lock file")?;
            let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
                .map_err(|(_, error)| error)
                .context("locking the mesh's lock file")?;
            return Ok(Self { name, directory, lock: Some(lock) });
        }
        unreachable!("the numbers do not end")
    }

    /// Those of processes that are dead.
    pub(crate) fn of_the_dead() -> Result<Vec<Self>> {
        let _whole = lock_all()?;
        let mut found = Vec::new();
        for name in names_with_traces()? {
            let directory = std::env::temp_dir().join(&name);
            let lock = match File::open(directory.join(LOCK)) {
                Ok(file) => match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                    Ok(lock) => Some(lock),
                    Err(_) => continue,
                },
                // A mesh makes its lock before anything else and removes it last, so this one has no process.
                Err(_) => None,
            };
            found.push(Self { name, directory, lock });
        }
        Ok(found)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Removes all of it: processes first, then pins, namespaces and files. What cannot be removed is reported and
    /// does not keep the rest.
    pub(crate) fn remove(self) {
        let Self { name, directory, lock } = self;
        let namespaces = entries_with_prefix(Path::new(netns::DIRECTORY), &format!("{name}-"));
        report(end_processes(&namespaces));
        for pins in entries_with_prefix(Path::new(PINS), &format!("{name}-")) {
            report(remove_pins(&pins));
        }
        // An agent that was killed, or that ended well with its pins in place, leaves its lock.
        for file in entries_with_prefix(Path::new(RUN), &format!("{name}-")) {
            report(fs::remove_file(&file).with_context(|| format!("removing {}", file.display())));
        }
        for path in &namespaces {
            report(netns::remove(path));
        }
        if directory.exists() {
            report(
                fs::remove_dir_all(&directory).with_context(|| format!("removing {}", directory.display())),
            );
        }
        drop(lock);
    }
}

/// Held while a name is claimed or judged, so that nobody takes a mesh for dead that is about to lock its file.
fn lock_all() -> Result<Flock<File>> {
    fs::create_dir_all(netns::DIRECTORY).with_context(|| format!("making {}", netns::DIRECTORY))?;
    let directory = File::open(netns::DIRECTORY).with_context(|| format!("opening {}", netns::DIRECTORY))?;
    Flock::lock(directory, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("locking {}", netns::DIRECTORY))
}

/// What the names of this machine's meshes begin with: `LAB_PREFIX`, else `lab`.
fn prefix() -> String {
    std::env::var("LAB_PREFIX").unwrap_or_else(|_| "lab".to_owned())
}

pub(crate) fn report(result: Result<()>) {
    if let Err(error) = result {
        eprintln!("lab: while cleaning up: {error:#}");
    }
}

/// The names of meshes of which a directory or a namespace exists: `<prefix>-<process>-<number>`.
fn names_with_traces() -> Result<HashSet<String>> {
    let start = format!("{}-", prefix());
    let mut names = HashSet::new();
    for directory in [std::env::temp_dir(), netns::DIRECTORY.into(), PINS.into(), RUN.into()] {
        for path in entries_with_prefix(&directory, &start) {
            let Some(file) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let mut parts = file[start.len()..].splitn(3, '-');
            let (process, number) = (parts.next(), parts.next());
            if let (Some(Ok(process)), Some(Ok(number))) =
                (process.map(str::parse::<u32>), number.map(str::parse::<u32>))
            {
                names.insert(format!("{start}{process}-{number}"));
            }
        }
    }
    Ok(names)
}

pub(crate) fn entries_with_prefix(directory: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix)))
        .map(|entry| entry.path())
        .collect()
}

/// Kills what runs in the namespaces, this process excepted, and waits until it is gone.
pub(crate) fn end_processes(namespaces: &[PathBuf]) -> Result<()> {
    let inodes: HashSet<(u64, u64)> = namespaces
        .iter()
        .filter_map(|path| fs::metadata(path).ok())
        .map(|file| (file.dev(), file.ino()))
        .collect();
    let mut killed = HashSet::new();
    let all_ended = || {
        // Again and again: one that forks while it is looked for would get away.
        for pid in processes_in(&inodes) {
            // ESRCH: it went by itself.
            let _ = kill(pid, Signal::SIGKILL);
            killed.insert(pid);
        }
        killed.retain(|pid| !has_ended(*pid));
        killed.is_empty()
    };
    try_eventually(Duration::from_secs(10), all_ended)
        .context("processes in the mesh's namespaces do not end")
}

/// Whether the process is gone or a zombie without threads. A thread that is still ending holds its descriptors, and with
/// them the lock on its agent's pins, when the first thread has left its namespace already.
pub(crate) fn has_ended(pid: Pid) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim_start);
    let zombie = field("State:").is_some_and(|state| state.starts_with(['Z', 'X']));
    zombie && field("Threads:").is_none_or(|threads| matches!(threads, "0" | "1"))
}

fn processes_in(namespaces: &HashSet<(u64, u64)>) -> Vec<Pid> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| u32::try_from(*pid) != Ok(std::process::id()))
        .filter(|pid| {
            // A zombie has no namespace any more, and so does not count.
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|file| namespaces.contains(&(file.dev(), file.ino())))
        })
        .map(Pid::from_raw)
        .collect()
}

/// Lets the agent's own command remove a node's pins; where that cannot be, removes the files, which detaches as well.
pub(crate) fn remove_pins(pins: &Path) -> Result<()> {
    let node = pins.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if let Ok(binary) = agent::culvert() {
        let _ = std::process::Command::new(binary).args(["cleanup", "--node", node]).output();
    }
    if pins.exists() {
        fs::remove_dir_all(pins).with_context(|| format!("removing the pins in {}", pins.display()))?;
    }
    Ok(())
}
