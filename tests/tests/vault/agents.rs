//! Real agents whose authority is Vault.

use std::{net::TcpListener, time::Duration};

use lab::{Agent, Mesh, PATIENCE, Pod, eventually, tcp};

use super::{
    server::{Node, Vault},
    signing::TOKEN,
};

/// A client on node-a, a server on node-b, and Vault on node-a, which both agents reach over the wire.
struct World {
    client: Pod,
    server: Pod,
    a: Agent,
    b: Agent,
    vault: Vault,
    _mesh: Mesh,
}

impl World {
    /// `more` are the agents' further arguments.
    fn start(prepare: impl FnOnce(&Vault), more: impl Fn(&Vault) -> Vec<String>) -> Self {
        let mesh = Mesh::new().unwrap();
        let client = mesh.pod("client").on("node-a").service_account("client").enrolled().start().unwrap();
        let server = mesh.pod("server").on("node-b").service_account("server").enrolled().start().unwrap();
        let node = mesh.node("node-a");
        let listener = node.netns().run(|| TcpListener::bind((node.ipv4(), 8200))).unwrap();
        let vault = Vault::serve(listener, true);
        prepare(&vault);
        let start = |name: &str| {
            let mut arguments = vec![
                "--vault-address".to_owned(),
                vault.url(),
                "--vault-role".to_owned(),
                "culvert".to_owned(),
            ];
            arguments.extend(["--vault-ca".to_owned(), vault.file("vault-ca.pem").display().to_string()]);
            arguments.extend(more(&vault));
            mesh.agent(name).authority(arguments).start().unwrap()
        };
        let (a, b) = (start("node-a"), start("node-b"));
        a.wait_ready().unwrap();
        b.wait_ready().unwrap();
        Self { client, server, a, b, vault, _mesh: mesh }
    }

    fn request(&self) -> anyhow::Result<()> {
        tcp::exchange(self.client.connect(self.server.at(8080))?, 1000)
    }
}

/// Certificates that an agent got, or failed to get.
fn requests(agent: &Agent, result: &str) -> f64 {
    agent.metrics().unwrap().sum("culvert_certificate_requests_total", &[("result", result)])
}

#[test]
fn mesh_lives_through_a_vault_that_is_sealed_for_a_while() {
    let prepare = |vault: &Vault| vault.token(TOKEN);
    let world = World::start(prepare, |vault| {
        let token = vault.write("token", TOKEN).display().to_string();
        vec!["--vault-token".to_owned(), token, "--certificate-lifetime".to_owned(), "30s".to_owned()]
    });
    let _echo = world.server.serve(8080, tcp::echo).unwrap();
    eventually(PATIENCE, || world.request());
    // Sealed past the time of renewal: the old certificates serve.
    world.vault.with(|state| state.node = Node::Sealed);
    eventually(PATIENCE, || requests(&world.a, "failed") >= 1.0 && requests(&world.b, "failed") >= 1.0);
    world.request().unwrap();
    eventually(PATIENCE, || world.a.logs().contains("503 (Vault is sealed)"));
    let before = [&world.a, &world.b].map(|agent| requests(agent, "issued"));
    world.vault.with(|state| state.node = Node::Active);
    eventually(PATIENCE, || {
        [&world.a, &world.b].iter().zip(before).all(|(agent, before)| requests(agent, "issued") > before)
    });
    // Not with the certificate that is about to end.
    eventually(PATIENCE, || world.request());
    for agent in [&world.a, &world.b] {
        assert!(!agent.logs().contains(TOKEN), "a log shows the token");
        assert!(!agent.get_private("/config_dump").unwrap().body.contains(TOKEN), "the dump shows the token");
    }
}

#[test]
fn agents_log_in_with_their_service_account_and_say_once_that_lives_are_shortened() {
    let prepare = |vault: &Vault| {
        vault.kubernetes("a.service.account", Duration::from_secs(3600));
        vault.with(|state| state.mounts.get_mut("pki").unwrap().role().max_ttl = Duration::from_secs(6));
    };
    let world = World::start(prepare, |vault| {
        let jwt = vault.write("jwt", "a.service.account").display().to_string();
        let login = ["--vault-kubernetes-role", "mesh", "--vault-kubernetes-token"].map(str::to_owned);
        login.into_iter().chain([jwt]).collect()
    });
    let _echo = world.server.serve(8080, tcp::echo).unwrap();
    eventually(PATIENCE, || world.request());
    eventually(PATIENCE, || requests(&world.a, "issued") >= 3.0 && requests(&world.b, "issued") >= 3.0);
    // Certificates of six seconds end where the machine stands still for three.
    eventually(PATIENCE, || world.request());
    assert_eq!(world.vault.count("auth/kubernetes/login"), 2, "one an agent");
    for agent in [&world.a, &world.b] {
        assert_eq!(agent.logs().matches("Vault shortens certificates' lives").count(), 1, "{}", agent.logs());
    }
}
