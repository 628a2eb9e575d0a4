//! `cargo xtask tidy`: the rules of the house that no compiler checks.
//!
//! [`imports`] is the table of docs/architecture.md, "Imports"; [`paths`] finds what a source file names; [`manifests`] says
//! which package may depend on which; [`leftovers`] is about text.

mod imports;
mod leftovers;
mod manifests;
mod paths;

use std::{fmt, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{command, layout};

/// A place where a rule is broken.
#[derive(Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Violation {
    /// The file, relative to the root of the checkout.
    file: String,
    /// The line, from 1; 0 where the whole file is meant.
    line: usize,
    message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.message),
            line => write!(f, "{}:{line}: {}", self.file, self.message),
        }
    }
}

/// Checks every file of the checkout that git knows or would take.
pub(crate) fn run() -> Result<()> {
    let mut violations = manifests::check(&manifests::Package::read_all()?);
    for file in files()? {
        // A binary file holds no text to check.
        let Ok(text) = fs::read_to_string(layout::root().join(&file)) else { continue };
        violations.extend(leftovers::check(&file, &text));
        if file.ends_with(".rs") {
            let parsed = syn::parse_file(&text).with_context(|| format!("parsing {file}"))?;
            violations.extend(leftovers::check_header(&file, &parsed));
            violations.extend(imports::check(&file, &parsed));
        }
    }
    if violations.is_empty() {
        println!("tidy: the rules of the house are kept");
        return Ok(());
    }
    violations.sort();
    for violation in &violations {
        eprintln!("{violation}");
    }
    bail!("tidy: {} rules of the house broken", violations.len());
}

/// Returns the files of the checkout, relative to its root.
fn files() -> Result<Vec<String>> {
    let mut git = Command::new("git");
    git.current_dir(layout::root()).args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let listed = command::output(&mut git).context("listing the files of the checkout")?;
    let exists = |file: &&str| Path::is_file(&layout::root().join(file));
    Ok(listed.lines().filter(exists).map(str::to_owned).collect())
}
