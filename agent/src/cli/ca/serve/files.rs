//! A server without an API server: keys, pods and authority are files.

use std::time::Duration;

use anyhow::Context as _;

use super::{ServeArgs, Shown, Sources};
use crate::{
    ca_server::{Callers, SignedTokens, TokenRules},
    control::Manifests,
};

/// Opens them. Must be called within a Tokio runtime.
pub(super) fn open(args: &ServeArgs, shown: &mut Shown) -> anyhow::Result<Sources> {
    let authority = args.authority.open_with_key(args.max_lifetime)?;
    let rules = TokenRules {
        jwks: args.jwks.clone().context("without --kube, --jwks is needed")?,
        audience: args.audience.clone(),
        issuer: args.issuer.clone(),
        agents: args.agents.clone(),
    };
    let callers = Callers::Signed(SignedTokens::new(rules)?);
    let dir = args.manifests.clone().context("without --kube, --manifests is needed")?;
    let manifests = Manifests::start(dir.clone(), authority.1.clone(), String::new())
        .with_context(|| format!("reading the manifests in {}", dir.display()))?;
    let problems = manifests.problems();
    shown.notes.push(Box::new(move || problems.borrow().iter().map(ToString::to_string).collect()));
    let mesh = manifests.snapshots();
    // What is not in the directory is not on its way either.
    let late_pods = Duration::ZERO;
    Ok(Sources { authority, callers, mesh, late_pods, _kept: Box::new(manifests) })
}
