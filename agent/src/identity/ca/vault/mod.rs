//! The authority that is HashiCorp Vault's or OpenBao's PKI engine.
//!
//! ```text
//! Csr ──► POST /v1/MOUNT/sign/ROLE ──► certificate, ca_chain ──► Issued
//!              ▲ X-Vault-Token                                     │ checked against
//!   a file, or a login at /v1/auth/PATH/login          roots: a file, or the mount's issuers
//! ```
//!
//! The API is the one of <https://developer.hashicorp.com/vault/api-docs/secret/pki> and
//! <https://openbao.org/api-docs/secret/pki/>; both servers speak it alike.

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::StatusCode;
use humantime::format_duration;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{CaError, CertificateAuthority, Csr, Issued, Signing, encode::request_pem};
use crate::{
    identity::trust::Trust,
    mesh::{Identity, TrustDomain},
};

mod address;
mod chain;
mod client;
mod error;
mod roots;
mod session;
mod token;

use self::{
    client::{Call, VaultClient},
    roots::Roots,
    session::Session,
    token::{Source, Token},
};

pub use self::{
    address::{VaultAddress, VaultNameError, VaultPath},
    error::VaultError,
    session::KubernetesLogin,
};

/// Which Vault signs, and how it is asked.
#[derive(Clone, Debug)]
pub struct VaultConfig {
    /// Where it is.
    pub address: VaultAddress,
    /// The roots that vouch for its own certificate: PEM, read again when it changes. Needed with `https`.
    pub vault_ca: Option<PathBuf>,
    /// Its namespace, where it has several.
    pub namespace: Option<VaultPath>,
    /// Where the PKI engine is mounted.
    pub mount: VaultPath,
    /// The role that signs.
    pub role: VaultPath,
    /// How to prove who asks.
    pub auth: VaultAuth,
    /// The mesh's roots: PEM, read again when it changes. Without it, those that the mount knows.
    pub roots: Option<PathBuf>,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// How long certificates are to be valid; whole seconds.
    pub lifetime: Duration,
}

/// How the agent proves to Vault who it is.
#[derive(Clone, Debug)]
pub enum VaultAuth {
    /// By a token in a file that somebody else keeps fresh; read again when it changes.
    TokenFile(PathBuf),
    /// By logins with a Kubernetes service account.
    Kubernetes(KubernetesLogin),
}

/// Vault's PKI engine as the mesh's authority.
pub struct VaultCa {
    client: Arc<VaultClient>,
    source: Source,
    roots: Roots,
    mount: VaultPath,
    role: VaultPath,
    trust_domain: TrustDomain,
    lifetime: Duration,
    shortened: AtomicBool,
}

#[derive(Serialize)]
struct SignRequest<'a> {
    csr: &'a str,
    /// Taken where the role has `use_csr_sans=false`; otherwise the names in the request are.
    uri_sans: &'a str,
    ttl: &'a str,
    format: &'a str,
    exclude_cn_from_sans: bool,
}

#[derive(Deserialize)]
struct SignAnswer {
    data: Signed,
    #[serde(default)]
    warnings: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Signed {
    certificate: String,
    /// Not there where a root signs.
    #[serde(default)]
    ca_chain: Option<Vec<String>>,
    #[serde(default)]
    issuing_ca: Option<String>,
}

impl VaultCa {
    /// Reads the files that are named; Vault itself may answer later. Blocking, and must be called within a Tokio
    /// runtime.
    ///
    /// # Errors
    /// Where a file cannot be read or used, or one is missing.
    pub fn open(config: VaultConfig) -> Result<Self, VaultError> {
        let VaultConfig { address, vault_ca, namespace, mount, role, auth, roots, trust_domain, lifetime } =
            config;
        let client = Arc::new(VaultClient::new(address, namespace, vault_ca)?);
        let source = match auth {
            VaultAuth::TokenFile(path) => Source::file(path)?,
            VaultAuth::Kubernetes(login) => Source::Kubernetes(Session::start(Arc::clone(&client), login)),
        };
        let roots = match roots {
            Some(path) => Roots::file(path)?,
            None => Roots::mount(Arc::clone(&client), mount.clone()),
        };
        let shortened = AtomicBool::new(false);
        Ok(Self { client, source, roots, mount, role, trust_domain, lifetime, shortened })
    }

    async fn issue(&self, csr: &Csr, identity: &Identity) -> Result<Issued, CaError> {
        if *identity.trust_domain() != self.trust_domain {
            return Err(CaError::TrustDomain { ours: self.trust_domain.clone(), asked: identity.clone() });
        }
        self.roots.known().await?;
        let asked = csr.lifetime().map_or(self.lifetime, |wanted| wanted.min(self.lifetime));
        let SignAnswer { data: Signed { certificate, ca_chain, issuing_ca }, warnings } =
            self.signed(&request(csr, identity, asked)).await?;
        let garbage = |problem: String| VaultError::Garbage { request: self.path(), problem };
        // Of `pem_bundle`, which this does not ask for, the certificate comes first, too.
        let mut own = chain::certificates([certificate]).map_err(garbage)?.into_iter();
        let leaf = own.next().ok_or_else(|| garbage("there is no certificate in it".to_owned()))?;
        let issuers = ca_chain.into_iter().flatten().chain(issuing_ca);
        let others = own.chain(chain::certificates(issuers).map_err(garbage)?).collect();
        self.compare_lifetime(&leaf, asked, &warnings.unwrap_or_default());
        Ok(Issued { chain: chain::ordered(leaf, others) })
    }

    /// Has a request signed, with another token where the first one is refused and there is another.
    async fn signed(&self, body: &[u8]) -> Result<SignAnswer, VaultError> {
        let token = self.source.token().await?;
        match self.ask(body, &token).await {
            Err(error) if error.is_forbidden() => match self.source.instead_of(&token).await {
                Some(another) => self.ask(body, &*another?).await,
                None => Err(error),
            },
            outcome => outcome,
        }
    }

    async fn ask(&self, body: &[u8], token: &Token) -> Result<SignAnswer, VaultError> {
        let body = Zeroizing::new(body.to_owned());
        let call = Call::post(format!("/v1/{}", self.path()), body).with_token(token);
        self.client.call(call).await.map_err(|error| error.remedied(|status| self.remedy(status)))
    }

    fn path(&self) -> String {
        format!("{}/sign/{}", self.mount, self.role)
    }

    /// Vault says what it does not like in words alone, so the remedy names all that a role needs.
    fn remedy(&self, status: StatusCode) -> Option<String> {
        match status {
            StatusCode::BAD_REQUEST => Some(format!(
                "the role must exist and have key_type=ec (or any), require_cn=false and \
                 allowed_uri_sans=spiffe://{}/*, and its issuer must be valid for {} and more, or have \
                 leaf_not_after_behavior=truncate",
                self.trust_domain,
                format_duration(self.lifetime)
            )),
            StatusCode::FORBIDDEN => Some(format!(
                "the token is expired, or its policies do not have the capability update on {}",
                self.path()
            )),
            StatusCode::NOT_FOUND => {
                Some("no PKI engine is mounted there (--vault-mount, --vault-namespace)".to_owned())
            }
            _ => None,
        }
    }

    /// Says once where certificates are valid for less than was asked for: they are renewed more often.
    fn compare_lifetime(&self, leaf: &CertificateDer<'_>, asked: Duration, warnings: &[String]) {
        let Some(got) = lifetime(leaf, SystemTime::now()) else { return };
        if got + asked / 10 < asked && !self.shortened.swap(true, Relaxed) {
            tracing::warn!(
                asked = %format_duration(asked),
                got = %format_duration(Duration::from_secs(got.as_secs())),
                vault = error::quoted(warnings),
                "Vault shortens certificates' lives: raise max_ttl of role {} and of the mount (vault secrets tune \
                 -max-lease-ttl), or ask for less (--certificate-lifetime)",
                self.role
            );
        }
    }
}

fn request(csr: &Csr, identity: &Identity, lifetime: Duration) -> Vec<u8> {
    let body = SignRequest {
        csr: &request_pem(csr.der()),
        uri_sans: &identity.to_string(),
        ttl: &format!("{}s", lifetime.as_secs().max(1)),
        format: "pem",
        exclude_cn_from_sans: true,
    };
    serde_json::to_vec(&body).expect("strings are JSON")
}

impl CertificateAuthority for VaultCa {
    fn sign<'a>(&'a self, csr: &'a Csr, identity: &'a Identity) -> Signing<'a> {
        Box::pin(self.issue(csr, identity))
    }

    fn source(&self) -> String {
        format!("vault {}/v1/{}", self.client.address(), self.path())
    }

    fn trust(&self) -> Trust {
        self.roots.trust()
    }
}

impl fmt::Debug for VaultCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VaultCa")
            .field("source", &self.source())
            .field("trust_domain", &self.trust_domain)
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

fn lifetime(leaf: &CertificateDer<'_>, now: SystemTime) -> Option<Duration> {
    let (_, leaf) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let not_after = UNIX_EPOCH + Duration::from_secs(leaf.validity().not_after.timestamp().try_into().ok()?);
    Some(not_after.duration_since(now).unwrap_or_default())
}
