//! Which authority signs: the options that `culvert agent` and `culvert ca serve` share.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use clap::{ArgGroup, Args};

use super::vault::VaultArgs;
use crate::{
    identity::{CertificateAuthority, LocalCa, VaultCa},
    mesh::TrustDomain,
};

/// The authority that signs the workloads' certificates: exactly one.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Certificate authority")]
#[command(group = ArgGroup::new("authority").required(true).multiple(false).args(["ca_dir", "vault_address"]))]
#[group(skip)]
pub struct AuthorityArgs {
    /// A directory that `culvert ca init` made. Its root key is not needed here.
    #[arg(long, env = "CULVERT_CA_DIR", value_name = "DIR")]
    pub ca_dir: Option<PathBuf>,

    /// The roots of the mesh, in PEM. Read again when the file changes.
    #[arg(long, env = "CULVERT_CA_ROOTS", value_name = "FILE")]
    pub ca_roots: Option<PathBuf>,

    /// The trust domain of the mesh, the first part of every identity. The intermediate in --ca-dir names its own
    /// [default: cluster.local].
    #[arg(long, env = "CULVERT_TRUST_DOMAIN", value_name = "NAME")]
    pub trust_domain: Option<TrustDomain>,

    /// HashiCorp Vault or OpenBao.
    #[command(flatten)]
    pub vault: VaultArgs,
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
        if self.vault.vault_address.is_some() {
            return self.open_vault(lifetime);
        }
        let dir =
            self.ca_dir.as_ref().context("no certificate authority was named (--ca-dir, --vault-address)")?;
        let ca = LocalCa::open(dir)
            .with_context(|| format!("opening the certificate authority in {}", dir.display()))?
            .with_lifetime(lifetime);
        let trust_domain = ca.trust_domain().clone();
        let asked = self.trust_domain.as_ref().unwrap_or(&trust_domain);
        let dir = dir.display();
        ensure!(
            *asked == trust_domain,
            "the authority in {dir} signs for {trust_domain}, not for {asked} (--trust-domain)"
        );
        Ok((Arc::new(ca), trust_domain))
    }

    fn open_vault(&self, lifetime: Duration) -> anyhow::Result<(Arc<dyn CertificateAuthority>, TrustDomain)> {
        let trust_domain = self.trust_domain.clone().unwrap_or_else(default_trust_domain);
        let config = self.vault.config(self.ca_roots.clone(), trust_domain.clone(), lifetime)?;
        let address = config.address.clone();
        let ca = VaultCa::open(config).with_context(|| format!("the certificate authority {address}"))?;
        Ok((Arc::new(ca), trust_domain))
    }
}

fn default_trust_domain() -> TrustDomain {
    "cluster.local".parse().expect("a valid trust domain")
}
