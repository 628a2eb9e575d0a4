//! Files that appear whole or not at all: the agents watch the directory while the harness writes.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// Writes `content` beside `file`, and renames it into its place.
pub(crate) fn replace(file: &Path, content: &[u8]) -> Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, content).with_context(|| format!("writing {}", new.display()))?;
    fs::rename(&new, file).with_context(|| format!("renaming to {}", file.display()))
}

/// A directory of manifests. Files are written beside it and renamed into it.
#[derive(Debug)]
pub(crate) struct Manifests {
    directory: PathBuf,
    staging: PathBuf,
}

impl Manifests {
    pub(crate) fn create(parent: &Path) -> Result<Self> {
        let (directory, staging) = (parent.join("manifests"), parent.join("staging"));
        for made in [&directory, &staging] {
            fs::create_dir(made).with_context(|| format!("making {}", made.display()))?;
        }
        Ok(Self { directory, staging })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes `name`, unless it says the same already: a rewrite would wake every agent for nothing.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.directory.join(name);
        if fs::read_to_string(&path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        let mut file = tempfile::NamedTempFile::new_in(&self.staging).context("a file for a manifest")?;
        file.write_all(text.as_bytes()).with_context(|| format!("writing {name}"))?;
        file.persist(&path).with_context(|| format!("renaming to {}", path.display()))?;
        Ok(())
    }

    /// Removes `name`; one that is not there is no error.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        match fs::remove_file(self.directory.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {name}"))
            }
            _ => Ok(()),
        }
    }
}
