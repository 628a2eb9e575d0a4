//! What became of the cases, in the manner of `cargo test`.

use std::fmt::Write as _;

use super::super::paint::{Ink, Paint};

/// The cases that ran, in their order.
#[derive(Debug, Default)]
pub(super) struct Results {
    pub(super) ran: Vec<Ran>,
    /// Those that the filter left out.
    pub(super) filtered: usize,
}

/// A case that ran.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) file: String,
    pub(super) line: usize,
    pub(super) name: String,
    pub(super) failure: Option<Failure>,
}

/// Why a case failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// Each as `expected …, got …`.
    pub(super) mismatches: Vec<String>,
    /// What the policies say, and why.
    pub(super) explanation: String,
}

impl Results {
    pub(super) fn failed(&self) -> usize {
        self.ran.iter().filter(|ran| ran.failure.is_some()).count()
    }

    /// The cases of each file.
    pub(super) fn by_file(&self) -> impl Iterator<Item = &[Ran]> {
        self.ran.chunk_by(|one, other| one.file == other.file)
    }

    /// Renders them for people.
    pub(super) fn render(&self, paint: Paint) -> String {
        let mut text = format!("\nrunning {} tests\n", self.ran.len());
        for ran in &self.ran {
            let verdict = if ran.failure.is_some() {
                paint.ink(Ink::Bad, "FAILED")
            } else {
                paint.ink(Ink::Good, "ok")
            };
            let _ = writeln!(text, "test {}: {} ... {verdict}", ran.file, ran.name);
        }
        self.failures(&mut text);
        let failed = self.failed();
        let verdict = if failed == 0 { paint.ink(Ink::Good, "ok") } else { paint.ink(Ink::Bad, "FAILED") };
        let passed = self.ran.len() - failed;
        let _ = writeln!(
            text,
            "\ntest result: {verdict}. {passed} passed; {failed} failed; {} filtered out",
            self.filtered
        );
        text
    }

    fn failures(&self, text: &mut String) {
        let failures = || self.ran.iter().filter_map(|ran| Some((ran, ran.failure.as_ref()?)));
        if self.failed() == 0 {
            return;
        }
        text.push_str("\nfailures:\n");
        for (ran, failure) in failures() {
            let _ = writeln!(text, "\n---- {}: {} ----", ran.file, ran.name);
            for mismatch in &failure.mismatches {
                let _ = writeln!(text, "{}:{}: {mismatch}", ran.file, ran.line);
            }
            text.push_str(&failure.explanation);
        }
        text.push_str("\nfailures:\n");
        for (ran, _) in failures() {
            let _ = writeln!(text, "    {}: {}", ran.file, ran.name);
        }
    }
}
