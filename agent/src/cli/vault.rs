//! HashiCorp Vault or OpenBao as the authority: its options.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::{ArgGroup, Args};

use crate::{
    identity::ca::vault::{KubernetesLogin, VaultAddress, VaultAuth, VaultConfig, VaultPath},
    mesh::TrustDomain,
};

/// How Vault is asked.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Certificate authority: HashiCorp Vault or OpenBao")]
#[command(group = ArgGroup::new("vault_auth").args(["vault_token", "vault_kubernetes_role"]))]
#[group(skip)]
pub struct VaultArgs {
    /// Where Vault or OpenBao is, https://HOST:PORT. Its PKI engine signs the workloads' certificates. Without
    /// --ca-roots the mesh trusts the self-signed issuers that the mount has; it is asked for them each minute.
    #[arg(long, env = "CULVERT_VAULT_ADDRESS", value_name = "URL", requires_all = ["vault_role", "vault_auth"])]
    pub vault_address: Option<VaultAddress>,

    /// The roots that vouch for Vault's own certificate, in PEM. Read again when the file changes.
    #[arg(long, env = "CULVERT_VAULT_CA", value_name = "FILE")]
    pub vault_ca: Option<PathBuf>,

    /// The namespace, where Vault has several.
    #[arg(long, env = "CULVERT_VAULT_NAMESPACE", value_name = "PATH")]
    pub vault_namespace: Option<VaultPath>,

    /// Where the PKI engine is mounted.
    #[arg(long, env = "CULVERT_VAULT_MOUNT", value_name = "PATH", default_value = "pki")]
    pub vault_mount: VaultPath,

    /// The role of the PKI engine that signs. It needs key_type=ec, require_cn=false and
    /// allowed_uri_sans=spiffe://TRUST_DOMAIN/*.
    #[arg(long, env = "CULVERT_VAULT_ROLE", value_name = "NAME")]
    pub vault_role: Option<VaultPath>,

    /// A file with a token that may update MOUNT/sign/ROLE. Somebody else keeps it fresh, such as Vault Agent; it is
    /// read again when it changes.
    #[arg(long, env = "CULVERT_VAULT_TOKEN", value_name = "FILE")]
    pub vault_token: Option<PathBuf>,

    /// Log in with the service account of this pod, by this role of Vault's Kubernetes auth method. Done again before
    /// the lease ends.
    #[arg(long, env = "CULVERT_VAULT_KUBERNETES_ROLE", value_name = "NAME")]
    pub vault_kubernetes_role: Option<VaultPath>,

    /// Where the Kubernetes auth method is mounted, below auth/.
    #[arg(long, env = "CULVERT_VAULT_KUBERNETES_PATH", value_name = "PATH", default_value = "kubernetes")]
    pub vault_kubernetes_path: VaultPath,

    /// The service account's token; read at each login.
    #[arg(
        long,
        env = "CULVERT_VAULT_KUBERNETES_TOKEN",
        value_name = "FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    )]
    pub vault_kubernetes_token: PathBuf,
}

impl VaultArgs {
    /// Returns the configuration that the options make together.
    ///
    /// # Errors
    /// Where one is missing that another needs; the command line has checked that before.
    pub(super) fn config(
        &self,
        roots: Option<PathBuf>,
        trust_domain: TrustDomain,
        lifetime: Duration,
    ) -> anyhow::Result<VaultConfig> {
        let auth = match (&self.vault_token, &self.vault_kubernetes_role) {
            (Some(token), _) => VaultAuth::TokenFile(token.clone()),
            (None, Some(role)) => VaultAuth::Kubernetes(KubernetesLogin {
                path: self.vault_kubernetes_path.clone(),
                role: role.clone(),
                jwt: self.vault_kubernetes_token.clone(),
            }),
            (None, None) => {
                anyhow::bail!("--vault-address needs --vault-token or --vault-kubernetes-role")
            }
        };
        Ok(VaultConfig {
            address: self.vault_address.clone().context("no Vault was named (--vault-address)")?,
            vault_ca: self.vault_ca.clone(),
            namespace: self.vault_namespace.clone(),
            mount: self.vault_mount.clone(),
            role: self.vault_role.clone().context("--vault-address needs --vault-role")?,
            auth,
            roots,
            trust_domain,
            lifetime,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::AuthorityArgs;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        authority: AuthorityArgs,
    }

    /// Checks whether options are accepted; `complaint` is what the error names.
    fn check(args: &str, complaint: Option<&str>) {
        let parsed = Cli::try_parse_from(["culvert"].into_iter().chain(args.split_whitespace()));
        match (parsed, complaint) {
            (Ok(_), None) => {}
            (Err(error), Some(complaint)) => {
                assert!(error.to_string().contains(complaint), "{args}: {error}");
            }
            (parsed, _) => panic!("{args}: {parsed:?}, expected {complaint:?}"),
        }
    }

    #[test]
    fn options_of_vault_belong_together() {
        check("--vault-address https://v:8200 --vault-role culvert --vault-token /t", None);
        check(
            "--vault-address https://v --vault-role a --vault-kubernetes-role b --vault-mount teams/pki",
            None,
        );
        check("--vault-address https://v --vault-token /t", Some("--vault-role"));
        check("--vault-address https://v --vault-role culvert", Some("--vault-token"));
        check("--vault-address https://v --vault-role a --vault-token /t --ca-dir /ca", Some("--ca-dir"));
        check(
            "--vault-address https://v --vault-role a --vault-token /t --vault-kubernetes-role b",
            Some("cannot be used"),
        );
        check("--vault-address http://v --vault-role a --vault-token /t", Some("plaintext"));
        check("--vault-address https://v --vault-role ../a --vault-token /t", Some("not a name in Vault"));
    }

    /// Not clap's to check: `culvert ca serve --kube` needs none.
    #[test]
    fn an_agent_without_an_authority_is_told_which_there_are() {
        let nothing = Cli::try_parse_from(["culvert"]).unwrap().authority;
        let error = nothing.open(std::time::Duration::from_secs(3600)).err().unwrap();
        assert!(error.to_string().contains("--vault-address"), "{error}");
    }
}
