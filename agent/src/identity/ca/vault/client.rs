//! Requests to Vault: HTTP/1.1 over TLS, each with a deadline and a bound on its answer.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{
    ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::CertificateDer, pki_types::pem::PemObject as _,
};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{
    VaultAddress, VaultError, VaultPath,
    error::{connection_problem, quoted, remedy},
    token::Token,
};
use crate::identity::Followed;

/// Speaks to one Vault.
#[derive(Debug)]
pub(super) struct VaultClient {
    address: VaultAddress,
    namespace: Option<VaultPath>,
    transport: Transport,
}

/// What is asked of Vault.
#[derive(Clone)]
pub(super) struct Call<'a> {
    method: &'static str,
    path: String,
    token: Option<&'a Token>,
    body: Bytes,
}

type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

#[derive(Debug)]
enum Transport {
    Plain(Box<HttpClient>),
    /// Made anew, with no connection left of the old one, when the file of roots changes.
    Tls(Followed<HttpClient>),
}

/// Vault's answer where something went wrong.
#[derive(Deserialize)]
struct Errors {
    errors: Vec<String>,
}

impl<'a> Call<'a> {
    /// Reads what needs no token.
    pub(super) fn read(path: String) -> Self {
        Self { method: "GET", path, token: None, body: Bytes::new() }
    }

    /// Lists what needs no token. `LIST` is a method of Vault's own; this is the same in plain HTTP.
    pub(super) fn list(path: &str) -> Self {
        Self::read(format!("{path}?list=true"))
    }

    /// Sends a JSON text, which is wiped afterwards.
    pub(super) fn post(path: String, body: Zeroizing<Vec<u8>>) -> Self {
        Self { method: "POST", path, token: None, body: Bytes::from_owner(body) }
    }

    /// Proves who asks.
    pub(super) fn with_token(self, token: &'a Token) -> Self {
        Self { token: Some(token), ..self }
    }

    fn name(&self, address: &VaultAddress) -> String {
        format!("{} {address}{}", self.method, self.path)
    }
}

impl VaultClient {
    /// Makes a client; it connects when it is asked to. `roots` vouch for Vault's certificate. Blocking.
    pub(super) fn new(
        address: VaultAddress,
        namespace: Option<VaultPath>,
        roots: Option<PathBuf>,
    ) -> Result<Self, VaultError> {
        let transport = match (address.is_tls(), roots) {
            (false, _) => Transport::Plain(Box::new(http_client(RootCertStore::empty()))),
            (true, None) => return Err(VaultError::NoVaultCa(address.to_string())),
            (true, Some(path)) => {
                let paths = vec![path.clone()];
                Transport::Tls(Followed::start("roots of Vault's certificate", paths, move || {
                    read_roots(&path).map(http_client)
                })?)
            }
        };
        Ok(Self { address, namespace, transport })
    }

    /// Returns where Vault is.
    pub(super) fn address(&self) -> &VaultAddress {
        &self.address
    }

    /// Asks, and returns the answer.
    ///
    /// # Errors
    /// Where there is none in time, it is an error, or not what was to be expected.
    pub(super) async fn call<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, VaultError> {
        let request = call.name(&self.address);
        let slow = || VaultError::Slow { request: request.clone(), limit: DEADLINE };
        let (status, body) =
            timeout(DEADLINE, self.exchange(&call, &request)).await.map_err(|_| slow())??;
        if status.is_success() {
            let problem =
                |error: serde_json::Error| VaultError::Garbage { request, problem: error.to_string() };
            return serde_json::from_slice(&body).map_err(problem);
        }
        // A proxy before Vault may answer with a page of its own, which tells nothing.
        let said =
            serde_json::from_slice::<Errors>(&body).map(|answer| quoted(&answer.errors)).unwrap_or_default();
        Err(VaultError::Refused { request, status, said, remedy: remedy(status).to_owned() })
    }

    /// Asks Vault, and the active node where a standby names it.
    async fn exchange(
        &self,
        call: &Call<'_>,
        request: &str,
    ) -> Result<(StatusCode, Zeroizing<Vec<u8>>), VaultError> {
        let here = self.address.at(&call.path).map_err(|error| self.redirect(request, &error.to_string()))?;
        let mut answer = self.send(call, here).await?;
        if let Some(there) = self.redirection(&answer, request)? {
            answer = self.send(call, there).await?;
            if self.redirection(&answer, request)?.is_some() {
                return Err(self.redirect(request, "the node that it names redirects again"));
            }
        }
        let status = answer.status();
        let garbage = |problem| VaultError::Garbage { request: request.to_owned(), problem };
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| garbage(connection_problem(&*error)))?;
        Ok((status, Zeroizing::new(body.to_bytes().to_vec())))
    }

    /// Where a standby node that does not forward sends its clients, if it does: always to the same path.
    fn redirection(&self, answer: &Response<Incoming>, request: &str) -> Result<Option<Uri>, VaultError> {
        if !matches!(
            answer.status(),
            StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT
                | StatusCode::FOUND
                | StatusCode::MOVED_PERMANENTLY
        ) {
            return Ok(None);
        }
        let refuse = |problem: &str| Err(self.redirect(request, problem));
        let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let Some(uri) = location.and_then(|text| text.parse::<Uri>().ok()) else {
            return refuse("it names no node: set the api_addr of Vault's nodes");
        };
        match VaultAddress::try_from(&uri) {
            Ok(address) if self.address.is_tls() && !address.is_tls() => {
                refuse("it leads from https to plaintext: set the api_addr of Vault's nodes to https")
            }
            Ok(_) => Ok(Some(uri)),
            Err(error) => refuse(&error.to_string()),
        }
    }

    fn redirect(&self, request: &str, problem: &str) -> VaultError {
        VaultError::Redirect { request: request.to_owned(), problem: quoted(&[problem.to_owned()]) }
    }

    async fn send(&self, call: &Call<'_>, uri: Uri) -> Result<Response<Incoming>, VaultError> {
        let address = uri.authority().map(ToString::to_string).unwrap_or_default();
        let unreachable = |problem| VaultError::Unreachable { address: address.clone(), problem };
        let mut request = Request::new(Full::new(call.body.clone()));
        *request.method_mut() = if call.method == "GET" { Method::GET } else { Method::POST };
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // Vault Agent and Vault Proxy may insist on it: it cannot be sent by a web page in somebody's browser.
        headers.insert("x-vault-request", HeaderValue::from_static("true"));
        if let Some(token) = call.token {
            headers.insert("x-vault-token", token.header());
        }
        if let Some(namespace) = &self.namespace {
            let value =
                HeaderValue::from_str(namespace.as_str()).expect("names are letters, digits and few signs");
            headers.insert("x-vault-namespace", value);
        }
        let sending = match &self.transport {
            Transport::Plain(client) => client.request(request),
            Transport::Tls(client) => client.get().request(request),
        };
        sending.await.map_err(|error| unreachable(connection_problem(&error)))
    }
}

/// Vault's certificate is an ordinary one, not the mesh's: TLS 1.2 and 1.3, and the host's name is checked.
fn http_client(roots: RootCertStore) -> HttpClient {
    let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites and groups for TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(DEADLINE));
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
    Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE)
        .pool_timer(hyper_util::rt::TokioTimer::new())
        .pool_max_idle_per_host(MAX_IDLE)
        .build(connector)
}

fn read_roots(path: &PathBuf) -> Result<RootCertStore, VaultError> {
    let pem =
        fs::read(path).map_err(|source| VaultError::Read { path: path.clone(), source: Arc::new(source) })?;
    let content = |problem: String| VaultError::Content { path: path.clone(), problem };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| content(format!("not valid PEM: {error}")))?;
        roots
            .add(certificate)
            .map_err(|error| content(format!("a certificate in it cannot be used: {error}")))?;
    }
    if roots.is_empty() {
        return Err(content("there is no certificate in it".to_owned()));
    }
    Ok(roots)
}

/// How long Vault may take for one answer. A signature takes milliseconds; a request for a certificate, which may need
/// two of them and a login, has ten seconds.
pub(super) const DEADLINE: Duration = Duration::from_secs(4);
/// Bytes of an answer: a chain has some KiB.
const MAX_ANSWER: usize = 1024 * 1024;
/// How long a connection waits for the next request: less than the servers and proxies before Vault give it.
const IDLE: Duration = Duration::from_secs(30);
/// Connections that wait.
const MAX_IDLE: usize = 8;
