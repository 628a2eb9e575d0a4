//! A program that outlives the process that started it: where its log is, how it is found again, and its end.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::{Pid, setsid},
};
use serde_json::{Value, json};

use super::place::Place;
use crate::{
    interrupt,
    process::tail,
    teardown::has_ended,
    wait::{Condition, try_eventually},
};

/// How long a program may take to end after SIGTERM before it is killed. The API server finishes what it answers.
const GRACE: Duration = Duration::from_secs(20);

/// A program of the cluster, by its name. It may run or not.
#[derive(Clone, Debug)]
pub(crate) struct Daemon {
    name: String,
    record: PathBuf,
    log: PathBuf,
}

impl Daemon {
    pub(crate) fn new(place: &Place, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            record: place.daemons().join(format!("{name}.json")),
            log: place.logs().join(format!("{name}.log")),
        }
    }

    /// Every program of the cluster that was started and not stopped.
    pub(crate) fn all(place: &Place) -> Vec<Self> {
        let entries = fs::read_dir(place.daemons()).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<_> =
            names.filter_map(|name| Some(name.strip_suffix(".json")?.to_owned())).collect();
        names.sort();
        names.iter().map(|name| Self::new(place, name)).collect()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn log(&self) -> &PathBuf {
        &self.log
    }

    /// Starts it, in a session of its own: neither Ctrl-C nor the end of a terminal reaches it.
    pub(crate) fn start(&self, command: &mut Command) -> Result<()> {
        interrupt::refuse_while_closing()?;
        if let Some(pid) = self.pid() {
            bail!("{} runs already, as process {pid}", self.name);
        }
        let log = self.open_log().with_context(|| format!("opening {}", self.log.display()))?;
        let errors = log.try_clone().context("the log twice")?;
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        #[expect(unsafe_code, reason = "there is no safe way to begin a session between fork and exec")]
        // SAFETY: between fork and exec only async-signal-safe calls are allowed; setsid is one.
        unsafe {
            command.pre_exec(|| setsid().map(drop).map_err(io::Error::from));
        }
        let child = command.spawn().with_context(|| format!("starting {}", self.name))?;
        let pid = child.id();
        let start = start_time(pid).with_context(|| format!("{} ended at once", self.name))?;
        let record = json!({ "pid": pid, "start": start }).to_string();
        fs::write(&self.record, record).with_context(|| format!("writing {}", self.record.display()))
    }

    /// Its process, if it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        let record: Value = serde_json::from_str(&fs::read_to_string(&self.record).ok()?).ok()?;
        let pid = u32::try_from(record["pid"].as_u64()?).ok()?;
        let id = Pid::from_raw(i32::try_from(pid).ok()?);
        // A child of this process is a zombie until it is waited for; another's is not ours to wait for.
        let _ = waitpid(id, Some(WaitPidFlag::WNOHANG));
        // A process id is used again; together with the time at which the process started it is not.
        (start_time(pid) == record["start"].as_u64() && !has_ended(id)).then_some(pid)
    }

    /// SIGTERM, its end, and SIGKILL where that does not come; one that does not run is no error.
    pub(crate) fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGTERM);
        match try_eventually(GRACE, || self.pid().is_none()) {
            Ok(()) => self.forget(),
            Err(_) => self.kill(),
        }
    }

    /// SIGKILL, and its end; one that does not run is no error.
    pub(crate) fn kill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL);
        try_eventually(GRACE, || self.pid().is_none())
            .with_context(|| format!("{} does not end", self.name))?;
        self.forget()
    }

    /// Removes the record of its process.
    fn forget(&self) -> Result<()> {
        match fs::remove_file(&self.record) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", self.record.display()))
            }
            _ => Ok(()),
        }
    }

    /// Sends it a signal, if it runs.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid().and_then(|pid| i32::try_from(pid).ok()) {
            // ESRCH: it ended in between.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Waits for what it is to bring about; its end, or the deadline, is an error with the end of its log.
    pub(crate) fn until<C: Condition>(
        &self,
        deadline: Duration,
        what: &str,
        mut condition: impl FnMut() -> C,
    ) -> Result<C::Value> {
        let waited = try_eventually(deadline, || {
            interrupt::refuse_while_closing().map_err(|error| error.to_string())?;
            match self.pid() {
                Some(_) => condition().check().map(Some),
                None => Ok(None),
            }
        });
        match waited {
            Ok(Some(value)) => Ok(value),
            Ok(None) => bail!("{} ended; {} ends:\n{}", self.name, self.log.display(), self.tail()),
            Err(error) => Err(error.context(format!(
                "waiting for {} {what}; {} ends:\n{}",
                self.name,
                self.log.display(),
                self.tail()
            ))),
        }
    }

    fn open_log(&self) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).open(&self.log)
    }

    fn tail(&self) -> String {
        tail(&String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()), 20)
    }
}

/// When a process started, in ticks after the machine did: field 22 of proc_pid_stat(5). The name in brackets before it
/// may hold spaces.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(19)?.parse().ok()
}
