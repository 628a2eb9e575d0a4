//! Prometheus' alerting rules, checked and tested by `promtool`, which is Debian's and unpacked into the cache: its package
//! would start a server.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{command, debian::Wanted, layout};

/// Checks the rules, and runs their tests.
pub(crate) fn check() -> Result<()> {
    obtain()?;
    command::run(promtool()?.args(["check", "rules", RULES]))?;
    let folder = layout::root().join(TESTS);
    let entries = fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut tests: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    tests.sort();
    ensure!(!tests.is_empty(), "{TESTS} holds no tests");
    command::run(promtool()?.args(["test", "rules"]).args(tests))
}

/// Makes sure that `promtool` is there. Returns whether it was missing.
pub(crate) fn obtain() -> Result<bool> {
    let wanted = Wanted {
        task: "alerts",
        what: "promtool".to_owned(),
        prefix: PACKAGE,
        pick: &|names| names.lines().find(|name| *name == PACKAGE),
    };
    wanted.unpack_into(&folder()?)
}

fn folder() -> Result<PathBuf> {
    Ok(layout::cache()?.join(PACKAGE))
}

fn promtool() -> Result<Command> {
    let mut promtool = Command::new(folder()?.join("usr/bin/promtool"));
    promtool.current_dir(layout::root());
    Ok(promtool)
}

const PACKAGE: &str = "prometheus";
const RULES: &str = "deploy/alerts.yaml";
const TESTS: &str = "tests/alerts";
