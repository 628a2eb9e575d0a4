//! The plugin's way to the API server: a kubeconfig that the host's root can read, as other CNI plugins have one.
//!
//! It is needed while the agent's pod is gone, and with it the agent's own token: that is bound to the pod. So the agent asks
//! for a token of another service account, [`ACCOUNT`], bound to nothing (TokenRequest of `authentication.k8s.io/v1`), and renews it
//! long before it ends. The account may read what the plugin asks for and nothing else. It must not be the agent's own: who
//! may ask for that account's tokens can have them bound to the pod of any node's agent.
//!
//! Where the API server gives none, the plugin cannot ask it: pods that nobody knows of do not start while no agent answers.

use std::{io, path::PathBuf, time::Duration};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use k8s_openapi::{
    api::{
        authentication::v1::{TokenRequest, TokenRequestSpec, TokenRequestStatus},
        core::v1::ServiceAccount,
    },
    jiff::{SignedDuration, Timestamp},
};
use kube::{Api, Client, api::PostParams};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::problems;
use crate::{apiserver, run_directory::write_private};

/// The plugin's service account, in Culvert's own namespace.
const ACCOUNT: &str = "culvert-cni";

/// How long a token is to be valid: a node whose agent is away for half of that can still start pods. The API server may give
/// less.
const LIFETIME: SignedDuration = SignedDuration::from_hours(24);
/// How often it is looked whether the token is to be renewed, or the API server's address or roots have changed.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// How soon it is tried again at first, and then twice as late each time, up to [`LOOK_AGAIN`].
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// How long the API server may take.
const ASK_LIMIT: Duration = Duration::from_secs(10);

/// What follows where there is none.
const WITHOUT: &str = "the CNI plugin has no credentials of its own: while no agent runs it cannot ask the API server, and a pod that nobody \
                       knows does not start";

/// What the kubeconfig is made of, and where it is.
#[derive(Clone)]
pub struct Kubeconfig {
    /// The agent's own client, which asks for the token.
    pub client: Client,
    /// How the agent itself reaches the API server: a kubeconfig, or none in a pod.
    pub agents: Option<PathBuf>,
    /// Culvert's own namespace.
    pub root_namespace: String,
    /// Where it is written.
    pub path: PathBuf,
}

/// Why there is none that can be used.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(
        "the API server gives no token of the service account {namespace}/{ACCOUNT} ({}){}",
        apiserver::chain(source),
        remedy(source)
    )]
    Refused { namespace: String, source: kube::Error },
    #[error(
        "the API server has not answered within {} when asked for a token",
        humantime::format_duration(ASK_LIMIT)
    )]
    Timeout(#[from] tokio::time::error::Elapsed),
    #[error("the API server has answered without a token")]
    NoToken,
    #[error(transparent)]
    ApiServer(#[from] apiserver::Error),
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
}

/// A token that was given.
struct Token {
    text: String,
    /// When the next one is to be asked for.
    renewal: Timestamp,
}

impl Kubeconfig {
    /// Writes it and keeps it up to date, for as long as the agent lives. It stays when the agent ends. What keeps the plugin
    /// from asking the API server is told by `problem`, empty where nothing does.
    pub async fn keep_fresh(self, problem: watch::Sender<String>) {
        let (mut token, mut written) = (None, None);
        let mut retry = RETRY_FIRST;
        loop {
            let outcome = self.refresh(&mut token, &mut written).await;
            let pause = if outcome.is_ok() { LOOK_AGAIN } else { retry };
            retry = if outcome.is_ok() { RETRY_FIRST } else { (retry * 2).min(LOOK_AGAIN) };
            problems::note(&problem, outcome.err(), WITHOUT);
            sleep(pause).await;
        }
    }

    async fn refresh(&self, token: &mut Option<Token>, written: &mut Option<String>) -> Result<(), Error> {
        // By the wall clock: a token ages also while the machine sleeps.
        let current = token.take_if(|token| token.renewal > Timestamp::now());
        let current = match current {
            Some(current) => current,
            None => self.ask().await?,
        };
        let text = self.text(&token.insert(current).text).await?;
        if written.as_ref() != Some(&text) {
            let file = |source| Error::File { path: self.path.clone(), source };
            write_private(&self.path, text.as_bytes()).map_err(file)?;
            *written = Some(text);
        }
        Ok(())
    }

    async fn ask(&self) -> Result<Token, Error> {
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), &self.root_namespace);
        let request = TokenRequest {
            spec: TokenRequestSpec {
                expiration_seconds: Some(LIFETIME.as_secs()),
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let params = PostParams::default();
        let asked = accounts.create_token_request(ACCOUNT, &params, &request);
        let refused = |source| Error::Refused { namespace: self.root_namespace.clone(), source };
        let given = timeout(ASK_LIMIT, asked).await?.map_err(refused)?;
        Ok(Token::new(given.status.ok_or(Error::NoToken)?, Timestamp::now()))
    }

    /// Makes the file's text: JSON, which is YAML. Of the roots it holds the certificates themselves, not a path, which may be a
    /// pod's.
    async fn text(&self, token: &str) -> Result<String, Error> {
        let config = apiserver::configuration(self.agents.as_deref()).await?;
        let mut cluster = json!({ "server": config.cluster_url.to_string() });
        if let Some(roots) = &config.root_cert {
            cluster["certificate-authority-data"] = BASE64_STANDARD.encode(pem(roots)).into();
        }
        if config.accept_invalid_certs {
            cluster["insecure-skip-tls-verify"] = true.into();
        }
        if let Some(name) = &config.tls_server_name {
            cluster["tls-server-name"] = name.as_str().into();
        }
        if let Some(proxy) = &config.proxy_url {
            cluster["proxy-url"] = proxy.to_string().into();
        }
        Ok(kubeconfig(&cluster, token).to_string())
    }
}

impl Token {
    /// It is renewed at half of its life, and not within a minute however soon it ends.
    fn new(given: TokenRequestStatus, now: Timestamp) -> Self {
        let life = given.expiration_timestamp.0.duration_since(now);
        let half = (life / 2).clamp(SignedDuration::from_mins(1), LIFETIME / 2);
        Self { text: given.token, renewal: now.saturating_add(half).unwrap_or(now) }
    }
}

impl std::fmt::Debug for Kubeconfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubeconfig").field("path", &self.path).finish_non_exhaustive()
    }
}

fn kubeconfig(cluster: &Value, token: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "cluster", "cluster": cluster }],
        "users": [{ "name": ACCOUNT, "user": { "token": token } }],
        "contexts": [{ "name": ACCOUNT, "context": { "cluster": "cluster", "user": ACCOUNT } }],
        "current-context": ACCOUNT,
    })
}

fn pem(certificates: &[Vec<u8>]) -> String {
    let certificates = certificates.iter().map(|der| pem::Pem::new("CERTIFICATE", der.as_slice()));
    pem::encode_many(&certificates.collect::<Vec<_>>())
}

/// What to do where the API server has said no.
fn remedy(error: &kube::Error) -> &'static str {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            ": grant the agent's Role there the verb create of serviceaccounts/token, for the resourceName culvert-cni"
        }
        kube::Error::Api(status) if status.code == 404 => {
            ": the chart makes that service account; apply it anew"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn check(life: SignedDuration, expected: SignedDuration) {
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let given = TokenRequestStatus { expiration_timestamp: Time(now + life), token: "x".to_owned() };
        assert_eq!(Token::new(given, now).renewal, now + expected, "{life}");
    }

    #[test]
    fn a_token_is_renewed_at_half_of_the_life_that_the_api_server_gave_it() {
        let (minutes, hours) = (SignedDuration::from_mins, SignedDuration::from_hours);
        check(hours(24), hours(12));
        check(hours(1), minutes(30));
        // Clocks that differ, or an API server that gives more than it was asked for.
        check(minutes(-5), minutes(1));
        check(hours(1000), hours(12));
    }
}
