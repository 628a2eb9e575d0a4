//! `culvert ca`: the certificate authority in a directory.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::ca_serve;
use crate::{
    identity::{LocalCa, ca::Lifetimes},
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
    /// Give out certificates over gRPC, by Istio's CSR protocol
    Serve(Box<ca_serve::ServeArgs>),
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
    #[arg(long, value_name = "DURATION", default_value = "1095d", value_parser = humantime::parse_duration)]
    intermediate_lifetime: Duration,
}

/// Runs `culvert ca`.
///
/// # Errors
/// Where the authority cannot be made; nothing is left behind then.
pub(super) fn run(args: CaArgs) -> anyhow::Result<()> {
    match args.command {
        CaCommand::Init(args) => init(args),
        CaCommand::Serve(args) => ca_serve::run(*args),
    }
}

fn init(args: InitArgs) -> anyhow::Result<()> {
    let InitArgs { dir, trust_domain, root_lifetime, intermediate_lifetime } = args;
    let lifetimes = Lifetimes { root: root_lifetime, intermediate: intermediate_lifetime };
    LocalCa::init(&dir, &trust_domain, lifetimes).context("no authority was made")?;
    println!("Made a certificate authority for trust domain {trust_domain} in {}", dir.display());
    println!();
    println!("  root.pem, intermediate.pem, intermediate.key   what an agent needs (--ca-dir)");
    println!(
        "  root.key                                       signs new intermediates only: move it to a safe place"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        ca: CaArgs,
    }

    fn culvert_ca(args: &[&str]) -> anyhow::Result<()> {
        run(Cli::try_parse_from([&["ca"], args].concat())?.ca)
    }

    #[test]
    fn init_makes_an_authority_for_the_trust_domain_and_does_so_once() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("ca");
        let init = ["init", dir.to_str().unwrap(), "--trust-domain", "example.org"];
        culvert_ca(&init).unwrap();
        assert_eq!(LocalCa::open(&dir).unwrap().trust_domain().as_str(), "example.org");
        assert!(culvert_ca(&init).is_err());
    }

    #[test]
    fn init_refuses_what_is_no_trust_domain_or_no_duration() {
        assert!(culvert_ca(&["init", "/nowhere", "--trust-domain", "Example.org"]).is_err());
        assert!(culvert_ca(&["init", "/nowhere", "--root-lifetime", "long"]).is_err());
    }
}
