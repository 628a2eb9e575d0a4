//! A short run of libFuzzer over what strangers can send and users can write (tests/fuzz): long enough to find what a change broke, not what
//! nobody has found before.

use std::{fs, process::Command};

use anyhow::{Context as _, Result};

use super::tally::Tally;
use crate::{command, layout};

/// The programs of tests/fuzz, by the names of their corpora.
const TARGETS: [&str; 5] = ["identity", "certificate", "request", "attributes", "policy"];

/// Seconds for each.
const SECONDS: u32 = 20;

/// Builds the programs so that libFuzzer sees which code is reached, and runs each for a while. What it learns goes to
/// cargo's target folder, and is where the next run goes on.
pub(super) fn run(filter: Option<&str>, tally: &mut Tally) -> Result<()> {
    let (root, target) = (layout::root(), layout::target()?);
    let mut cargo = command::cargo();
    cargo.args(["build", "--package", "fuzz", "--bins"]);
    cargo.env("RUSTC_WORKSPACE_WRAPPER", root.join("tests/fuzz/instrument"));
    command::run(&mut cargo).context("building what is fuzzed")?;
    for name in TARGETS.into_iter().filter(|name| filter.is_none_or(|filter| name.contains(filter))) {
        println!("\nfuzzing {name} for {SECONDS} s");
        let learnt = target.join("fuzz").join(name);
        fs::create_dir_all(&learnt).with_context(|| format!("creating {}", learnt.display()))?;
        let mut fuzz = Command::new(target.join("debug").join(format!("fuzz-{name}")));
        fuzz.current_dir(root).arg(&learnt).arg(root.join("tests/fuzz/corpus").join(name));
        fuzz.arg(format!("-max_total_time={SECONDS}"));
        // What does not hold is left there, for `target/debug/fuzz-NAME FILE` to show it again.
        fuzz.arg(format!("-artifact_prefix={}/", target.join("fuzz").display()));
        fuzz.args(LIMITS);
        let outcome = command::run(&mut fuzz);
        if let Err(error) = &outcome {
            eprintln!("error: fuzz {name}: {error:#}");
        }
        tally.add(1, usize::from(outcome.is_err()));
    }
    Ok(())
}

/// Certificates, requests and policies have some 500 bytes; one input may take ten seconds and 2 GiB. Of libFuzzer's words
/// only the sums.
const LIMITS: [&str; 6] = [
    "-max_len=2048",
    "-timeout=10",
    "-rss_limit_mb=2048",
    "-use_value_profile=1",
    "-verbosity=0",
    "-print_final_stats=1",
];
