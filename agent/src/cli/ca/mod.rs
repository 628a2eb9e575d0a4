//! `culvert ca`: the certificate authority in a directory.

mod intermediate;
mod root;
mod serve;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};

use crate::{
    identity::{
        LocalCa,
        ca::{CaDirectory, Lifetimes},
    },
    mesh::TrustDomain,
};

/// Makes and looks after a certificate authority in a directory.
#[derive(Args, Debug)]
pub(super) struct CaArgs {
    #[command(subcommand)]
    command: CaCommand,
}

#[derive(Debug, Subcommand)]
enum CaCommand {
    /// Make a new authority: a root, and an intermediate that signs the workloads' certificates
    Init(InitArgs),
    /// Replace the intermediate by a new one, where the root's key is at hand
    Intermediate(intermediate::ReplaceArgs),
    /// Replace the intermediate where the root's key is elsewhere, first step: make a key and a request
    Request(intermediate::RequestArgs),
    /// Second step, on the machine that has the root's key: sign the request
    Sign(intermediate::SignArgs),
    /// Third step: put the signed certificate into place
    Install(intermediate::InstallArgs),
    /// The roots that the mesh trusts
    #[command(subcommand)]
    Root(root::RootCommand),
    /// Give out certificates over gRPC, by Istio's CSR protocol
    Serve(Box<serve::ServeArgs>),
}

#[derive(Args, Debug)]
struct InitArgs {
    /// Directory to make; an existing one must be empty
    dir: PathBuf,
    /// Trust domain of the mesh, the first part of every identity: spiffe://TRUST_DOMAIN/ns/…/sa/…
    #[arg(long, env = "CULVERT_TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: TrustDomain,
    /// How long the root is valid
    #[arg(long, value_name = "DURATION", default_value = "3650d", value_parser = humantime::parse_duration)]
    root_lifetime: Duration,
    /// How long the intermediate is valid, at most as long as the root
    #[arg(long, value_name = "DURATION", default_value = INTERMEDIATE, value_parser = humantime::parse_duration)]
    intermediate_lifetime: Duration,
    /// Where the root's key is written, such as on a removable disk [default: root.key in the directory]
    #[arg(long, value_name = "FILE")]
    root_key: Option<PathBuf>,
}

/// Runs `culvert ca`.
///
/// # Errors
/// Where what was asked for cannot be done; nothing is changed then.
pub(super) fn run(args: CaArgs) -> anyhow::Result<()> {
    match args.command {
        CaCommand::Init(args) => init(args),
        CaCommand::Intermediate(args) => intermediate::replace(&args),
        CaCommand::Request(args) => intermediate::request(&args),
        CaCommand::Sign(args) => intermediate::sign(&args),
        CaCommand::Install(args) => intermediate::install(&args),
        CaCommand::Root(command) => root::run(&command),
        CaCommand::Serve(args) => serve::run(*args),
    }
}

fn init(args: InitArgs) -> anyhow::Result<()> {
    let InitArgs { dir, trust_domain, root_lifetime, intermediate_lifetime, root_key } = args;
    let lifetimes = Lifetimes { root: root_lifetime, intermediate: intermediate_lifetime };
    match &root_key {
        None => LocalCa::init(&dir, &trust_domain, lifetimes),
        Some(key) => LocalCa::init_with_root_key(&dir, &trust_domain, lifetimes, key),
    }
    .context("no authority was made")?;
    println!("Made a certificate authority for trust domain {trust_domain} in {}", dir.display());
    println!();
    println!("  root.pem, intermediate.pem, intermediate.key   what an agent needs (--ca-dir)");
    let key = root_key.unwrap_or_else(|| dir.join("root.key"));
    println!("  {}   signs new intermediates only: keep it in a safe place, off this machine", key.display());
    Ok(())
}

/// Takes a directory for one command.
fn directory(dir: &Path) -> anyhow::Result<CaDirectory> {
    CaDirectory::open(dir).with_context(|| format!("{} was not changed", dir.display()))
}

/// How long an intermediate is valid: three years.
const INTERMEDIATE: &str = "1095d";
