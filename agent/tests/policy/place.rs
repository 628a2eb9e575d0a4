//! A directory of files, and the command run in it.

use std::{fs, path::Path, process::Command};

use tempfile::TempDir;

/// A directory that goes away with this.
pub(crate) struct Place(TempDir);

/// What the command did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Place {
    /// Makes a directory with files in it.
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Self(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs `culvert policy` with some words in the directory.
    pub(crate) fn policy(&self, words: &[&str]) -> Ran {
        policy_in(self.path(), words)
    }
}

/// Runs `culvert policy` with some words in a directory.
pub(crate) fn policy_in(directory: &Path, words: &[&str]) -> Ran {
    let mut culvert = Command::new(env!("CARGO_BIN_EXE_culvert"));
    let output = culvert.arg("policy").args(words).current_dir(directory).output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}
