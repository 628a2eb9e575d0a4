//! One agent a node: an exclusive `flock`, which the kernel gives back however the holder ends.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::Error;
use crate::run_directory::{self, DIRECTORY, RunFile};

/// The lock of one node, held until dropped.
#[derive(Debug)]
pub(super) struct Lock {
    node: String,
    _file: Flock<File>,
}

impl Lock {
    /// Takes the node's lock.
    ///
    /// # Errors
    /// Where another process holds it, or the file cannot be made.
    pub(super) fn acquire(node: &str) -> Result<Self, Error> {
        let directory = Path::new(DIRECTORY);
        fs::create_dir_all(directory)
            .map_err(Error::pin(directory, "cannot make the directory for lock files"))?;
        let path = RunFile::Lock.of(node);
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&path)
                .map_err(Error::pin(&path, "cannot open the lock file"))?;
            let file =
                Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
                    Errno::EAGAIN => Error::Busy { node: node.to_owned(), path: path.clone() },
                    errno => Error::pin(&path, "cannot lock")(errno.into()),
                })?;
            // `remove` may have unlinked the file between the two calls: the lock would be on a file that nobody finds.
            let ours = file.metadata().map(|metadata| metadata.ino());
            if fs::metadata(&path).is_ok_and(|there| ours.is_ok_and(|ours| ours == there.ino())) {
                return Ok(Self { node: node.to_owned(), _file: file });
            }
        }
    }

    /// Gives the lock back and leaves no file; also not the sockets of an agent that was killed, nor what it saved for the
    /// next one and for the CNI plugin. Returns what there was of those.
    pub(super) fn remove(self) -> Vec<PathBuf> {
        let removed = run_directory::remove_all_but_lock(&self.node);
        // Nothing depends on it: a file that stays is taken over by the next agent.
        let _ = fs::remove_file(RunFile::Lock.of(&self.node));
        // Another node's lock keeps the directory.
        let _ = fs::remove_dir(DIRECTORY);
        removed
    }
}
