//! The files that the command line names.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

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

fn within(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let reading = || format!("reading {}", directory.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("yaml" | "yml" | "json")) && path.is_file() {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}
