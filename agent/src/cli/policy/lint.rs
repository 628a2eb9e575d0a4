//! `culvert policy lint`: what is odd in the policies of some files.

use std::{fmt::Write as _, path::PathBuf, process::ExitCode};

use clap::{Args, ValueEnum};

use super::{
    FOUND, files,
    paint::{Ink, Paint},
    settings::SettingsArgs,
    show,
};
use crate::control::{Finding, Severity, lint};

/// Find mistakes in policies, and what they cannot mean
///
/// It knows of pods what the files say of them: give it their objects, too. docs/policy.md lists what it finds. It ends
/// with 1 where a finding is at least as bad as --deny says, and with 2 where a file cannot be read.
#[derive(Args, Clone, Debug)]
pub(super) struct LintArgs {
    /// Files of Kubernetes objects; of a directory, those in it that end in .yaml, .yml or .json
    #[arg(required = true)]
    files: Vec<PathBuf>,

    #[command(flatten)]
    settings: SettingsArgs,

    /// As JSON
    #[arg(long)]
    json: bool,

    /// How bad a finding must be for the command to fail
    #[arg(long, value_name = "SEVERITY", default_value = "error")]
    deny: Deny,
}

/// How bad a finding must be for the command to fail.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Deny {
    /// Any finding
    Info,
    /// What may mean something else than its author thinks
    Warning,
    /// What cannot be read
    Error,
}

/// Prints the findings.
pub(super) fn run(args: &LintArgs) -> anyhow::Result<ExitCode> {
    let findings = lint(&files::read(&args.files, args.settings.settings())?);
    if args.json {
        show(&(serde_json::to_string_pretty(&findings)? + "\n"))?;
    } else {
        show(&render(&findings, Paint::of_stdout()))?;
    }
    let worst = findings.iter().map(|finding| finding.severity).max();
    Ok(if worst >= Some(args.deny.severity()) { ExitCode::from(FOUND) } else { ExitCode::SUCCESS })
}

impl Deny {
    fn severity(self) -> Severity {
        match self {
            Self::Info => Severity::Info,
            Self::Warning => Severity::Warning,
            Self::Error => Severity::Error,
        }
    }
}

/// Renders the findings for people, by file.
fn render(findings: &[Finding], paint: Paint) -> String {
    let mut text = String::new();
    for of_file in findings.chunk_by(|one, other| one.file == other.file) {
        if let Some(file) = &of_file[0].file {
            let _ = writeln!(text, "{}", file.display());
        }
        of_file.iter().for_each(|finding| render_one(&mut text, finding, paint));
        text.push('\n');
    }
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let _ = writeln!(
        text,
        "{}, {}, {}",
        plural(count(Severity::Error), "error"),
        plural(count(Severity::Warning), "warning"),
        plural(count(Severity::Info), "remark")
    );
    text
}

fn render_one(text: &mut String, finding: &Finding, paint: Paint) {
    let Finding { code, severity, object, file: _, line, field, message, remedy } = finding;
    let ink = match severity {
        Severity::Error => Ink::Bad,
        Severity::Warning => Ink::Doubtful,
        Severity::Info => Ink::Faint,
    };
    let line = line.map_or_else(String::new, |line| format!("{line}: "));
    let severity = paint.ink(ink, severity.as_str());
    let _ = writeln!(text, "  {line}{severity}[{}]: {}", code.as_str(), object.as_deref().unwrap_or(""));
    let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
    let _ = writeln!(text, "      {field}{message}");
    let _ = writeln!(text, "      {}", paint.ink(Ink::Faint, &format!("remedy: {remedy}")));
}

fn plural(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
