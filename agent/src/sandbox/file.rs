//! Small files of the agent's that outlive it: written whole or not at all, for root alone.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Replaces a file's content. What a killed agent left half-written has the same name with the suffix `.new`.
///
/// # Errors
/// Where it cannot be written; it is as it was then.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = PathBuf::from(format!("{}.new", path.display()));
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    fs::rename(&temporary, path)
}
