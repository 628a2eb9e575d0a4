//! The server over real TLS: what it gives out, and to whom it does not.

mod certificates;
mod requests;
mod tokens;
mod who;

use std::{
    fs,
    io::{self, Write},
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use prometheus_client::{encoding::text::encode as encode_metrics, registry::Registry};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::watch};
use tonic::{Code, Status};

use super::*;
use crate::{
    identity::{
        CaError, CertificateAuthority, Csr, GrpcCa, GrpcConfig, Issued, LocalCa, Svid,
        ca::{
            GrpcError, Lifetimes,
            istio::{CertificateRequest, CertificateResponse},
        },
    },
    mesh::{
        Identity, Snapshot, Workload,
        fixtures::{pod, snapshot},
    },
    shutdown::Shutdown,
};

/// A server, and all that it is told.
struct World {
    dir: TempDir,
    ca: Arc<LocalCa>,
    address: SocketAddr,
    mesh: watch::Sender<Arc<Snapshot>>,
    audit: Lines,
    issuer: TokenIssuer,
    registry: Registry,
    shutdown: Shutdown,
}

/// Where the audit goes.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What makes tokens: an API server's key.
struct TokenIssuer {
    key: KeyPair,
    id: &'static str,
}

impl TokenIssuer {
    fn new(id: &'static str) -> Self {
        Self { key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(), id }
    }

    fn encoding_key(&self) -> EncodingKey {
        EncodingKey::from_ec_der(self.key.serialized_der())
    }

    fn jwks(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.encoding_key(), Algorithm::ES256).unwrap();
        jwk.common.key_id = Some(self.id.to_owned());
        json!({ "keys": [jwk] })
    }

    fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.id.to_owned()), ..Header::new(Algorithm::ES256) };
        encode(&header, claims, &self.encoding_key()).unwrap()
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// What Kubernetes says in the token of the agent on `node`.
fn claims(node: &str) -> Value {
    json!({
        "iss": "https://kubernetes.default.svc", "aud": ["istio-ca"], "sub": "system:serviceaccount:culvert-system:culvert-agent",
        "iat": now(), "nbf": now(), "exp": now() + 600,
        "kubernetes.io": {
            "namespace": "culvert-system",
            "serviceaccount": { "name": "culvert-agent", "uid": "1" },
            "pod": { "name": format!("culvert-agent-{node}"), "uid": "2" },
            "node": { "name": node, "uid": "3" },
        },
    })
}

/// The claims with another value at a path such as `/kubernetes.io/node/name`.
fn with(mut claims: Value, path: &str, value: Value) -> Value {
    *claims.pointer_mut(path).unwrap() = value;
    claims
}

/// The claims without one of them.
fn without(mut claims: Value, parent: &str, name: &str) -> Value {
    claims.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name).unwrap();
    claims
}

fn on(node: &str, name: &str) -> Workload {
    Workload { node: node.into(), ..pod(name, &[]) }
}

fn identity(name: &str) -> Identity {
    pod(name, &[]).identity
}

fn mesh(pods: &[(&str, &str)]) -> Arc<Snapshot> {
    Arc::new(snapshot(pods.iter().map(|(node, name)| on(node, name)).collect(), vec![]))
}

impl World {
    /// A server where `web` runs on node a and `db` on node b.
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut ServiceConfig)) -> Self {
        Self::behind(change, |local| local).await
    }

    /// A server over another authority than the local one.
    async fn behind(
        change: impl FnOnce(&mut ServiceConfig),
        authority: impl FnOnce(Arc<LocalCa>) -> Arc<dyn CertificateAuthority>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca");
        LocalCa::init(&path, &"cluster.local".parse().unwrap(), Lifetimes::default()).unwrap();
        let ca = Arc::new(LocalCa::open(&path).unwrap());
        let issuer = TokenIssuer::new("first");
        let jwks = dir.path().join("jwks.json");
        fs::write(&jwks, issuer.jwks().to_string()).unwrap();
        let rules = TokenRules {
            jwks,
            audience: "istio-ca".to_owned(),
            issuer: Some("https://kubernetes.default.svc".to_owned()),
            agents: vec![
                "culvert-system/culvert-agent".parse().unwrap(),
                "istio-system/ztunnel".parse().unwrap(),
            ],
        };
        let mut config = ServiceConfig {
            trust_domain: "cluster.local".parse().unwrap(),
            max_lifetime: Duration::from_secs(24 * 60 * 60),
            requests_per_node: NonZeroU32::new(50).unwrap(),
            late_pods: Duration::ZERO,
        };
        change(&mut config);
        let (audit, mut registry) = (Lines::default(), Registry::default());
        let parts = (
            Callers::Signed(SignedTokens::new(rules).unwrap()),
            Audit::start(audit.clone()).unwrap(),
            Metrics::register(&mut registry),
        );
        let (sender, receiver) = watch::channel(mesh(&[("node-a", "web"), ("node-b", "db")]));
        let service = CaService::new(config, authority(Arc::clone(&ca)), receiver, parts);
        let certificate =
            ServerCertificate::issued_by(Arc::clone(&ca), vec!["localhost".try_into().unwrap()]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::default();
        let tls = Arc::new(certificate).server_config();
        tokio::spawn(serve(listener, tls, Arc::new(service), shutdown.clone()));
        Self { dir, ca, address, mesh: sender, audit, issuer, registry, shutdown }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The agent's own client with a token of these claims.
    fn agent(&self, claims: &Value) -> GrpcCa {
        self.agent_with(&self.issuer.sign(claims))
    }

    fn agent_with(&self, token: &str) -> GrpcCa {
        let path = self.path(&format!("token-{}", rand::random::<u64>()));
        fs::write(&path, token).unwrap();
        let config = GrpcConfig {
            address: format!("https://localhost:{}", self.address.port()).parse().unwrap(),
            server_name: None,
            roots: self.path("ca/root.pem"),
            server_roots: None,
            token: path,
            cluster: None,
            lifetime: Duration::from_secs(3600),
        };
        GrpcCa::new(config).unwrap()
    }

    /// Asks for a certificate as an agent does, and uses it.
    async fn ask(&self, agent: &GrpcCa, name: &str) -> Result<Svid, CaError> {
        let (identity, key) = (identity(name), KeyPair::generate().unwrap());
        let issued = agent.sign(&Csr::new(&identity, &key).unwrap(), &identity).await?;
        Ok(Svid::new(&identity, &key, issued, agent.trust()).expect("what the server gives out is good"))
    }

    /// What the newest line of the audit says.
    fn audited(&self) -> Value {
        serde_json::from_str(self.audit_lines().last().expect("a line")).unwrap()
    }

    fn audit_lines(&self) -> Vec<String> {
        let bytes = self.audit.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    fn counted(&self, result: &str) -> u64 {
        let mut text = String::new();
        encode_metrics(&mut text, &self.registry).unwrap();
        let start = format!("culvert_ca_requests_total{{result=\"{result}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok()).expect("a counter")
    }
}

/// The status that the server answered with.
fn refusal(error: &CaError) -> (Code, String) {
    match error {
        CaError::Grpc(GrpcError::Refused { code, message, .. }) => (*code, message.clone()),
        other => panic!("{other}"),
    }
}

async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("the condition held in time");
}

/// Runs OpenSSL.
fn openssl(dir: &Path, args: &[&str]) {
    let output = Command::new("openssl").args(args).current_dir(dir).output().expect("openssl is installed");
    assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}
