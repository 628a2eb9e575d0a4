//! What a cluster leaves on the machine, found by its name alone, and its removal: by its own drop, by the interrupt
//! handler, and for a process that was killed, by whoever comes next.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    cgroups,
    place::{Claim, Place},
};
use crate::{
    netns,
    teardown::{PINS, RUN, end_processes, entries_with_prefix, has_ended, remove_pins, report},
    wait::try_eventually,
};

/// Everything of one cluster, and the claim to it.
#[derive(Debug)]
pub(crate) struct Remains {
    place: Place,
    claim: Claim,
}

impl Remains {
    pub(crate) fn new(place: Place, claim: Claim) -> Self {
        Self { place, claim }
    }

    pub(crate) fn name(&self) -> &str {
        self.place.name()
    }

    /// Leaves everything as it is, and lets go of the claim.
    pub(crate) fn let_be(self) {
        drop(self.claim);
    }

    /// Whether there is anything.
    pub(crate) fn are_there(place: &Place) -> bool {
        let prefix = place.prefix();
        place.directory().exists()
            || !entries_with_prefix(Path::new(netns::DIRECTORY), &prefix).is_empty()
            || !cgroups::tops(&prefix).is_empty()
    }

    /// Removes all of it: processes first, and with the last of a node go its mounts and its pods' namespaces. What cannot be
    /// removed is reported and does not keep the rest.
    pub(crate) fn remove(self) {
        let Self { place, claim } = self;
        let prefix = place.prefix();
        let namespaces = entries_with_prefix(Path::new(netns::DIRECTORY), &prefix);
        // What starts pods first.
        report(end_processes(&namespaces));
        report(end_pods(&prefix));
        for pins in entries_with_prefix(Path::new(PINS), &prefix) {
            report(remove_pins(&pins));
        }
        for file in entries_with_prefix(Path::new(RUN), &prefix) {
            report(fs::remove_file(&file).with_context(|| format!("removing {}", file.display())));
        }
        for path in &namespaces {
            report(netns::remove(path));
        }
        report(cgroups::remove(&prefix));
        report(remove_directory(&place.directory()));
        Place::remove_empty_parent();
        drop(claim);
    }
}

/// Kills what runs in the nodes' cgroups and waits until it is gone.
fn end_pods(prefix: &str) -> Result<()> {
    let all_ended = || {
        let left: Vec<_> = cgroups::processes(prefix).into_iter().map(Pid::from_raw).collect();
        for pid in &left {
            // ESRCH: it went by itself.
            let _ = kill(*pid, Signal::SIGKILL);
        }
        left.iter().all(|pid| has_ended(*pid))
    };
    try_eventually(Duration::from_secs(10), all_ended).context("processes in the nodes' cgroups do not end")
}

/// Unmounts a cluster's directory and what is mounted in it, and removes it.
fn remove_directory(directory: &PathBuf) -> Result<()> {
    loop {
        // EINVAL: nothing is mounted there, any more.
        match umount2(directory, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => break,
            Err(error) => return Err(error).with_context(|| format!("unmounting {}", directory.display())),
        }
    }
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}
