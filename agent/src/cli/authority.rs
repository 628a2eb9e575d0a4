//! Which authority signs: the options that `culvert agent` and `culvert ca serve` share.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use clap::{ArgGroup, Args};
use rustls::pki_types::ServerName;

use super::vault::VaultArgs;
use crate::{
    identity::{CertificateAuthority, GrpcCa, GrpcConfig, IssuerFiles, LocalCa, VaultCa, ca::CaAddress},
    mesh::TrustDomain,
};

/// The authority that signs the workloads' certificates: exactly one, but for `culvert ca serve --kube`, which has its own.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Certificate authority")]
#[command(group = ArgGroup::new("authority").required(false).multiple(false)
    .args(["ca_dir", "issuer_cert", "ca_address", "vault_address"]))]
#[group(skip)]
pub struct AuthorityArgs {
    /// A directory that `culvert ca init` made. Its root key is not needed here.
    #[arg(long, env = "CULVERT_CA_DIR", value_name = "DIR")]
    pub ca_dir: Option<PathBuf>,

    /// The certificate of an intermediate that somebody else keeps, and what vouches for it, in PEM: `tls.crt` of a Secret
    /// that cert-manager makes. Read again when the file changes.
    #[arg(long, env = "CULVERT_CA_ISSUER_CERT", value_name = "FILE", requires_all = ["issuer_key", "ca_roots"])]
    pub issuer_cert: Option<PathBuf>,

    /// The key of --issuer-cert, in PEM: `tls.key`.
    #[arg(long, env = "CULVERT_CA_ISSUER_KEY", value_name = "FILE")]
    pub issuer_key: Option<PathBuf>,

    /// An authority that speaks Istio's CSR protocol, https://HOST:PORT: istiod, cert-manager's istio-csr, or
    /// `culvert ca serve`.
    #[arg(long, env = "CULVERT_CA_ADDRESS", value_name = "URL", requires_all = ["ca_roots", "ca_token"])]
    pub ca_address: Option<CaAddress>,

    /// The roots of the mesh, in PEM. Read again when the file changes.
    #[arg(long, env = "CULVERT_CA_ROOTS", value_name = "FILE")]
    pub ca_roots: Option<PathBuf>,

    /// The roots that vouch for the server at --ca-address, in PEM; read again when the file changes [default: those in
    /// --ca-roots].
    #[arg(long, env = "CULVERT_CA_SERVER_ROOTS", value_name = "FILE")]
    pub ca_server_roots: Option<PathBuf>,

    /// The name that the certificate of the server at --ca-address must have [default: the host in --ca-address].
    #[arg(long, env = "CULVERT_CA_SERVER_NAME", value_name = "NAME", value_parser = server_name)]
    pub ca_server_name: Option<ServerName<'static>>,

    /// The token that the authority knows this agent by: a Kubernetes service account token for the audience
    /// `istio-ca`. Read again when the file changes.
    #[arg(long, env = "CULVERT_CA_TOKEN", value_name = "FILE")]
    pub ca_token: Option<PathBuf>,

    /// The name of this cluster, for an authority that serves several [default: none is sent].
    #[arg(long, env = "CULVERT_CA_CLUSTER", value_name = "NAME")]
    pub ca_cluster: Option<String>,

    /// The trust domain of the mesh, the first part of every identity. The intermediate in --ca-dir names its own
    /// [default: cluster.local].
    #[arg(long, env = "CULVERT_TRUST_DOMAIN", value_name = "NAME")]
    pub trust_domain: Option<TrustDomain>,

    /// HashiCorp Vault or OpenBao.
    #[command(flatten)]
    pub vault: VaultArgs,
}

/// An authority, the trust domain that it signs for, and the authority once more where its key is here.
pub(crate) type Opened = (Arc<dyn CertificateAuthority>, TrustDomain, Option<Arc<LocalCa>>);

impl AuthorityArgs {
    /// Whether an authority is named at all.
    pub(crate) fn is_named(&self) -> bool {
        let Self { ca_dir, issuer_cert, ca_address, vault, .. } = self;
        ca_dir.is_some() || issuer_cert.is_some() || ca_address.is_some() || vault.vault_address.is_some()
    }

    /// Opens the authority; it signs certificates that are valid for `lifetime`. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// Where the authority cannot be used as it is configured. One that does not answer yet is no error.
    pub(crate) fn open(
        &self,
        lifetime: Duration,
    ) -> anyhow::Result<(Arc<dyn CertificateAuthority>, TrustDomain)> {
        let (ca, trust_domain, _) = self.open_with_key(lifetime)?;
        Ok((ca, trust_domain))
    }

    /// Opens the authority as [`Self::open`] does, and returns it a second time as what it is where its key is here.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn open_with_key(&self, lifetime: Duration) -> anyhow::Result<Opened> {
        if let Some(address) = &self.ca_address {
            let (ca, trust_domain) = self.open_grpc(address, lifetime)?;
            return Ok((ca, trust_domain, None));
        }
        if self.vault.vault_address.is_some() {
            let (ca, trust_domain) = self.open_vault(lifetime)?;
            return Ok((ca, trust_domain, None));
        }
        let ca = self.open_local()?.with_lifetime(lifetime);
        let trust_domain = ca.trust_domain().clone();
        let asked = self.trust_domain.as_ref().unwrap_or(&trust_domain);
        ensure!(
            *asked == trust_domain,
            "the authority signs for {trust_domain}, not for {asked} (--trust-domain)"
        );
        let ca = Arc::new(ca);
        Ok((Arc::clone(&ca) as Arc<dyn CertificateAuthority>, trust_domain, Some(ca)))
    }

    fn open_local(&self) -> anyhow::Result<LocalCa> {
        if let Some(certificate) = &self.issuer_cert {
            let files = IssuerFiles {
                certificate: certificate.clone(),
                key: self.issuer_key.clone().context("--issuer-cert needs --issuer-key")?,
                roots: self.ca_roots.clone().context("--issuer-cert needs --ca-roots")?,
                trust_domain: self.trust_domain.clone(),
            };
            return LocalCa::open_files(files).context("opening the certificate authority of --issuer-cert");
        }
        let dir = self.ca_dir.as_ref().context(
            "no certificate authority was named: name one by --ca-dir, --issuer-cert, --ca-address or --vault-address",
        )?;
        LocalCa::open(dir).with_context(|| format!("opening the certificate authority in {}", dir.display()))
    }

    fn open_grpc(
        &self,
        address: &CaAddress,
        lifetime: Duration,
    ) -> anyhow::Result<(Arc<dyn CertificateAuthority>, TrustDomain)> {
        let config = GrpcConfig {
            address: address.clone(),
            server_name: self.ca_server_name.clone(),
            roots: self.ca_roots.clone().context("--ca-address needs --ca-roots")?,
            server_roots: self.ca_server_roots.clone(),
            token: self.ca_token.clone().context("--ca-address needs --ca-token")?,
            cluster: self.ca_cluster.clone(),
            lifetime,
        };
        let ca = GrpcCa::new(config).with_context(|| format!("the certificate authority {address}"))?;
        Ok((Arc::new(ca), self.trust_domain.clone().unwrap_or_else(default_trust_domain)))
    }

    fn open_vault(&self, lifetime: Duration) -> anyhow::Result<(Arc<dyn CertificateAuthority>, TrustDomain)> {
        let trust_domain = self.trust_domain.clone().unwrap_or_else(default_trust_domain);
        let config = self.vault.config(self.ca_roots.clone(), trust_domain.clone(), lifetime)?;
        let address = config.address.clone();
        let ca = VaultCa::open(config).with_context(|| format!("the certificate authority {address}"))?;
        Ok((Arc::new(ca), trust_domain))
    }
}

pub(crate) fn default_trust_domain() -> TrustDomain {
    "cluster.local".parse().expect("a valid trust domain")
}

/// Parses the name of a server.
pub(super) fn server_name(text: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(text.to_owned()).map_err(|_| "this is no DNS name and no IP address".to_owned())
}
