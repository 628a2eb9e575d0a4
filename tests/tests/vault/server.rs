//! A server that speaks Vault's API as its documentation has it: paths, methods, headers, statuses and the form of
//! errors, tokens with policies and an end, and the states of a node.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};

use super::pki::{Pki, certified};

/// A running server. It ends when it is dropped.
pub(crate) struct Vault {
    address: SocketAddr,
    scheme: &'static str,
    directory: TempDir,
    state: Arc<Mutex<State>>,
    runtime: Option<Runtime>,
}

/// What the server is, knows and has seen.
pub(crate) struct State {
    pub(crate) node: Node,
    pub(crate) fault: Option<Fault>,
    pub(crate) namespace: Option<String>,
    pub(crate) mounts: BTreeMap<String, Pki>,
    pub(crate) tokens: HashMap<String, Grant>,
    pub(crate) kubernetes: Kubernetes,
    pub(crate) seen: Vec<Seen>,
}

/// The state of a node.
pub(crate) enum Node {
    Active,
    Sealed,
    /// It names the active node, if there is one, instead of forwarding.
    Standby(Option<String>),
}

/// What a broken server, or something that is none, answers.
#[derive(Clone, Copy)]
pub(crate) enum Fault {
    Silence,
    /// A page with status 200.
    Page,
    /// A proxy's page with status 502.
    Proxy,
    /// More than any answer has.
    Flood,
    /// JSON that is not the answer.
    OtherJson,
    /// A certificate field without a certificate.
    Nonsense,
}

/// What a token may do, and until when.
#[derive(Clone)]
pub(crate) struct Grant {
    pub(crate) updates: Vec<String>,
    pub(crate) ends: Option<Instant>,
}

/// The Kubernetes auth method at `auth/kubernetes`.
#[derive(Default)]
pub(crate) struct Kubernetes {
    /// The tokens that a review finds good, with their service accounts.
    pub(crate) accounts: HashMap<String, String>,
    pub(crate) roles: HashMap<String, LoginRole>,
    issued: usize,
}

pub(crate) struct LoginRole {
    pub(crate) account: String,
    pub(crate) updates: Vec<String>,
    pub(crate) lease: Duration,
}

/// A request that came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) token: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) marked: bool,
}

/// Status, body, and where a redirection leads.
pub(crate) struct Answer {
    status: u16,
    pub(crate) body: Value,
    location: Option<String>,
}

impl Vault {
    /// Starts one with TLS and the mount `pki`.
    pub(crate) fn start() -> Self {
        Self::serve(TcpListener::bind("127.0.0.1:0").unwrap(), true)
    }

    /// Starts one without TLS.
    pub(crate) fn plain() -> Self {
        Self::serve(TcpListener::bind("127.0.0.1:0").unwrap(), false)
    }

    pub(crate) fn serve(listener: TcpListener, tls: bool) -> Self {
        let state = State {
            node: Node::Active,
            fault: None,
            namespace: None,
            mounts: BTreeMap::from([("pki".to_owned(), Pki::new())]),
            tokens: HashMap::new(),
            kubernetes: Kubernetes::default(),
            seen: Vec::new(),
        };
        let (state, directory) = (Arc::new(Mutex::new(state)), tempfile::tempdir().unwrap());
        let address = listener.local_addr().unwrap();
        let acceptor = tls.then(|| acceptor(address.ip(), directory.path()));
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener).unwrap()
        };
        runtime.spawn(accept(listener, acceptor, Arc::clone(&state)));
        Self { address, scheme: if tls { "https" } else { "http" }, directory, state, runtime: Some(runtime) }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// A file in the server's own directory: `vault-ca.pem` is there from the start.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file whole, as those who follow it need it.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let (path, new) = (self.file(name), self.file("new"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &path).unwrap();
        path
    }

    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    /// Makes a token that may have certificates signed by `pki/sign/culvert`.
    pub(crate) fn token(&self, text: &str) {
        self.with(|state| {
            state.tokens.insert(text.to_owned(), Grant { updates: vec![SIGN.to_owned()], ends: None })
        });
    }

    /// Lets the service account whose token is `jwt` log in.
    pub(crate) fn kubernetes(&self, jwt: &str, lease: Duration) {
        self.with(|state| {
            state.kubernetes.accounts.insert(jwt.to_owned(), "culvert-system/culvert".to_owned());
            let (account, updates) = ("culvert-system/culvert".to_owned(), vec![SIGN.to_owned()]);
            state.kubernetes.roles.insert("mesh".to_owned(), LoginRole { account, updates, lease });
        });
    }

    /// How many requests came for a path that ends so.
    pub(crate) fn count(&self, end: &str) -> usize {
        self.with(|state| state.seen.iter().filter(|seen| seen.path.ends_with(end)).count())
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        // Tests that are asynchronous themselves must not wait for its threads.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl State {
    fn answer(&mut self, method: &Method, uri: &http::Uri, seen: Seen, body: &[u8]) -> Answer {
        let (path, query) = (uri.path(), uri.query().unwrap_or_default());
        let Seen { token, namespace, .. } = seen.clone();
        self.seen.push(seen);
        match &self.node {
            Node::Sealed => return Answer::error(503, "Vault is sealed"),
            Node::Standby(None) => return Answer::error(503, "no active Vault instance found"),
            Node::Standby(Some(active)) => return Answer::redirect(format!("{active}{uri}")),
            Node::Active => {}
        }
        if self.namespace != namespace {
            return Answer::error(404, "namespace not found");
        }
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let Some(path) = path.strip_prefix("/v1/") else { return Answer::error(404, "unsupported path") };
        if path == "auth/kubernetes/login" && *method == Method::POST && !self.kubernetes.roles.is_empty() {
            return self.log_in(&body);
        }
        let mount = self
            .mounts
            .keys()
            .find(|mount| path.strip_prefix(*mount).is_some_and(|rest| rest.starts_with('/')));
        let parts: Vec<_> =
            mount.and_then(|mount| path.strip_prefix(mount)).unwrap_or_default().split('/').skip(1).collect();
        // These two are unauthenticated.
        match (mount.map(|mount| &self.mounts[mount]), method, &parts[..]) {
            (Some(pki), &Method::GET, ["issuers"]) if query == "list=true" => return pki.list(),
            (Some(pki), &Method::GET, ["issuer", id, "json"]) => return pki.issuer(id),
            _ => {}
        }
        let grant = token.and_then(|token| self.tokens.get(&token));
        let alive = grant.filter(|grant| grant.ends.is_none_or(|ends| ends > Instant::now()));
        if !alive.is_some_and(|grant| grant.updates.iter().any(|allowed| allowed == path)) {
            return Answer::error(403, "permission denied");
        }
        match (mount.map(|mount| &self.mounts[mount]), method, &parts[..]) {
            (Some(pki), &Method::POST, ["sign", role]) => pki.sign(role, &body),
            (Some(_), _, ["sign", _]) => Answer::error(405, "unsupported operation"),
            _ => Answer::error(404, "no handler for route"),
        }
    }

    fn log_in(&mut self, request: &Value) -> Answer {
        let text = |key: &str| request[key].as_str().unwrap_or_default();
        let Kubernetes { accounts, roles, issued } = &mut self.kubernetes;
        let Some(LoginRole { account, updates, lease }) = roles.get(text("role")) else {
            return Answer::error(400, "invalid role name");
        };
        if accounts.get(text("jwt")) != Some(account) {
            return Answer::error(403, "service account name not authorized");
        }
        *issued += 1;
        let token = format!("hvs.login-{issued}");
        let grant = Grant { updates: updates.clone(), ends: Some(Instant::now() + *lease) };
        let auth = json!({
            "client_token": token, "accessor": "a", "policies": ["mesh"], "lease_duration": lease.as_secs(),
            "renewable": true, "metadata": { "role": text("role") },
        });
        self.tokens.insert(token, grant);
        Answer { status: 200, body: json!({ "data": null, "auth": auth }), location: None }
    }
}

impl Answer {
    pub(crate) fn data(data: &Value) -> Self {
        let body = json!({
            "request_id": "1", "lease_id": "", "renewable": false, "lease_duration": 0, "data": data,
            "wrap_info": null, "warnings": null, "auth": null,
        });
        Self { status: 200, body, location: None }
    }

    pub(crate) fn error(status: u16, text: &str) -> Self {
        Self { status, body: json!({ "errors": [text] }), location: None }
    }

    fn redirect(location: String) -> Self {
        Self { status: 307, body: Value::Null, location: Some(location) }
    }
}

async fn accept(listener: tokio::net::TcpListener, acceptor: Option<TlsAcceptor>, state: Arc<Mutex<State>>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, state) = (acceptor.clone(), Arc::clone(&state));
        let service = service_fn(move |request| respond(request, Arc::clone(&state)));
        tokio::spawn(async move {
            // Clients that do not trust this server, or go, end their connection.
            match acceptor {
                Some(acceptor) => {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
                }
                None => drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await),
            }
        });
    }
}

async fn respond(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let header = |name: &str| Some(head.headers.get(name)?.to_str().unwrap().to_owned());
    let seen = Seen {
        path: head.uri.path().to_owned(),
        token: header("x-vault-token"),
        namespace: header("x-vault-namespace"),
        marked: header("x-vault-request").is_some(),
    };
    let (answer, fault) = {
        let mut state = state.lock().unwrap();
        (state.answer(&head.method, &head.uri, seen, &body), state.fault)
    };
    let (status, text) = match fault {
        None => (answer.status, answer.body.to_string()),
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::Page) => (200, "<html>welcome</html>".to_owned()),
        Some(Fault::Proxy) => (502, "<html>bad gateway</html>".to_owned()),
        Some(Fault::Flood) => (200, " ".repeat(8 << 20)),
        Some(Fault::OtherJson) => (200, "{\"data\":{\"keys\":7}}".to_owned()),
        Some(Fault::Nonsense) => (200, "{\"data\":{\"certificate\":\"none\"}}".to_owned()),
    };
    let response = Response::builder().status(status).header(header::CONTENT_TYPE, "application/json");
    let response = match answer.location {
        Some(location) if fault.is_none() => response.header(header::LOCATION, location),
        _ => response,
    };
    Ok(response.body(Full::from(text)).unwrap())
}

/// Takes a certificate for the server's address, whose root is written to `vault-ca.pem`.
fn acceptor(address: IpAddr, directory: &Path) -> TlsAcceptor {
    let (roots, certificate, key) = certified(address);
    std::fs::write(directory.join("vault-ca.pem"), roots).unwrap();
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// The path that the agents' policy allows.
pub(crate) const SIGN: &str = "pki/sign/culvert";
