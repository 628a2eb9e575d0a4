//! A second look at what failed: each test that fails is run once more, by itself, and one that passes then is unsteady.
//!
//! The suites share one kernel and two processors with real programs that have deadlines of their own, so one test in
//! thousands fails for what happened beside it. Such a failure stays in the output, is named again at the end, and only a
//! few of them are let pass in a run: a fault that shows often is a fault.

use anyhow::Result;

use super::tally::Tally;

/// Tests of one run that may pass at the second attempt only.
const MAX_UNSTEADY: usize = 3;

/// What was let pass so far.
#[derive(Debug, Default)]
pub(super) struct Again {
    unsteady: Vec<String>,
}

impl Again {
    /// Runs what failed in `seen` once more, by `run`, where few enough failed. Returns what counts.
    ///
    /// # Errors
    /// Those of `run`.
    pub(super) fn settle(
        &mut self,
        program: &str,
        seen: Tally,
        mut run: impl FnMut(&[String]) -> Result<Tally>,
    ) -> Result<Tally> {
        let failures = seen.failures().to_vec();
        let known = failures.len() == seen.failed();
        if failures.is_empty() || !known || self.unsteady.len() + failures.len() > MAX_UNSTEADY {
            return Ok(seen);
        }
        println!("\nonce more, by itself: {} of {program}", failures.join(", "));
        let second = run(&failures)?;
        if second.failed() > 0 || second.passed() < failures.len() {
            return Ok(seen);
        }
        self.unsteady.extend(failures.iter().map(|name| format!("{program}: {name}")));
        Ok(seen.with_failures_passed())
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        for name in &self.unsteady {
            println!("\nUNSTEADY: {name} failed, and passed by itself: its first failure is above");
        }
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
    fn what_passes_by_itself_is_unsteady_and_no_failure() {
        let mut again = Again::default();
        let settled = again.settle("policy", failed(&["live::a"]), |names| {
            assert_eq!(names, ["live::a"]);
            passed(1)
        });
        assert_eq!(settled.unwrap().to_string(), "8 passed, 0 failed");
        assert_eq!(again.unsteady, ["policy: live::a"]);
    }

    #[test]
    fn what_fails_twice_has_failed_and_so_has_what_was_not_run_again() {
        for second in [Ok(failed(&["a"])), passed(0)] {
            let mut again = Again::default();
            let mut second = Some(second);
            let settled = again.settle("policy", failed(&["a"]), |_| second.take().unwrap()).unwrap();
            assert_eq!(settled.to_string(), "7 passed, 1 failed");
        }
    }

    #[test]
    fn only_a_few_are_let_pass_in_a_run() {
        let mut again = Again::default();
        for (names, wanted) in [(vec!["a", "b"], 0), (vec!["c", "d"], 2), (vec!["e"], 0), (vec!["f"], 1)] {
            let settled = again.settle("policy", failed(&names), |names| passed(names.len())).unwrap();
            assert_eq!(settled.failed(), wanted, "{names:?}");
        }
    }

    #[test]
    fn a_program_that_ended_early_is_not_run_again() {
        let mut early = Tally::default();
        early.fail();
        let settled = Again::default().settle("policy", early, |_| unreachable!()).unwrap();
        assert_eq!(settled.failed(), 1);
    }
}
