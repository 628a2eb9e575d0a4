//! Kernel modules with everything that they depend on, in the order in which they must be loaded.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::command;

/// A module as the kernel loads it.
pub(super) struct Module {
    pub(super) name: String,
    /// The uncompressed ELF file.
    pub(super) content: Vec<u8>,
}

/// Returns `wanted` and what they need, each after what it needs. Debian's package ships no `modules.dep`, so every
/// module's own `.modinfo` is asked.
pub(super) fn load_order(folder: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut files = HashMap::new();
    find_files(folder, &mut files)?;
    let builtin = builtin(folder);
    let mut loader = Loader { files, builtin, seen: HashSet::new(), order: Vec::new() };
    for name in wanted {
        loader.add(name)?;
    }
    Ok(loader.order)
}

struct Loader {
    files: HashMap<String, PathBuf>,
    builtin: HashSet<String>,
    seen: HashSet<String>,
    order: Vec<Module>,
}

impl Loader {
    fn add(&mut self, name: &str) -> Result<()> {
        let name = normal(name);
        if self.builtin.contains(&name) || !self.seen.insert(name.clone()) {
            return Ok(());
        }
        let Some(file) = self.files.get(&name).cloned() else {
            bail!("the kernel has no module {name}");
        };
        let mut modinfo = Command::new("modinfo");
        modinfo.env("PATH", command::path()).args(["--field", "depends"]).arg(&file);
        let dependencies = command::output(&mut modinfo)?;
        for dependency in dependencies.split(',').filter(|dependency| !dependency.is_empty()) {
            self.add(dependency)?;
        }
        self.order.push(Module { name, content: unpacked(&file)? });
        Ok(())
    }
}

/// Finds all modules below a folder.
fn find_files(folder: &Path, files: &mut HashMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if path.is_dir() && !path.is_symlink() {
            find_files(&path, files)?;
        } else if let Some((name, "ko" | "ko.xz")) = file.split_once('.') {
            files.insert(normal(name), path);
        }
    }
    Ok(())
}

/// Reads which modules are built into the kernel.
fn builtin(folder: &Path) -> HashSet<String> {
    let listed = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
    let name = |line: &str| Some(normal(Path::new(line).file_stem()?.to_str()?));
    listed.lines().filter_map(name).collect()
}

/// File names may hold `-` where the module's name holds `_`.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn unpacked(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(file).with_context(|| format!("reading {}", file.display()));
    }
    let output =
        Command::new("xz").args(["--decompress", "--stdout"]).arg(file).output().context("starting xz")?;
    anyhow::ensure!(output.status.success(), "unpacking {} failed", file.display());
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_and_module_names_meet() {
        assert_eq!(normal("nf-conntrack"), "nf_conntrack");
        assert_eq!(builtin(Path::new("/nonexistent")), HashSet::new());
    }
}
