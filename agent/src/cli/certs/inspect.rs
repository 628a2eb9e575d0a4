//! `culvert certs inspect`: what a PEM file says, and what is wrong with it.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::SystemTime,
};

use anyhow::Context as _;
use clap::Args;
use zeroize::Zeroizing;

use crate::identity::{Section, TrustBundle, inspect};

/// Explain the certificates, requests, revocation lists and keys in a PEM file, and say what is wrong with them
///
/// It needs no agent. Of a private key nothing is shown but what it belongs to. It ends with 0 where all is well, 1 where
/// something is wrong, and 2 where the file cannot be read.
#[derive(Args, Clone, Debug)]
pub(super) struct InspectArgs {
    /// The file; `-` for the standard input
    file: PathBuf,

    /// The roots that the chain should lead to, as PEM: checks it as a peer would
    #[arg(long, value_name = "FILE")]
    roots: Option<PathBuf>,
}

/// What the process ends with.
const PROBLEMS: u8 = 1;
const UNREADABLE: u8 = 2;

/// Prints the explanation.
pub(super) fn run(args: &InspectArgs) -> ExitCode {
    match explain(args, SystemTime::now()) {
        Ok(sections) => {
            print!("{}", render(&sections));
            let sound = sections.iter().all(|section| section.problems.is_empty());
            if sound { ExitCode::SUCCESS } else { ExitCode::from(PROBLEMS) }
        }
        Err(error) => {
            eprintln!("culvert: {error:#}");
            ExitCode::from(UNREADABLE)
        }
    }
}

fn explain(args: &InspectArgs, now: SystemTime) -> anyhow::Result<Vec<Section>> {
    let roots = args.roots.as_deref().map(read_roots).transpose()?;
    let text = read(&args.file)?;
    inspect(&text, roots.as_ref(), now).with_context(|| args.file.display().to_string())
}

fn read_roots(path: &Path) -> anyhow::Result<TrustBundle> {
    TrustBundle::from_pem(&read(path)?).with_context(|| format!("{} (--roots)", path.display()))
}

/// Reads a file that may hold a key; no certificate file is longer than the bound.
fn read(path: &Path) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let mut text = Zeroizing::new(Vec::new());
    let source: Box<dyn std::io::Read> = if path.as_os_str() == "-" {
        Box::new(std::io::stdin())
    } else {
        Box::new(fs::File::open(path).with_context(|| format!("reading {}", path.display()))?)
    };
    source.take(LONGEST).read_to_end(&mut text).with_context(|| format!("reading {}", path.display()))?;
    Ok(text)
}

/// Bytes that are read: a revocation list of a hundred thousand certificates fits.
const LONGEST: u64 = 16 << 20;

fn render(sections: &[Section]) -> String {
    let mut lines = Vec::new();
    for Section { title, facts, problems, remarks } in sections {
        lines.push(title.clone());
        lines.extend(facts.iter().map(|(name, value)| format!("   {name:<16} {value}")));
        lines.extend(problems.iter().map(|problem| format!("   WRONG: {problem}")));
        lines.extend(remarks.iter().map(|remark| format!("   note: {remark}")));
        lines.push(String::new());
    }
    let problems: usize = sections.iter().map(|section| section.problems.len()).sum();
    lines.push(match problems {
        0 => "nothing is wrong with it".to_owned(),
        1 => "1 thing is wrong".to_owned(),
        many => format!("{many} things are wrong"),
    });
    lines.join("\n") + "\n"
}
