//! `culvert ca root`: the roots that the mesh trusts.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use humantime::format_rfc3339_seconds as rfc3339;

use super::directory;
use crate::identity::ca::Force;

#[derive(Debug, Subcommand)]
pub(super) enum RootCommand {
    /// Make a root and have it trusted beside the others
    New(NewArgs),
    /// Have the roots of a file trusted beside the others
    Add(AddArgs),
    /// List the roots that are trusted, and what needs each
    List(ListArgs),
    /// Have a root trusted no more
    Remove(RemoveArgs),
}

#[derive(Args, Debug)]
pub(super) struct NewArgs {
    /// The authority's directory
    dir: PathBuf,
    /// Where the root's key is written, such as on a removable disk [default: root-FINGERPRINT.key in the directory]
    #[arg(long, value_name = "FILE")]
    root_key: Option<PathBuf>,
    /// How long the root is valid
    #[arg(long, value_name = "DURATION", default_value = "3650d", value_parser = humantime::parse_duration)]
    lifetime: Duration,
}

#[derive(Args, Debug)]
pub(super) struct AddArgs {
    /// The authority's directory
    dir: PathBuf,
    /// Root certificates in PEM
    file: PathBuf,
}

#[derive(Args, Debug)]
pub(super) struct ListArgs {
    /// The authority's directory
    dir: PathBuf,
    /// What another node's agent recorded of the certificates that it signed: a copy of its directory's signed/
    #[arg(long, value_name = "DIR")]
    signed: Vec<PathBuf>,
}

#[derive(Args, Debug)]
pub(super) struct RemoveArgs {
    /// The authority's directory
    dir: PathBuf,
    /// The root's fingerprint as `culvert ca root list` prints it, or its beginning
    fingerprint: String,
    /// What another node's agent recorded of the certificates that it signed: a copy of its directory's signed/. To be
    /// given for each node that has a copy of the directory
    #[arg(long, value_name = "DIR")]
    signed: Vec<PathBuf>,
    /// Remove it although certificates need it: their connections fail from then on
    #[arg(long)]
    force: bool,
}

pub(super) fn run(command: &RootCommand) -> anyhow::Result<()> {
    match command {
        RootCommand::New(args) => new(args),
        RootCommand::Add(args) => add(args),
        RootCommand::List(args) => list(args),
        RootCommand::Remove(args) => remove(args),
    }
}

fn new(args: &NewArgs) -> anyhow::Result<()> {
    let NewArgs { dir, root_key, lifetime } = args;
    let (name, key) = directory(dir)?.new_root(root_key.as_deref(), *lifetime).context("no root was made")?;
    println!("Made the root {name}; {}/root.pem trusts it beside the others.", dir.display());
    println!();
    println!("  {}   its key: keep it in a safe place, off this machine", key.display());
    say_trusted();
    println!("    culvert ca intermediate {} --root-key {}", dir.display(), key.display());
    Ok(())
}

fn add(args: &AddArgs) -> anyhow::Result<()> {
    let AddArgs { dir, file } = args;
    let unchanged = || format!("the roots of {} are what they were", dir.display());
    for root in directory(dir)?.add_roots(file).with_context(unchanged)? {
        println!("{}/root.pem trusts {root} beside the others.", dir.display());
    }
    println!();
    say_trusted();
    println!("    culvert ca intermediate {} --root-key FILE", dir.display());
    Ok(())
}

fn say_trusted() {
    println!(
        "  Where nodes have copies of the directory, copy root.pem to every one of them. Only once every agent"
    );
    println!("  trusts it may something be signed under it:");
}

fn list(args: &ListArgs) -> anyhow::Result<()> {
    let roots = directory(&args.dir)?.roots(&args.signed)?;
    println!("{:64}  {:20}  SUBJECT", "FINGERPRINT", "NOT AFTER");
    for root in roots {
        println!("{}  {:20}  {}", root.fingerprint, rfc3339(root.not_after).to_string(), root.subject);
        for need in &root.needs {
            println!("  needed: {need}");
        }
        if root.needs.is_empty() {
            println!("  not needed by anything that is known here");
        }
    }
    Ok(())
}

fn remove(args: &RemoveArgs) -> anyhow::Result<()> {
    let RemoveArgs { dir, fingerprint, signed, force } = args;
    let force = if *force { Force::Yes } else { Force::No };
    let removed = directory(dir)?
        .remove_root(fingerprint, signed, force)
        .with_context(|| format!("the roots of {} are what they were", dir.display()))?;
    println!("{}/root.pem no longer trusts {removed}.", dir.display());
    println!();
    println!(
        "  Agents of this directory refuse its certificates within seconds. Where nodes have copies, copy root.pem to"
    );
    println!("  each of them. The root's key is of no use any more: destroy it.");
    Ok(())
}
