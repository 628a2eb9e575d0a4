//! `culvert policy test`: connections, and what the policies are to say to them.

mod junit;
mod results;
mod suite;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Args;

use self::{
    results::{Failure, Ran, Results},
    suite::{Case, Decider, Suite, Verdict},
};
use super::{FOUND, UNUSABLE, files, paint::Paint, show, tree};
use crate::{
    control::Problem,
    mesh::{Answer, Snapshot},
};

/// Run policy tests: what becomes of a connection, and by which policy
///
/// A test file holds Kubernetes objects, or names files of them, and cases: a client, a pod and its port, and what is to
/// become of the connection. docs/policy.md explains the format. It needs no agent and no privilege. It ends with 0 where
/// all cases pass, 1 where one fails, and 2 where a file is wrong.
#[derive(Args, Clone, Debug)]
pub(super) struct TestArgs {
    /// The test files; of a directory, those in it that end in .yaml, .yml or .json
    #[arg(required = true)]
    files: Vec<PathBuf>,

    /// Only the cases whose `FILE: NAME` contains this
    #[arg(long, value_name = "WORD")]
    filter: Option<String>,

    /// Write the results to a file, as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

/// Runs the cases and prints what became of them.
pub(super) fn run(args: &TestArgs) -> anyhow::Result<ExitCode> {
    let mut suites = Vec::new();
    let mut problems = Vec::new();
    for path in files::expand(&args.files)? {
        let file = path.display().to_string();
        match suite::read(path) {
            Ok(read) => suites.extend(read.into_iter().map(|suite| (file.clone(), suite))),
            Err(mut wrong) => problems.append(&mut wrong),
        }
    }
    if !problems.is_empty() {
        problems.iter().for_each(|problem| eprintln!("error: {problem}"));
        return Ok(ExitCode::from(UNUSABLE));
    }
    warn(&suites);
    let results = evaluate(&suites, args.filter.as_deref());
    show(&results.render(Paint::of_stdout()))?;
    if let Some(path) = &args.junit {
        fs::write(path, junit::render(&results)?).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(if results.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

/// Says what is odd in the objects: once, where several tests have it.
fn warn(suites: &[(String, Suite)]) {
    let mut said: Vec<&Problem> = Vec::new();
    for warning in suites.iter().flat_map(|(_, suite)| &suite.warnings) {
        if !said.contains(&warning) {
            eprintln!("warning: {warning}");
            said.push(warning);
        }
    }
}

fn evaluate(suites: &[(String, Suite)], filter: Option<&str>) -> Results {
    let mut results = Results::default();
    for (file, suite) in suites {
        for case in &suite.cases {
            if filter.is_some_and(|word| !format!("{file}: {}", case.name).contains(word)) {
                results.filtered += 1;
                continue;
            }
            let failure = case.run(&suite.snapshot);
            results.ran.push(Ran { file: file.clone(), line: case.line, name: case.name.clone(), failure });
        }
    }
    results
}

impl Case {
    /// Returns why it fails, if it does.
    fn run(&self, snapshot: &Snapshot) -> Option<Failure> {
        let answer = Answer::new(&self.query, snapshot.policies());
        let mut mismatches = Vec::new();
        let mut expect = |what: &str, expected: String, got: String| {
            mismatches.push(format!("expected {what}{expected}, got {got}"));
        };
        let got = Verdict::of(answer.is_allowed());
        if got != self.expect {
            expect("", self.expect.to_string(), got.to_string());
        }
        if let Some(policy) = self.policy.as_ref().filter(|policy| !policy.is_among(&answer.deciders())) {
            expect("policy ", policy.to_string(), names(&answer.deciders()));
        }
        let dry_run = Verdict::of(answer.would_be_allowed());
        if let Some(expected) = self.dry_run.filter(|expected| *expected != dry_run) {
            expect("dryRun ", expected.to_string(), dry_run.to_string());
        }
        (!mismatches.is_empty())
            .then(|| Failure { mismatches, explanation: tree::render(&answer, Paint::PLAIN) })
    }
}

impl Verdict {
    fn of(allowed: bool) -> Self {
        if allowed { Self::Allow } else { Self::Deny }
    }
}

impl Decider {
    fn is_among(&self, deciders: &[&str]) -> bool {
        match self {
            Self::None => deciders.is_empty(),
            policy @ Self::Policy { .. } => deciders.contains(&policy.to_string().as_str()),
        }
    }
}

fn names(deciders: &[&str]) -> String {
    if deciders.is_empty() { "none".to_owned() } else { deciders.join(", ") }
}
