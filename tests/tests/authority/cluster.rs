//! `culvert ca serve --kube` against a real API server, with the rights that the chart gives it and no others.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use culvert::identity::{CaError, CertificateAuthority as _, Csr, GrpcCa, GrpcConfig, Svid, ca::GrpcError};
use lab::{Cluster, ClusterConfig, PATIENCE, cluster::ControlPlane, culvert, eventually};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rcgen::KeyPair;

/// Where everything is.
const NAMESPACE: &str = "culvert-system";
const AUDIENCE: &str = "culvert-ca";

struct World {
    servers: Vec<Server>,
    directory: tempfile::TempDir,
    kubeconfig: PathBuf,
    cluster: Cluster,
}

/// A server in the control plane's namespace.
struct Server {
    child: Child,
    log: PathBuf,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl World {
    /// A cluster with an agent's pod and a workload's on each node, and no authority yet.
    fn new(name: &str) -> Self {
        let cluster = Cluster::up(ClusterConfig::named(name)).unwrap();
        let mut objects = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n");
        for (namespace, account) in [(NAMESPACE, "culvert"), ("default", "web"), ("default", "db")] {
            objects += &format!(
                "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {account}, namespace: {namespace}}}\n"
            );
        }
        cluster.apply(&objects).unwrap();
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart/culvert");
        let mut helm = cluster.helm_command();
        helm.args(["template", "culvert"]).arg(chart);
        helm.args([
            "--namespace",
            NAMESPACE,
            "--show-only",
            "templates/ca-rbac.yaml",
            "--kube-version",
            "1.36.0",
        ]);
        let rights = helm.output().unwrap();
        assert!(rights.status.success(), "{}", String::from_utf8_lossy(&rights.stderr));
        cluster.apply(&String::from_utf8(rights.stdout).unwrap()).unwrap();
        let kubeconfig = cluster.service_account_kubeconfig(NAMESPACE, "culvert-ca").unwrap();
        let world =
            Self { servers: Vec::new(), directory: tempfile::tempdir().unwrap(), kubeconfig, cluster };
        for node in ["node-a", "node-b"] {
            world.pod(NAMESPACE, &format!("agent-{node}"), "culvert", node);
        }
        world.pod("default", "web", "web", "node-a");
        world.pod("default", "db", "db", "node-b");
        world
    }

    /// Makes a pod that never runs, which is as good as one that does: it has a node.
    fn pod(&self, namespace: &str, name: &str, account: &str, node: &str) {
        let node = self.cluster.node(node).unique_name();
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec:\n  serviceAccountName: {account}\n  nodeName: {node}\n  terminationGracePeriodSeconds: 0\n\
             \x20 containers: [{{name: none, image: none, imagePullPolicy: Never}}]\n"
        );
        self.cluster.apply(&pod).unwrap();
    }

    fn start(&mut self) {
        let port = 15100 + u16::try_from(self.servers.len()).unwrap() * 2;
        let log = self.directory.path().join(format!("server-{port}"));
        let netns = self.cluster.control_netns();
        let mut command: Command = netns.command(culvert().unwrap().to_str().unwrap());
        command.args(["ca", "serve", "--kube", "--dns-name", "localhost", "--audience", AUDIENCE]);
        command.args(["--agent-service-account", &format!("{NAMESPACE}/culvert"), "--log-format", "json"]);
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command.arg(format!("--listen=127.0.0.1:{port}")).arg(format!("--admin=127.0.0.1:{}", port + 1));
        command.stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        self.servers.push(Server { child: command.spawn().unwrap(), log, port });
    }

    fn wait_started(&self) {
        for server in &self.servers {
            eventually(PATIENCE, || match server.log().contains("the server has started") {
                true => Ok(()),
                false => Err(server.log()),
            });
        }
    }

    /// A token that is bound to a pod, as the kubelet has one made for it.
    fn token(&self, namespace: &str, account: &str, pod: &str, audience: &str) -> String {
        let audience = format!("--audience={audience}");
        let bound = ["--bound-object-kind=Pod", &format!("--bound-object-name={pod}")];
        let args = [&["create", "token", account, "--namespace", namespace, &audience][..], &bound].concat();
        self.cluster.kubectl(&args, "").unwrap().trim().to_owned()
    }

    fn agent_token(&self, node: &str) -> String {
        self.token(NAMESPACE, "culvert", &format!("agent-{node}"), AUDIENCE)
    }

    /// The roots as agents find them.
    fn roots(&self) -> Option<String> {
        let map = self.cluster.get(&["configmap", "culvert-ca-root", "--namespace", NAMESPACE]).ok()?;
        map["data"]["root.pem"].as_str().map(str::to_owned)
    }

    /// Asks a server for a certificate as an agent does, and checks what it gets under the roots in the ConfigMap.
    fn ask(&self, server: usize, token: &str, account: &str) -> Result<Svid, CaError> {
        let roots = self.directory.path().join("roots.pem");
        if let Some(pem) = self.roots() {
            fs::write(&roots, pem).unwrap();
        }
        let file = self.directory.path().join("token");
        fs::write(&file, token).unwrap();
        let config = GrpcConfig {
            address: format!("https://localhost:{}", self.servers[server].port).parse().unwrap(),
            server_name: None,
            roots,
            server_roots: None,
            token: file,
            cluster: None,
            lifetime: Duration::from_secs(3600),
        };
        let asking = async {
            let agent = GrpcCa::new(config)?;
            let identity = format!("spiffe://cluster.local/ns/default/sa/{account}").parse().unwrap();
            let key = KeyPair::generate().unwrap();
            let issued = agent.sign(&Csr::new(&identity, &key).unwrap(), &identity).await?;
            Ok(Svid::new(&identity, &key, issued, agent.trust()).expect("what the server gives out is good"))
        };
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        self.cluster.control_netns().run(|| runtime().block_on(asking))
    }

    /// Asks as often as an agent would: a server that is told nothing in time says to come again.
    fn gets(&self, server: usize, token: &str, account: &str) {
        eventually(PATIENCE, || {
            self.ask(server, token, account).map(drop).map_err(|error| error.to_string())
        });
    }

    /// What a server answers to somebody whom it refuses, its code first. One that knows nothing is asked again.
    fn refused(&self, server: usize, token: &str, account: &str) -> String {
        eventually(PATIENCE, || {
            match self.ask(server, token, account).map(drop).expect_err("a certificate") {
                CaError::Grpc(GrpcError::Refused { code, message, .. })
                    if format!("{code:?}") != "Unavailable" =>
                {
                    Ok(format!("{code:?}: {message}"))
                }
                other => Err(other.to_string()),
            }
        })
    }

    fn leader(&self) -> Option<usize> {
        let leads = |server: &Server| server.log().matches("this process leads\"").count() == 1;
        self.servers.iter().position(leads)
    }
}

impl Server {
    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

#[test]
fn the_api_server_says_whose_token_it_is_and_only_a_nodes_agent_gets_its_pods_certificates() {
    let mut world = World::new("catokens");
    world.start();
    world.wait_started();
    let token = world.agent_token("node-a");
    eventually(PATIENCE, || world.ask(0, &token, "web").map(drop).map_err(|error| error.to_string()));

    let says = |token: &str, account: &str, parts: &[&str]| {
        let answer = world.refused(0, token, account);
        assert!(parts.iter().all(|part| answer.contains(part)), "{parts:?}: {answer}");
    };
    says(&token, "db", &["PermissionDenied", "node-b", "node-a"]);
    world.gets(0, &world.agent_token("node-b"), "db");
    says(&world.token(NAMESPACE, "culvert", "agent-node-a", "elsewhere"), "web", &["Unauthenticated"]);
    let web = world.token("default", "web", "web", AUDIENCE);
    says(&web, "web", &["Unauthenticated", "default/web", "none of the agents"]);
    let unbound = world.cluster.token(NAMESPACE, "culvert", AUDIENCE).unwrap();
    says(&unbound, "web", &["Unauthenticated", "not bound to a pod"]);
    says("e30.e30.e30", "web", &["Unauthenticated", "API server"]);
    says("nonsense", "web", &["Unauthenticated", "three parts"]);

    // A pod that the server may not have heard of yet.
    world
        .cluster
        .apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: late, namespace: default}\n")
        .unwrap();
    world.pod("default", "late", "late", "node-a");
    world.gets(0, &token, "late");

    // What was said of the token is forgotten after some seconds.
    world.cluster.kubectl(&["delete", "pod", "agent-node-a", "--namespace", NAMESPACE, "--now"], "").unwrap();
    eventually(PATIENCE, || match world.ask(0, &token, "web").map(drop) {
        Ok(()) => Err("the token of a deleted pod is still taken".to_owned()),
        Err(error) if error.to_string().contains("API server does not take the token") => Ok(()),
        Err(error) => Err(error.to_string()),
    });
}

#[test]
fn two_servers_make_one_authority_and_keep_its_roots_where_agents_find_them() {
    let mut world = World::new("cakept");
    world.start();
    world.start();
    world.wait_started();
    let token = world.agent_token("node-a");
    let first = eventually(PATIENCE, || world.roots());
    assert_eq!(first.matches("BEGIN CERTIFICATE").count(), 1);
    for server in [0, 1] {
        world.gets(server, &token, "web");
    }
    let secret = world.cluster.get(&["secret", "culvert-ca", "--namespace", NAMESPACE]).unwrap();
    assert_eq!(secret["type"], "kubernetes.io/tls");
    world.cluster.get(&["secret", "culvert-ca-root-key", "--namespace", NAMESPACE]).unwrap();
    let leader = eventually(PATIENCE, || world.leader());

    let map = ["configmap", "culvert-ca-root", "--namespace", NAMESPACE];
    world.cluster.kubectl(&[&["delete"], &map[..]].concat(), "").unwrap();
    eventually(PATIENCE, || world.roots().as_ref() == Some(&first));
    let nonsense = r#"{"data":{"root.pem":"nonsense"}}"#;
    world.cluster.kubectl(&[&["patch"], &map[..], &["--patch", nonsense]].concat(), "").unwrap();
    eventually(PATIENCE, || world.roots().as_ref() == Some(&first));

    // The leader dies, and the other one leads once the lease is over.
    let pid = Pid::from_raw(i32::try_from(world.servers[leader].child.id()).unwrap());
    kill(pid, Signal::SIGKILL).unwrap();
    let other = 1 - leader;
    eventually(PATIENCE * 2, || world.servers[other].log().contains("this process leads\""));
    world.cluster.kubectl(&[&["delete"], &map[..]].concat(), "").unwrap();
    eventually(PATIENCE, || world.roots().as_ref() == Some(&first));
    let lease = world.cluster.get(&["lease", "culvert-ca", "--namespace", NAMESPACE]).unwrap();
    assert_eq!(lease["spec"]["leaseTransitions"], 1, "{lease}");

    // Another authority in the Secret, under roots that both are trusted.
    let directory = world.directory.path().join("ca");
    let made = Command::new(culvert().unwrap()).args(["ca", "init"]).arg(&directory).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
    let both = first + &read("root.pem");
    let data =
        [("tls.crt", read("intermediate.pem")), ("tls.key", read("intermediate.key")), ("ca.crt", both)];
    let data: serde_json::Map<String, serde_json::Value> =
        data.into_iter().map(|(name, part)| (name.to_owned(), part.into())).collect();
    let patch = serde_json::json!({ "stringData": data }).to_string();
    world
        .cluster
        .kubectl(&["patch", "secret", "culvert-ca", "--namespace", NAMESPACE, "--patch", &patch], "")
        .unwrap();
    eventually(PATIENCE, || {
        world.roots().is_some_and(|roots| roots.matches("BEGIN CERTIFICATE").count() == 2)
    });
    eventually(PATIENCE, || world.servers[other].log().contains("another intermediate signs from now on"));
    world.gets(other, &token, "web");

    // Without an API server nobody knows whose token it is, and agents are told to come again.
    world.cluster.stop(ControlPlane::ApiServer).unwrap();
    eventually(PATIENCE, || {
        match world.ask(other, &token, "web").map(drop).map_err(|error| error.to_string()) {
            Ok(()) => Err("what was said of the token is not forgotten yet".to_owned()),
            Err(error) if error.contains("Unavailable") && error.contains("ask again") => Ok(()),
            Err(error) => Err(error),
        }
    });
    world.cluster.start(ControlPlane::ApiServer).unwrap();
    eventually(PATIENCE * 2, || world.ask(other, &token, "web").map(drop).map_err(|error| error.to_string()));

    // A Secret that is gone is not replaced by an authority that nobody trusts.
    world.cluster.kubectl(&["delete", "secret", "culvert-ca", "--namespace", NAMESPACE], "").unwrap();
    eventually(PATIENCE, || world.servers[other].log().contains("was deleted"));
    world.gets(other, &token, "web");
    world.start();
    let third = world.servers.len() - 1;
    kill(Pid::from_raw(i32::try_from(world.servers[other].child.id()).unwrap()), Signal::SIGTERM).unwrap();
    eventually(PATIENCE * 2, || world.servers[third].log().contains("there was an authority before"));
    assert!(world.cluster.get(&["secret", "culvert-ca", "--namespace", NAMESPACE]).is_err());
}
