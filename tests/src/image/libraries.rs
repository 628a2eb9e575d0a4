//! Where a program is, and which libraries it loads.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

/// Where programs are looked for: also where Debian puts those of administrators.
const FOLDERS: [&str; 4] = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];

/// Finds a program of this machine by its name.
pub(super) fn find(name: &str) -> Result<PathBuf> {
    let paths = FOLDERS.map(|folder| Path::new(folder).join(name));
    let found = paths.into_iter().find(|path| path.is_file());
    found.with_context(|| {
        format!("{name} is not installed: `cargo xtask setup` installs what images are made of")
    })
}

/// The libraries that the dynamic linker would load for a program, and the linker itself; none for a static program.
pub(super) fn of(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("starting ldd (package libc-bin)")?;
    // ldd fails for a static program.
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    if let Some(missing) = listed.lines().find(|line| line.contains("=> not found")) {
        anyhow::bail!("{} does not run here: {}", program.display(), missing.trim());
    }
    Ok(listed.lines().filter_map(library).map(PathBuf::from).collect())
}

/// Reads a line of ldd: `libc.so.6 => /lib/libc.so.6 (0x…)` or `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn library(line: &str) -> Option<&str> {
    line.split_whitespace().find(|word| word.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_libraries_of_a_program() {
        assert_eq!(library("\tlibc.so.6 => /lib/libc.so.6 (0x1)"), Some("/lib/libc.so.6"));
        assert_eq!(library("\t/lib64/ld-linux-x86-64.so.2 (0x1)"), Some("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(library("\tlinux-vdso.so.1 (0x1)"), None);
        assert!(of(&find("sleep").unwrap()).unwrap().iter().any(|path| path.ends_with("libc.so.6")));
        assert!(!super::super::is_static(&find("sleep").unwrap()).unwrap());
    }
}
