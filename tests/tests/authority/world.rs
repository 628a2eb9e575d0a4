//! `culvert ca serve` in a pod, and the tokens that agents show it.

use std::{
    fs, io,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use lab::{Agent, AgentBuilder, Mesh, PATIENCE, Pod, Process, culvert};
use serde_json::{Value, json};

/// What the server's certificate is for, and what agents call it.
const NAME: &str = "ca.culvert-system.svc";
const PORT: u16 = 15012;

/// What makes tokens: the key of an API server.
pub(crate) struct TokenIssuer {
    key: EncodingKey,
    directory: PathBuf,
}

impl TokenIssuer {
    /// Makes a key, and the set of keys that the server is told of.
    pub(crate) fn new(mesh: &Mesh) -> Self {
        let directory = mesh.directory().join("tokens");
        fs::create_dir(&directory).unwrap();
        let openssl = |args: &[&str]| {
            let done = Command::new("openssl").args(args).current_dir(&directory).status().unwrap();
            assert!(done.success(), "openssl {args:?}");
        };
        openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "key.pem"]);
        openssl(&["pkcs8", "-topk8", "-nocrypt", "-in", "key.pem", "-outform", "DER", "-out", "key"]);
        let key = EncodingKey::from_ec_der(&fs::read(directory.join("key")).unwrap());
        let set = json!({ "keys": [Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap()] });
        fs::write(directory.join("jwks.json"), set.to_string()).unwrap();
        Self { key, directory }
    }

    /// Writes the token of the agent on a node, as the kubelet does.
    pub(crate) fn token(&self, node: &str) -> PathBuf {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let claims = json!({
            "aud": ["istio-ca"], "sub": "system:serviceaccount:culvert-system:culvert-agent",
            "nbf": now, "exp": now + 3600,
            "kubernetes.io": {
                "namespace": "culvert-system",
                "serviceaccount": { "name": "culvert-agent" },
                "pod": { "name": "culvert-agent-1" },
                "node": { "name": node },
            },
        });
        let path = self.directory.join(node);
        fs::write(&path, encode(&Header::new(Algorithm::ES256), &claims, &self.key).unwrap()).unwrap();
        path
    }
}

/// The server.
pub(crate) struct CaServer {
    pod: Pod,
    args: Vec<String>,
    process: Process,
}

impl CaServer {
    /// Starts it in a pod of its own, over the mesh's authority and these manifests.
    pub(crate) fn start(mesh: &Mesh, issuer: &TokenIssuer, manifests: &Path) -> Self {
        let pod = mesh.pod("ca").on("node-a").start().unwrap();
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let jwks = path(&issuer.directory.join("jwks.json"));
        let (ca, manifests) = (path(&mesh.ca().unwrap()), path(manifests));
        let listen = format!("{}:{PORT}", pod.ipv4());
        let mut args = vec!["ca", "serve", "--ca-dir", &ca, "--jwks", &jwks, "--manifests", &manifests];
        args.extend(["--listen", &listen, "--dns-name", NAME, "--log-format", "json"]);
        let args: Vec<_> = args.into_iter().map(str::to_owned).collect();
        let process = run(&pod, &args);
        Self { pod, args, process }
    }

    /// SIGKILL.
    pub(crate) fn kill9(&self) {
        self.process.kill9();
    }

    /// Starts it again.
    pub(crate) fn restart(&mut self) {
        self.process.kill9();
        self.process = run(&self.pod, &self.args);
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    /// Connects to its admin address, which is on the loopback of its pod.
    pub(crate) fn connect_admin(&self) -> io::Result<TcpStream> {
        let stream = self.pod.connect(SocketAddr::from(([127, 0, 0, 1], 15022)))?;
        stream.set_read_timeout(Some(lab::http::DEADLINE))?;
        Ok(stream)
    }

    /// Where agents connect to.
    pub(crate) fn address(&self) -> String {
        format!("https://{}:{PORT}", self.pod.ipv4())
    }

    /// The lines of its audit since it was started last.
    pub(crate) fn audit(&self) -> Vec<Value> {
        let logs = self.process.logs();
        let lines = logs.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["outcome"].is_string()).collect()
    }

    /// An agent that gets its certificates here, by the token of `token_node`.
    pub(crate) fn agent(
        &self,
        mesh: &Mesh,
        issuer: &TokenIssuer,
        (node, token_node): (&str, &str),
        lifetime: &str,
    ) -> AgentBuilder {
        let token = issuer.token(mesh.node(token_node).unique_name());
        let roots = mesh.ca().unwrap().join("root.pem");
        let options = [
            "--ca-address".into(),
            self.address().into(),
            "--ca-roots".into(),
            roots.into_os_string(),
            "--ca-server-name".into(),
            NAME.into(),
            "--ca-token".into(),
            token.into_os_string(),
        ];
        mesh.agent(node).authority(options).arg("--certificate-lifetime").arg(lifetime)
    }
}

fn run(pod: &Pod, args: &[String]) -> Process {
    let program = culvert().unwrap();
    let process = pod.spawn_command(pod.command(program.to_str().unwrap()).args(args)).unwrap();
    process.until(PATIENCE, || process.logs().contains("the server has started")).unwrap();
    process
}

/// What an agent's dump says of its certificates.
pub(crate) fn certificates(agent: &Agent) -> Vec<Value> {
    let dump = agent.get_private("/config_dump").unwrap().body;
    let dump: Value = serde_json::from_str(&dump).unwrap();
    dump["certificates"].as_array().unwrap().clone()
}

/// The errors of an agent's certificates.
pub(crate) fn errors(agent: &Agent) -> Vec<String> {
    certificates(agent).iter().filter_map(|one| Some(one["error"].as_str()?.to_owned())).collect()
}

/// The serial numbers of an agent's certificates.
pub(crate) fn serials(agent: &Agent) -> Vec<String> {
    certificates(agent)
        .iter()
        .filter_map(|one| Some(one["certificate"]["serial"].as_str()?.to_owned()))
        .collect()
}
