//! The files that the command line names.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};

use crate::control::{Objects, Settings, Source};

/// Returns the files, with those of a directory (`.yaml`, `.yml`, `.json`, not those of its subdirectories) in its place.
///
/// # Errors
/// Where a directory cannot be read.
pub(super) fn expand(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            files.append(&mut within(path)?);
        } else {
            files.push(path.clone());
        }
    }
    Ok(files)
}

/// Reads the objects of such files.
///
/// # Errors
/// Where one cannot be read, or an object in it cannot be told from others.
pub(super) fn read(paths: &[PathBuf], settings: Settings) -> anyhow::Result<Objects> {
    let mut objects = Objects::new(settings);
    for path in expand(paths)? {
        let read = Source::read(path).and_then(|source| objects.read(&source));
        read.map_err(|problem| anyhow!("{problem}"))?;
    }
    Ok(objects)
}

fn within(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let reading = || format!("reading {}", directory.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        if Source::is_named_as_one(&path) && path.is_file() {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}
