//! Counts what passed and what failed, from libtest's own summaries, and names what failed.
//!
//! Each test that fails is run once more, by itself, and one that passes then is unsteady. The suites share one kernel and
//! two processors with real programs that have deadlines of their own, so one test in thousands fails for what happened
//! beside it. Such a failure stays in the output, is named again at the end, and only a few of them are let pass in a run: a
//! fault that shows often is a fault.

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
    /// Those that passed at the second attempt only, with their programs.
    unsteady: Vec<String>,
}

/// Tests of one run that may pass at the second attempt only.
const MAX_UNSTEADY: usize = 3;

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

    /// Counts what was counted elsewhere.
    pub(super) fn merge(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend_from_slice(&other.failures);
        self.unsteady.extend_from_slice(&other.unsteady);
    }

    /// Counts what was `seen` of a program, after running once more, by `run`, what failed in it, where few enough failed.
    ///
    /// # Errors
    /// Those of `run`.
    pub(super) fn settle(
        &mut self,
        program: &str,
        mut seen: Self,
        mut run: impl FnMut(&[String]) -> Result<Self>,
    ) -> Result<()> {
        let known = seen.failures.len() == seen.failed;
        let few = self.unsteady.len() + seen.failed <= MAX_UNSTEADY;
        if seen.failed > 0 && known && few {
            println!("\nonce more, by itself: {} of {program}", seen.failures.join(", "));
            let second = run(&seen.failures)?;
            if second.failed == 0 && second.passed >= seen.failed {
                let unsteady = seen.failures.iter().map(|name| format!("{program}: {name}"));
                self.unsteady.extend(unsteady);
                seen = Self { passed: seen.passed + seen.failed, ..Self::default() };
            }
        }
        self.merge(&seen);
        Ok(())
    }

    /// Returns what passed at the second attempt only: `program: name`.
    pub(super) fn unsteady(&self) -> &[String] {
        &self.unsteady
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

    fn seen(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        lines.iter().for_each(|line| tally.read(line));
        tally
    }

    fn check(lines: &[&str], expected: &str) -> Tally {
        let tally = seen(lines);
        assert_eq!(tally.to_string(), expected, "{lines:?}");
        tally
    }

    fn failed(names: &[&str]) -> Tally {
        let lines = names.iter().map(|name| format!("    {name}"));
        let summary = format!("test result: FAILED. 7 passed; {} failed; 0 ignored", names.len());
        let lines: Vec<_> = ["failures:".to_owned()].into_iter().chain(lines).chain([summary]).collect();
        seen(&lines.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn passed(count: usize) -> Result<Tally> {
        Ok(seen(&[&format!("test result: ok. {count} passed; 0 failed; 0 ignored")]))
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
        assert_eq!(check(&output, "2 passed, 2 failed").failures, ["live::a", "outside::b"]);
    }

    #[test]
    fn a_failure_without_a_summary_counts() {
        let mut tally = Tally::default();
        tally.add(6, 1);
        tally.fail();
        assert_eq!(tally.to_string(), "5 passed, 2 failed");
    }

    #[test]
    fn what_passes_by_itself_is_unsteady_and_no_failure() {
        let mut tally = Tally::default();
        let settled = tally.settle("policy", failed(&["live::a"]), |names| {
            assert_eq!(names, ["live::a"]);
            passed(1)
        });
        settled.unwrap();
        assert_eq!(tally.to_string(), "8 passed, 0 failed");
        assert_eq!(tally.unsteady(), ["policy: live::a"]);
    }

    #[test]
    fn what_fails_twice_has_failed_and_so_has_what_was_not_run_again() {
        for second in [Ok(failed(&["a"])), passed(0)] {
            let (mut tally, mut second) = (Tally::default(), Some(second));
            tally.settle("policy", failed(&["a"]), |_| second.take().unwrap()).unwrap();
            assert_eq!(tally.to_string(), "7 passed, 1 failed");
            assert!(tally.unsteady().is_empty());
        }
    }

    #[test]
    fn only_a_few_are_let_pass_in_a_run() {
        let mut tally = Tally::default();
        for (names, wanted) in [(vec!["a", "b"], 0), (vec!["c", "d"], 2), (vec!["e"], 2), (vec!["f"], 3)] {
            tally.settle("policy", failed(&names), |names| passed(names.len())).unwrap();
            assert_eq!(tally.failed(), wanted, "{names:?}");
        }
    }

    #[test]
    fn a_program_that_ended_early_is_not_run_again() {
        let (mut tally, mut early) = (Tally::default(), Tally::default());
        early.fail();
        tally.settle("policy", early, |_| unreachable!()).unwrap();
        assert_eq!(tally.failed(), 1);
    }
}
