//! `culvert crds`: print the definitions of the kinds of policy.

use std::io::{self, Write as _};

use anyhow::Context as _;
use clap::Args;

/// Print the definitions of PeerAuthentication and AuthorizationPolicy
///
/// They are for clusters in which Istio has not installed its own: culvert crds | kubectl apply -f -
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct CrdsArgs {}

/// Prints them.
pub(super) fn run() -> anyhow::Result<()> {
    io::stdout().write_all(CRDS.as_bytes()).context("writing the definitions to the standard output")
}

const CRDS: &str = include_str!("crds.yaml");
