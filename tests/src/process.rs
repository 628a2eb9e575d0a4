//! A program that the harness started: its output in a file, its end assured.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    usage,
    wait::{Condition, try_eventually},
};

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Mutex<Child>,
    pid: u32,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with standard error in `log` (appended), and standard output in `output`, or with it.
    pub(crate) fn start(command: &mut Command, log: &Path, output: Option<&Path>) -> Result<Self> {
        let name = Path::new(command.get_program())
            .file_name()
            .and_then(OsStr::to_str)
            .unwrap_or("program")
            .to_owned();
        let child = command
            .stdin(Stdio::null())
            .stderr(append(log)?)
            .stdout(append(output.unwrap_or(log))?)
            // A group of its own, so that Ctrl-C reaches the harness alone, which ends things in their order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { name, pid: child.id(), child: Mutex::new(child), log: log.to_owned() })
    }

    /// The program's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How it ended, `None` while it runs.
    pub fn status(&self) -> Option<ExitStatus> {
        self.child().try_wait().ok().flatten()
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.status().is_none()
    }

    /// What it wrote to standard error, and to standard output where that is not kept apart.
    pub fn logs(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Sends a signal; one that is gone is no error.
    pub fn signal(&self, signal: Signal) {
        // Not yet waited for, so that the pid cannot have been given to another process.
        let child = self.child();
        if let Ok(pid) = i32::try_from(child.id()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Waits for its end.
    pub fn wait(&self, deadline: Duration) -> Result<ExitStatus> {
        try_eventually(deadline, || self.status())
            .with_context(|| format!("waiting for {} to end; its log:\n{}", self.name, self.tail()))
    }

    /// SIGTERM, and its end within `grace`.
    pub fn terminate(&self, grace: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM);
        self.wait(grace)
    }

    /// SIGKILL, and its end.
    pub fn kill9(&self) {
        let mut child = self.child();
        // Errors mean that it ended before.
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Waits for a condition that the program is to bring about; its end, or the deadline, is an error with its log.
    pub fn until<C: Condition>(
        &self,
        deadline: Duration,
        mut condition: impl FnMut() -> C,
    ) -> Result<C::Value> {
        let waited = try_eventually(deadline, || match self.status() {
            Some(status) => Ok(Err(status)),
            None => condition().check().map(Ok),
        });
        match waited {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(status)) => bail!("{} ended ({status}); its log:\n{}", self.name, self.tail()),
            Err(error) => Err(error.context(format!("waiting for {}; its log:\n{}", self.name, self.tail()))),
        }
    }

    /// Descriptors that it has open.
    pub fn fd_count(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).map(Iterator::count).unwrap_or_default()
    }

    /// Its resident memory in bytes.
    pub fn rss(&self) -> u64 {
        usage::rss(self.pid)
    }

    /// What of that is its own in bytes, and not a file's.
    pub fn own_memory(&self) -> u64 {
        usage::own_memory(self.pid)
    }

    /// Its threads.
    pub fn threads(&self) -> u64 {
        usage::threads(self.pid)
    }

    /// The processor time that it has used, in user space and in the kernel.
    pub fn cpu_time(&self) -> Duration {
        usage::cpu_time(self.pid)
    }

    fn tail(&self) -> String {
        tail(&self.logs(), 30)
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// The last lines of a text.
pub(crate) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn append(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("opening the log {}", path.display()))
}

/// Copies a program, by a process of its own. Were the copy open here, what another test starts meanwhile would have it open
/// for writing for a moment too, and the kernel runs no such program (execve(2), ETXTBSY).
///
/// # Panics
/// Where it cannot be copied.
pub fn install(source: &Path, program: &Path) {
    let status = Command::new("install").args(["-m", "755"]).arg(source).arg(program).status();
    assert!(status.is_ok_and(|status| status.success()), "installing {}", program.display());
}
