//! `culvert policy explain`: why the policies permit or refuse a connection, by files or by a running agent.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::anyhow;
use clap::Args;
use serde::Serialize;

use super::{files, paint::Paint, settings::SettingsArgs, show, tree};
use crate::{cli::socket::ask, mesh::Answer};

/// Explain what the policies say to a connection, and why
///
/// The policies are those of files, or those that a running agent has. It shows which of them apply, which rule matched or
/// which field failed. It ends with 0 whatever the verdict is, and with 2 where there is none.
#[derive(Args, Clone, Debug)]
pub(super) struct ExplainArgs {
    /// Who connects: namespace/pod, spiffe://…, or an address (plaintext); the first two may have @ADDRESS after them
    #[arg(long, value_name = "CLIENT")]
    from: String,

    /// What is connected to: namespace/pod:port, or namespace/pod@address:port
    #[arg(long, value_name = "POD:PORT")]
    to: String,

    /// Files of Kubernetes objects; of a directory, those in it that end in .yaml, .yml or .json
    #[arg(required_unless_present = "agent", conflicts_with = "agent")]
    files: Vec<PathBuf>,

    /// Ask the agent at this unix socket instead
    #[arg(long, value_name = "SOCKET")]
    agent: Option<PathBuf>,

    #[command(flatten)]
    settings: SettingsArgs,

    /// As JSON
    #[arg(long)]
    json: bool,
}

/// An answer as JSON, with what follows from it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    allowed: bool,
    would_be_allowed: bool,
    why: &'a str,
    decided_by: Vec<&'a str>,
    #[serde(flatten)]
    answer: &'a Answer,
}

/// Prints the explanation.
pub(super) fn run(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let answer = match &args.agent {
        Some(socket) => by_agent(args, socket)?,
        None => by_files(args)?,
    };
    if args.json {
        let document = Document {
            allowed: answer.is_allowed(),
            would_be_allowed: answer.would_be_allowed(),
            why: answer.why(),
            decided_by: answer.deciders(),
            answer: &answer,
        };
        show(&(serde_json::to_string_pretty(&document)? + "\n"))?;
    } else {
        show(&tree::render(&answer, Paint::of_stdout()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn by_files(args: &ExplainArgs) -> anyhow::Result<Answer> {
    let objects = files::read(&args.files, args.settings.settings())?;
    objects.problems().iter().for_each(|problem| eprintln!("warning: {problem}"));
    let snapshot = objects.snapshot_enrolling_by_default();
    Ok(Answer::find(&args.from, &args.to, &snapshot)?)
}

fn by_agent(args: &ExplainArgs, socket: &Path) -> anyhow::Result<Answer> {
    let path = format!("/policy/explain?from={}&to={}", escape(&args.from), escape(&args.to));
    let answer = ask(socket, &path)?;
    // What is no answer is the reason why there is none.
    serde_json::from_str(&answer).map_err(|_| anyhow!("the agent at {}: {}", socket.display(), answer.trim()))
}

/// Escapes a value of a query (RFC 3986, 2.1).
fn escape(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}
