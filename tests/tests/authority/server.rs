//! `culvert ca serve` and two agents.

use std::{
    fs,
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use lab::{Agent, Mesh, PATIENCE, Pod, eventually, http, tcp};
use nix::sys::signal::Signal;

use crate::world::{CaServer, TokenIssuer, errors, serials};

const PORT: u16 = 8080;

struct World {
    server: CaServer,
    agents: [Agent; 2],
    client: Pod,
    web: Pod,
    _echo: tcp::Server,
    mesh: Mesh,
}

/// A client on node a, a server on node b, and agents with certificates of this lifetime by the server in a pod.
fn world(lifetime: &str) -> World {
    let mesh = Mesh::new().unwrap();
    let issuer = TokenIssuer::new(&mesh);
    let server = CaServer::start(&mesh, &issuer, mesh.manifests());
    let client = mesh.pod("client").on("node-a").enrolled().service_account("client").start().unwrap();
    let web = mesh.pod("web").on("node-b").enrolled().service_account("web").start().unwrap();
    let echo = web.serve(PORT, tcp::echo).unwrap();
    let agents = ["node-a", "node-b"]
        .map(|node| server.agent(&mesh, &issuer, (node, node), lifetime).start().unwrap());
    for agent in &agents {
        agent.wait_ready().unwrap();
        // It is ready without any, so that its node's other pods are.
        eventually(PATIENCE, || serials(agent).len() == 1);
    }
    let world = World { server, agents, client, web, _echo: echo, mesh };
    world.ping().unwrap();
    world
}

impl World {
    fn target(&self) -> SocketAddr {
        self.web.at_v4(PORT)
    }

    fn ping(&self) -> anyhow::Result<()> {
        tcp::ping(&mut self.client.connect(self.target())?, "hello")?;
        Ok(())
    }
}

#[test]
fn agents_live_through_half_a_life_without_the_server_and_no_connection_fails() {
    const LIFETIME: Duration = Duration::from_secs(60);
    let mut world = world("60s");
    let (stop, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    let before = world.agents.each_ref().map(serials);
    assert!(before.iter().all(|serials| serials.len() == 1), "one identity on each node: {before:?}");
    let killed = Instant::now();
    world.server.kill9();
    let (client, target) = (world.client.clone(), world.target());
    thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            while !stop.load(SeqCst) {
                tcp::ping(&mut client.connect(target).unwrap(), "hello").unwrap();
                made.fetch_add(1, SeqCst);
                thread::sleep(Duration::from_millis(20));
            }
        });
        // Ends the traffic also where something below fails.
        let _stop = Stop(&stop);
        // Certificates are renewed when half of their life is over.
        for agent in &world.agents {
            let address = world.server.address();
            eventually(LIFETIME / 2 + PATIENCE, || {
                let errors = errors(agent);
                let all = !errors.is_empty() && errors.iter().all(|error| error.contains(&address));
                if all { Ok(()) } else { Err(format!("no failed renewal yet: {errors:?}")) }
            });
            eventually(PATIENCE, || agent.logs().contains("cannot be reached"));
        }
        world.server.restart();
        for (agent, before) in world.agents.iter().zip(&before) {
            eventually(PATIENCE, || {
                let now = serials(agent);
                errors(agent).is_empty() && now.len() == 1 && !before.contains(&now[0])
            });
        }
        // With the new certificates, and past the end of the old.
        eventually(LIFETIME, || killed.elapsed() > LIFETIME);
        let so_far = made.load(SeqCst);
        eventually(PATIENCE, || made.load(SeqCst) > so_far + 10);
        assert!(!traffic.is_finished(), "a connection failed");
    });
    for agent in &world.agents {
        let failed: Vec<_> = agent.access_log().into_iter().filter(|record| !record.is_ok()).collect();
        assert!(failed.is_empty(), "{failed:?}");
    }
    for name in ["client", "web"] {
        let identity = format!("spiffe://cluster.local/ns/default/sa/{name}");
        eventually(PATIENCE, || world.server.audit().iter().any(|line| line["identity"] == identity));
    }
    let audit = world.server.audit();
    assert!(audit.iter().all(|line| line["outcome"] == "issued"), "{audit:?}");
}

/// Ends the traffic when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn an_expired_certificate_opens_no_connection_and_a_server_that_comes_back_heals_it() {
    let mut world = world("12s");
    world.server.kill9();
    let target = world.target();
    let address = world.server.address();
    eventually(PATIENCE * 2, || {
        let _ = world.ping();
        let log = world.agents[0].access_log();
        // Not one that the tunnel was cut under as its certificate ended: that says so instead.
        log.iter().any(|record| {
            record.destination() == Some(target)
                && record.reason().as_deref() == Some("no_certificate")
                && record
                    .field("error")
                    .is_some_and(|error| error.contains("not renewed") && error.contains(&address))
        })
    });
    eventually(PATIENCE, || {
        let status = String::from_utf8(world.agents[0].cli(&["status"]).unwrap().stdout).unwrap();
        let says = status.contains("no certificate for spiffe://") && status.contains(&address);
        if says { Ok(()) } else { Err(status) }
    });
    assert!(world.ping().is_err(), "it stays so");
    world.server.restart();
    eventually(PATIENCE * 2, || world.ping());
}

#[test]
fn a_node_gets_no_certificate_by_another_nodes_token_and_none_for_a_pod_that_has_ended() {
    let mesh = Mesh::new().unwrap();
    let issuer = TokenIssuer::new(&mesh);
    // What the server knows is not what the agent knows.
    let manifests = mesh.directory().join("known-to-the-server");
    fs::create_dir(&manifests).unwrap();
    let server = CaServer::start(&mesh, &issuer, &manifests);
    let web = mesh.pod("web").on("node-b").enrolled().service_account("web").start().unwrap();
    let node = mesh.node("node-b").unique_name().to_owned();
    let know = |phase: &str| {
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: default}}\n\
             spec: {{nodeName: {node}, serviceAccountName: web}}\nstatus: {{phase: {phase}}}\n"
        );
        fs::write(manifests.join("web.yaml"), pod).unwrap();
    };
    let agent = server.agent(&mesh, &issuer, ("node-b", "node-b"), "1h").start().unwrap();
    agent.wait_ready().unwrap();
    let says = |parts: &[&str]| {
        eventually(PATIENCE * 2, || {
            let errors = errors(&agent);
            let found = errors.iter().any(|error| parts.iter().all(|part| error.contains(part)));
            if found { Ok(()) } else { Err(format!("{errors:?}")) }
        });
    };
    says(&["Unavailable", "no pod on any node"]);
    know("Succeeded");
    eventually(PATIENCE, || server.audit().len() > 2);
    says(&["Unavailable", "no pod on any node"]);
    assert!(server.audit().iter().all(|line| line["reason"] == "unknown_identity"), "{:?}", server.audit());
    know("Running");
    eventually(PATIENCE * 2, || !serials(&agent).is_empty() && errors(&agent).is_empty());
    drop(agent);

    let agent = server.agent(&mesh, &issuer, ("node-b", "node-a"), "1h").start().unwrap();
    agent.wait_ready().unwrap();
    let says = |parts: &[&str]| {
        eventually(PATIENCE * 2, || {
            let errors = errors(&agent);
            let found = errors.iter().any(|error| parts.iter().all(|part| error.contains(part)));
            if found { Ok(()) } else { Err(format!("{errors:?}")) }
        });
    };
    says(&["PermissionDenied", &node, mesh.node("node-a").unique_name()]);
    assert!(serials(&agent).is_empty());
    let line = eventually(PATIENCE, || server.audit().pop().filter(|line| line["outcome"] == "refused"));
    assert_eq!((line["reason"].as_str(), line["outcome"].as_str()), (Some("not_on_node"), Some("refused")));
    drop(web);
}

#[test]
fn the_server_has_health_and_metrics_and_ends_at_a_signal() {
    let world = world("1h");
    let get = |path: &str| {
        let stream = world.server.connect_admin().unwrap();
        http::get(stream, path).unwrap()
    };
    let ready = get("/healthz/ready");
    assert_eq!(ready.status, 200, "{}", ready.body);
    assert!(ready.body.contains("certificate") && ready.body.contains("taking requests"), "{}", ready.body);
    assert_eq!(get("/healthz/live").status, 200);
    let metrics = get("/metrics").body;
    let issued =
        metrics.lines().find(|line| line.starts_with("culvert_ca_requests_total{result=\"issued\"}"));
    let issued: u64 = issued.and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap();
    assert!(issued >= 2, "{metrics}");
    world.server.process().signal(Signal::SIGTERM);
    let status = world.server.process().wait(PATIENCE).unwrap();
    assert!(status.success(), "{status}");
    assert!(world.server.process().logs().contains("the server has ended"));
    drop(world.mesh);
}
