//! Where things are: the checkout, and the cache beside it that outlives it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Returns the root of the checkout.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Returns cargo's target folder, wherever its configuration puts it: this program lies in `<target>/debug`.
pub(crate) fn target() -> Result<PathBuf> {
    let program = std::env::current_exe().context("finding this program's own path")?;
    let folder = program.ancestors().nth(2).context("this program does not lie in cargo's target folder")?;
    Ok(folder.to_owned())
}

/// Returns the folder for what is downloaded once for all checkouts, created if need be.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(base) => PathBuf::from(base),
        None => std::env::home_dir().context("no home directory: set XDG_CACHE_HOME")?.join(".cache"),
    };
    let cache = base.join("culvert");
    std::fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
    Ok(cache)
}
