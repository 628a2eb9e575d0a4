//! Counts what passed and what failed, from libtest's own summaries, and names what failed.

use std::fmt;

use anyhow::{Result, bail};

/// How many tests and checks passed and failed.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Tally {
    passed: usize,
    failed: usize,
    /// Those of the failed that a list named.
    failures: Vec<String>,
    /// Whether such a list is being read.
    listing: bool,
}

impl Tally {
    /// Reads one line of a test program's output; only summaries count, and the list before each.
    pub(super) fn read(&mut self, line: &str) {
        self.read_list(line);
        let Some(summary) = line.trim_start().strip_prefix("test result: ") else { return };
        for part in summary.split([';', '.']) {
            match part.trim().split_once(' ') {
                Some((count, "passed")) => self.passed += count.parse().unwrap_or(0),
                Some((count, "failed")) => self.failed += count.parse().unwrap_or(0),
                _ => {}
            }
        }
    }

    /// Of the two lists that libtest begins alike, the one with what the tests printed holds no bare name first.
    fn read_list(&mut self, line: &str) {
        match line.strip_prefix("    ") {
            _ if line == "failures:" => self.listing = true,
            Some(name) if self.listing && !name.contains(' ') => self.failures.push(name.to_owned()),
            _ => self.listing = false,
        }
    }

    /// Counts one failure that no summary names.
    pub(super) fn fail(&mut self) {
        self.failed += 1;
    }

    /// Counts `total` checks of which `failed` did.
    pub(super) fn add(&mut self, total: usize, failed: usize) {
        self.passed += total.saturating_sub(failed);
        self.failed += failed;
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend_from_slice(&other.failures);
    }

    /// Returns the names of what failed, where libtest said them.
    pub(super) fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Returns the same with everything that failed counted as passed.
    pub(super) fn with_failures_passed(self) -> Self {
        Self { passed: self.passed + self.failed, ..Self::default() }
    }

    pub(super) fn passed(&self) -> usize {
        self.passed
    }

    pub(super) fn failed(&self) -> usize {
        self.failed
    }

    /// Anything that failed is an error, and so is a run in which nothing was tested.
    pub(super) fn verdict(&self) -> Result<()> {
        match self {
            Self { failed: 1.., .. } => bail!("not everything passed"),
            Self { passed: 0, .. } => bail!("nothing was tested"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[&str], expected: &str) -> Tally {
        let mut tally = Tally::default();
        lines.iter().for_each(|line| tally.read(line));
        assert_eq!(tally.to_string(), expected, "{lines:?}");
        tally
    }

    #[test]
    fn adds_the_summaries_of_all_programs() {
        let ok =
            "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s";
        let bad = "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.5s";
        assert!(check(&[ok, "noise: 7 passed", ok], "10 passed, 0 failed").verdict().is_ok());
        assert!(check(&[ok, bad], "7 passed, 3 failed").verdict().is_err());
    }

    #[test]
    fn nothing_tested_is_no_success() {
        assert!(check(&["running 0 tests"], "0 passed, 0 failed").verdict().is_err());
    }

    #[test]
    fn names_what_failed() {
        let output = [
            "failures:",
            "",
            "---- live::a stdout ----",
            "    noise",
            "failures:",
            "    live::a",
            "    outside::b",
            "",
            "test result: FAILED. 2 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.5s",
        ];
        assert_eq!(check(&output, "2 passed, 2 failed").failures(), ["live::a", "outside::b"]);
    }

    #[test]
    fn a_failure_without_a_summary_counts() {
        let mut tally = Tally::default();
        tally.add(6, 1);
        tally.fail();
        assert_eq!(tally.to_string(), "5 passed, 2 failed");
    }
}
