//! `culvert ca serve` before Vault: the agents have tokens of Kubernetes alone, and the server has Vault's.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::Path,
    process::{Child, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use lab::{Agent, Mesh, PATIENCE, eventually, tcp};
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::{
    pki::certified,
    server::{Node, SIGN, Vault},
    signing::TOKEN,
};

/// A process that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The token of the agent on a node, as Kubernetes binds it, and the key that it is signed with.
fn token(key: &EncodingKey, node: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({
        "iss": "https://kubernetes.default.svc", "aud": ["istio-ca"],
        "sub": "system:serviceaccount:culvert-system:culvert-agent", "iat": now, "nbf": now, "exp": now + 600,
        "kubernetes.io": {
            "namespace": "culvert-system",
            "serviceaccount": { "name": "culvert-agent", "uid": "1" },
            "pod": { "name": "culvert-agent", "uid": "2" },
            "node": { "name": node, "uid": "3" },
        },
    });
    encode(&Header { kid: Some("one".to_owned()), ..Header::new(Algorithm::ES256) }, &claims, key).unwrap()
}

fn jwks(key: &EncodingKey) -> Value {
    let mut jwk = Jwk::from_encoding_key(key, Algorithm::ES256).unwrap();
    jwk.common.key_id = Some("one".to_owned());
    json!({ "keys": [jwk] })
}

/// Starts `culvert ca serve` on node-a's port 15012.
fn serve(mesh: &Mesh, vault: &Vault, key: &EncodingKey) -> Server {
    let node = mesh.node("node-a");
    let (roots, certificate, secret) = certified(node.ipv4().into());
    vault.write("server-roots.pem", &roots);
    let file = |name: &str, text: &str| vault.write(name, text).display().to_string();
    let mut command = node.command(lab::culvert().unwrap().to_str().unwrap());
    command.args(["ca", "serve", "--vault-role", "culvert", "--vault-address", &vault.url()]);
    command.args(["--vault-ca", vault.file("vault-ca.pem").to_str().unwrap()]);
    command.args(["--vault-token", &file("token", TOKEN)]);
    command.args([
        "--tls-cert",
        &file("server.pem", &certificate),
        "--tls-key",
        &file("server.key", &secret),
    ]);
    command.args(["--jwks", &file("jwks.json", &jwks(key).to_string())]);
    command.args(["--manifests", mesh.manifests().to_str().unwrap()]);
    let output = |name: &str| Stdio::from(File::create(mesh.directory().join(name)).unwrap());
    let child = command.stdin(Stdio::null()).stdout(output("audit.jsonl")).stderr(output("serve.agent.log"));
    Server(child.spawn().unwrap())
}

/// The lines of the audit.
fn audit(directory: &Path) -> Vec<Value> {
    let text = fs::read_to_string(directory.join("audit.jsonl")).unwrap();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[test]
fn server_passes_requests_on_to_vault_and_agents_need_no_token_of_it() {
    let mesh = Mesh::new().unwrap();
    let client = mesh.pod("client").on("node-a").service_account("client").enrolled().start().unwrap();
    let server = mesh.pod("server").on("node-b").service_account("server").enrolled().start().unwrap();
    let node = mesh.node("node-a");
    let listener = node.netns().run(|| TcpListener::bind((node.ipv4(), 8200))).unwrap();
    let vault = Vault::serve(listener, true);
    vault.token(TOKEN);
    let key = KeyPair::generate().unwrap();
    let key = EncodingKey::from_ec_der(key.serialized_der());
    let _serve = serve(&mesh, &vault, &key);

    let mesh_roots = vault.with(|state| state.mounts["pki"].issuers[1].pem.clone());
    let start = |name: &str| -> Agent {
        let file = |name: &str, text: &str| vault.write(name, text).display().to_string();
        let token = file(&format!("{name}.token"), &token(&key, mesh.node(name).unique_name()));
        let arguments = [
            ["--ca-address".to_owned(), format!("https://{}:15012", node.ipv4())],
            ["--ca-roots".to_owned(), file("mesh-roots.pem", &mesh_roots)],
            ["--ca-server-roots".to_owned(), vault.file("server-roots.pem").display().to_string()],
            ["--ca-token".to_owned(), token],
            ["--certificate-lifetime".to_owned(), "30s".to_owned()],
        ];
        mesh.agent(name).authority(arguments.concat()).start().unwrap()
    };
    let agents = ["node-a", "node-b"].map(start);
    for agent in &agents {
        agent.wait_ready().unwrap();
    }
    let _echo = server.serve(8080, tcp::echo).unwrap();
    eventually(PATIENCE, || tcp::exchange(client.connect(server.at(8080))?, 1000));

    let issued = |identity: &str| {
        audit(mesh.directory()).iter().any(|line| line["outcome"] == "issued" && line["identity"] == identity)
    };
    eventually(PATIENCE, || issued(&client.identity()) && issued(&server.identity()));
    assert!(vault.count(SIGN) >= 2);
    assert!(vault.with(|state| {
        state.seen.iter().all(|seen| seen.token.as_deref().is_none_or(|token| token == TOKEN))
    }));

    // What Vault says reaches the agent's log by way of the server's, and traffic goes on.
    vault.with(|state| state.node = Node::Sealed);
    let failed = |agent: &Agent| {
        agent.metrics().unwrap().sum("culvert_certificate_requests_total", &[("result", "failed")]) >= 1.0
    };
    eventually(PATIENCE, || agents.iter().all(failed));
    tcp::exchange(client.connect(server.at(8080)).unwrap(), 1000).unwrap();
    eventually(PATIENCE, || {
        fs::read_to_string(mesh.directory().join("audit.jsonl")).unwrap().contains("503 (Vault is sealed)")
    });
    vault.with(|state| state.node = Node::Active);
    let held = |agent: &Agent| {
        agent.metrics().unwrap().sum("culvert_certificate_requests_total", &[("result", "issued")])
    };
    let before = agents.each_ref().map(held);
    eventually(PATIENCE, || agents.iter().zip(before).all(|(agent, before)| held(agent) > before));
    assert!(vault_token_is_nowhere(&agents), "an agent knows Vault's token");
}

fn vault_token_is_nowhere(agents: &[Agent]) -> bool {
    agents.iter().all(|agent| {
        !agent.logs().contains(TOKEN) && !agent.get_private("/config_dump").unwrap().body.contains(TOKEN)
    })
}
