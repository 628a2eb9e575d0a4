//! Writing files and directories so that a reader finds the old or the new, whole, even after a crash.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// A file or directory cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be written: {source}", .path.display())]
pub struct WriteError {
    /// The file or directory.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Readable by its owner alone.
pub(super) const PRIVATE: u32 = 0o600;
/// Readable by all.
pub(super) const PUBLIC: u32 = 0o644;

/// Puts `bytes` where `path` is, or takes the place of what is there: written beside it, synced, renamed.
pub(super) fn replace(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), WriteError> {
    let beside = beside(path);
    let written = create(&beside, mode, bytes).and_then(|()| rename(&beside, path));
    if written.is_err() {
        drop(fs::remove_file(&beside));
    }
    written
}

/// Writes a file that all may read and that must not be there yet.
///
/// # Errors
/// Where it is there, or cannot be written.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    create(path, PUBLIC, bytes)
}

/// Writes a file that must not be there yet.
pub(super) fn create(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), WriteError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(|source| failed(path, source))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|source| {
        drop(fs::remove_file(path));
        failed(path, source)
    })
}

/// Gives a file another name in its directory, in the place of what has that name.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), WriteError> {
    fs::rename(from, to).map_err(|source| failed(to, source))?;
    sync_dir(parent_of(to))
}

/// Makes a directory where there is none.
pub(super) fn ensure_dir(dir: &Path) -> Result<(), WriteError> {
    match DirBuilder::new().mode(0o755).create(dir) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(failed(dir, source)),
        _ => Ok(()),
    }
}

/// A directory beside the final one, so that a rename puts it into place; removed unless that happened.
pub(super) struct Staging(PathBuf);

impl Staging {
    pub(super) fn create(dir: &Path) -> Result<Self, WriteError> {
        let parent = parent_of(dir);
        fs::create_dir_all(parent).map_err(|source| failed(parent, source))?;
        let path = beside(dir);
        DirBuilder::new().mode(0o700).create(&path).map_err(|source| failed(&path, source))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Renames it to `dir`, which fails where `dir` has something in it (rename(2)).
    pub(super) fn commit(self, dir: &Path) -> Result<(), WriteError> {
        sync_dir(&self.0)?;
        rename(&self.0, dir)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "remove this directory: it holds unused private keys");
            }
            _ => {}
        }
    }
}

/// A hidden name in the same directory that nothing else has.
fn beside(path: &Path) -> PathBuf {
    let mut hidden = OsString::from(".");
    hidden.push(path.file_name().unwrap_or_else(|| OsStr::new("ca")));
    hidden.push(format!(".new-{:016x}", rand::random::<u64>()));
    parent_of(path).join(hidden)
}

fn sync_dir(dir: &Path) -> Result<(), WriteError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| failed(dir, source))
}

/// The directory that `path` is in; for a bare name, the working directory.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn failed(path: &Path, source: io::Error) -> WriteError {
    WriteError { path: path.to_owned(), source }
}
