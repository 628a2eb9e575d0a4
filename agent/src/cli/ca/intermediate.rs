//! `culvert ca intermediate`, and `request`, `sign` and `install` where the root's key is on another machine.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Args;

use super::{INTERMEDIATE, directory};
use crate::identity::ca::{sign_request, write_new};

#[derive(Args, Debug)]
pub(super) struct ReplaceArgs {
    /// The authority's directory
    dir: PathBuf,
    /// The key of a root in root.pem, wherever it is [default: root.key in the directory]
    #[arg(long, value_name = "FILE")]
    root_key: Option<PathBuf>,
    /// How long the intermediate is valid, at most as long as the root
    #[arg(long, value_name = "DURATION", default_value = INTERMEDIATE, value_parser = humantime::parse_duration)]
    lifetime: Duration,
}

#[derive(Args, Debug)]
pub(super) struct RequestArgs {
    /// The authority's directory
    dir: PathBuf,
}

#[derive(Args, Debug)]
pub(super) struct SignArgs {
    /// The request, intermediate.csr, that `culvert ca request` wrote
    request: PathBuf,
    /// The root's key
    #[arg(long, value_name = "FILE")]
    root_key: PathBuf,
    /// The root's certificate; among several, the one of that key
    #[arg(long, value_name = "FILE")]
    root_certificate: PathBuf,
    /// The file to write the intermediate's certificate to; it must not exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// How long the intermediate is valid, at most as long as the root
    #[arg(long, value_name = "DURATION", default_value = INTERMEDIATE, value_parser = humantime::parse_duration)]
    lifetime: Duration,
}

#[derive(Args, Debug)]
pub(super) struct InstallArgs {
    /// The authority's directory, in which the request was made
    dir: PathBuf,
    /// The intermediate's certificate, as `culvert ca sign` wrote it
    certificate: PathBuf,
}

pub(super) fn replace(args: &ReplaceArgs) -> anyhow::Result<()> {
    let ReplaceArgs { dir, root_key, lifetime } = args;
    let key = root_key.clone().unwrap_or_else(|| dir.join("root.key"));
    let new = directory(dir)?
        .renew_intermediate(&key, *lifetime)
        .with_context(|| format!("the intermediate in {} is what it was", dir.display()))?;
    say_replaced(dir, &new);
    Ok(())
}

pub(super) fn request(args: &RequestArgs) -> anyhow::Result<()> {
    let dir = &args.dir;
    let request =
        directory(dir)?.request().with_context(|| format!("no request was made in {}", dir.display()))?;
    println!("Wrote {}; its key stays in this directory. Next:", request.display());
    println!();
    println!("  take it to the machine that has the root's key, and there:");
    println!(
        "    culvert ca sign intermediate.csr --root-key root.key --root-certificate root.pem --out intermediate.pem"
    );
    println!("  bring the new intermediate.pem back, and here:");
    println!("    culvert ca install {} PATH/intermediate.pem", dir.display());
    Ok(())
}

pub(super) fn sign(args: &SignArgs) -> anyhow::Result<()> {
    let SignArgs { request, root_key, root_certificate, out, lifetime } = args;
    let certificate =
        sign_request(request, root_key, root_certificate, *lifetime).context("nothing was signed")?;
    write_new(out, certificate.as_bytes()).context("nothing was signed")?;
    println!("Wrote {}. Next, where the request was made:", out.display());
    println!();
    println!("  culvert ca install DIR {}", out.display());
    Ok(())
}

pub(super) fn install(args: &InstallArgs) -> anyhow::Result<()> {
    let InstallArgs { dir, certificate } = args;
    let new = directory(dir)?
        .install(certificate)
        .with_context(|| format!("the intermediate in {} is what it was", dir.display()))?;
    say_replaced(dir, &new);
    Ok(())
}

fn say_replaced(dir: &std::path::Path, new: &str) {
    println!("The intermediate is {new} from now on; the one before is kept in {}/retired.", dir.display());
    println!();
    println!(
        "  Agents of this directory sign with it within seconds, and renew what they have within a minute."
    );
    println!("  Where nodes have copies: copy root.pem first, then intermediate.pem and intermediate.key.");
    println!("  `culvert certs` on each node shows by whom its certificates are signed.");
}
