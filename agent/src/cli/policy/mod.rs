//! `culvert policy`: test, lint and explain policies, with no need of a cluster. docs/policy.md says what they mean.

mod explain;
mod files;
mod lint;
mod paint;
mod settings;
mod test;
mod tree;

use std::{
    io::{ErrorKind, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};

/// Test policies, find what is odd in them, and explain what they say to a connection
///
/// The policies are PeerAuthentications and AuthorizationPolicies of security.istio.io, in the files that they stand in
/// anyway.
#[derive(Args, Clone, Debug)]
pub(super) struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Clone, Debug, Subcommand)]
// Their help is their arguments' own, of which a line here would leave but the line.
enum PolicyCommand {
    Test(test::TestArgs),
    Lint(lint::LintArgs),
    Explain(explain::ExplainArgs),
}

/// Runs `culvert policy`.
pub(super) fn run(args: &PolicyArgs) -> ExitCode {
    let outcome = match &args.command {
        PolicyCommand::Test(args) => test::run(args),
        PolicyCommand::Lint(args) => lint::run(args),
        PolicyCommand::Explain(args) => explain::run(args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("culvert: {error:#}");
        ExitCode::from(UNUSABLE)
    })
}

/// Writes to the standard output. That nobody reads on, as with `| head`, is no failure.
fn show(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("writing the output"),
        _ => Ok(()),
    }
}

/// What the process ends with where something was found that the person asked about: a case that fails, a finding.
const FOUND: u8 = 1;
/// What the process ends with where it could not do what it was asked.
const UNUSABLE: u8 = 2;
