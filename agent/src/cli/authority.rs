//! Which authority signs: the options that `culvert agent` and `culvert ca serve` share.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Args;

use crate::{
    identity::{CertificateAuthority, LocalCa},
    mesh::TrustDomain,
};

/// The authority that signs the workloads' certificates: exactly one.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Certificate authority")]
#[group(id = "authority", required = true, multiple = false)]
pub struct AuthorityArgs {
    /// A directory that `culvert ca init` made. Its root key is not needed here.
    #[arg(long, env = "CULVERT_CA_DIR", value_name = "DIR")]
    pub ca_dir: Option<PathBuf>,
}

impl AuthorityArgs {
    /// Opens the authority; it signs certificates that are valid for `lifetime`. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// Where the authority cannot be used as it is configured. One that does not answer yet is no error.
    pub(crate) fn open(
        &self,
        lifetime: Duration,
    ) -> anyhow::Result<(Arc<dyn CertificateAuthority>, TrustDomain)> {
        let dir = self.ca_dir.as_ref().context("no certificate authority was named (--ca-dir)")?;
        let ca = LocalCa::open(dir)
            .with_context(|| format!("opening the certificate authority in {}", dir.display()))?
            .with_lifetime(lifetime);
        let trust_domain = ca.trust_domain().clone();
        Ok((Arc::new(ca), trust_domain))
    }
}
