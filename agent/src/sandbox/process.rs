//! One process of the node, seen through the host's proc file system.
//!
//! Everything is read through the process's directory, opened once: as soon as the process has been reaped, its entries
//! are gone, whoever has the pid by then. So no descriptor of the process (pidfd) is needed, which could not be had of a
//! process outside of the agent's own process namespace.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};

/// A process, by its directory in proc.
#[derive(Debug)]
pub(super) struct Process(File);

/// What `/proc/PID/stat` says of it (proc_pid_stat(5)).
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Stat {
    /// The name of its program, up to 15 bytes, which it can change.
    pub(super) name: String,
    pub(super) parent: u32,
    /// When it started, in clock ticks since boot.
    pub(super) start: u64,
    /// It has ended, and its parent has not been told yet.
    pub(super) zombie: bool,
}

/// Longer than any line of the files that are read.
const MAX_FILE: u64 = 64 * 1024;

impl Process {
    pub(super) fn open(proc: &Path, pid: u32) -> io::Result<Self> {
        File::open(proc.join(pid.to_string())).map(Self)
    }

    pub(super) fn stat(&self) -> io::Result<Stat> {
        let text = self.read("stat")?;
        Stat::parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "stat is not understood"))
    }

    /// Returns its cgroup in the v2 hierarchy, as a path from the root of the reader's cgroup namespace.
    pub(super) fn cgroup(&self) -> io::Result<String> {
        let text = self.read("cgroup")?;
        let line = text.lines().find_map(|line| line.strip_prefix("0::"));
        line.map(str::to_owned)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it is in no cgroup of version 2"))
    }

    /// Opens its network namespace.
    pub(super) fn netns(&self) -> io::Result<File> {
        self.open_file("ns/net")
    }

    /// Whether it still runs.
    pub(super) fn is_alive(&self) -> bool {
        self.stat().is_ok_and(|stat| !stat.zombie)
    }

    fn read(&self, name: &str) -> io::Result<String> {
        let mut bytes = Vec::new();
        self.open_file(name)?.take(MAX_FILE).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn open_file(&self, name: &str) -> io::Result<File> {
        let opened = openat(&self.0, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(File::from(opened))
    }
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name is in brackets and may hold anything, brackets too.
        let (name, rest) = (text.find('(')?, text.rfind(')')?);
        let fields: Vec<_> = text.get(rest + 1..)?.split_whitespace().collect();
        Some(Self {
            name: text.get(name + 1..rest)?.to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            // Field 22 of the whole line.
            start: fields.get(19)?.parse().ok()?,
            zombie: matches!(*fields.first()?, "Z" | "X"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let line = "42 (a) b) Z 7 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 991 0 0";
        let expected = Stat { name: "a) b".to_owned(), parent: 7, start: 991, zombie: true };
        assert_eq!(Stat::parse(line), Some(expected));
        assert_eq!(Stat::parse("42 (a"), None);
        assert_eq!(Stat::parse(")("), None);
    }

    #[test]
    fn a_process_that_was_reaped_can_not_be_read_any_more() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::open(Path::new("/proc"), child.id()).unwrap();
        assert!(process.is_alive() && process.netns().is_ok());
        assert_eq!(process.stat().unwrap().parent, std::process::id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!process.is_alive() && process.netns().is_err());
    }
}
