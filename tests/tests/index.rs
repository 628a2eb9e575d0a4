//! Who has an address: pods that ended, pods on their node's network, two pods with one address, and an address that
//! moves from one pod to another.

use std::{
    fs,
    io::{self, ErrorKind},
    net::{SocketAddr, TcpStream},
};

use lab::{Agent, Mesh, PATIENCE, Pod, eventually, tcp};

/// A client on `node-a` and an agent on each of two nodes.
struct World {
    mesh: Mesh,
    client: Pod,
    a: Agent,
    b: Agent,
}

impl World {
    fn new() -> Self {
        let mesh = Mesh::new().unwrap();
        let client = mesh.pod("client").on("node-a").enrolled().service_account("client").start().unwrap();
        let (a, b) = (mesh.agent("node-a").start().unwrap(), mesh.agent("node-b").start().unwrap());
        a.wait_ready().unwrap();
        b.wait_ready().unwrap();
        Self { mesh, client, a, b }
    }

    fn ping(&self, target: SocketAddr) -> io::Result<()> {
        let mut stream = self.client.connect(target)?;
        stream.set_read_timeout(Some(tcp::STALL))?;
        tcp::ping(&mut stream, "hello")
    }

    /// Whom the last good connection to an address reached, as the client's agent has it.
    fn last_identity(&self, target: SocketAddr) -> Option<String> {
        let log = self.a.access_log();
        let mut of_target =
            log.iter().filter(|record| record.is_ok() && record.destination() == Some(target));
        of_target.next_back().and_then(lab::AccessRecord::destination_identity)
    }

    /// Waits until a connection reaches `identity` and returns when it does.
    fn reaches(&self, target: SocketAddr, identity: &str) {
        eventually(PATIENCE, || {
            self.ping(target).map_err(|error| error.to_string())?;
            match self.last_identity(target) {
                Some(found) if found == identity => Ok(()),
                other => Err(format!("{target} is {other:?}, not {identity}")),
            }
        });
    }
}

fn gauge(agent: &Agent, name: &str) -> f64 {
    agent.metrics().unwrap().sum(name, &[])
}

fn ends_in_a_reset(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(tcp::read(stream, &mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_pod_that_ended_holds_no_address() {
    let world = World::new();
    for phase in ["Succeeded", "Failed"] {
        let name = phase.to_lowercase();
        let job = world.mesh.pod(&name).on("node-b").enrolled().service_account("job").start().unwrap();
        let (addresses, target) = (job.manifest().addresses, job.at(8080));
        let echo = job.serve(8080, tcp::echo).unwrap();
        world.reaches(target, "spiffe://cluster.local/ns/default/sa/job");
        drop(echo);

        // Its object stays for who wants to read its log; its address is free.
        job.vanish().unwrap();
        job.update(|pod| pod.phase = phase.to_owned()).unwrap();
        let heir = world.mesh.pod(&format!("heir-of-{name}")).on("node-b").enrolled().service_account("heir");
        let heir = heir.addresses(&addresses).start().unwrap();
        let _echo = heir.serve(8080, tcp::echo).unwrap();
        world.reaches(target, "spiffe://cluster.local/ns/default/sa/heir");
        for agent in [&world.a, &world.b] {
            eventually(PATIENCE, || gauge(agent, "culvert_address_conflicts") == 0.0);
        }
    }
}

#[test]
fn a_pod_on_its_nodes_network_never_claims_the_nodes_address() {
    let world = World::new();
    let node = world.mesh.node("node-b");
    let target = SocketAddr::new(node.ipv4().into(), 8080);
    let _echo = tcp::Server::start(node.listen(8080).unwrap(), tcp::echo).unwrap();
    let one = world.mesh.pod("one").on("node-b").host_network().enrolled().start().unwrap();
    let _two = world.mesh.pod("two").on("node-b").host_network().enrolled().start().unwrap();
    // The control: a pod that is written later and does count.
    let pod = world.mesh.pod("control").on("node-b").enrolled().start().unwrap();
    let _pod_echo = pod.serve(8080, tcp::echo).unwrap();
    world.reaches(pod.at(8080), &pod.identity());

    let captured = || gauge(&world.a, "culvert_capture_connections_total");
    let before = captured();
    assert!(before > 0.0, "the control's connections are counted");
    world.ping(target).unwrap();
    assert_eq!(captured(), before, "the node's address is nobody's in the mesh");
    assert_eq!(gauge(&world.a, "culvert_address_conflicts"), 0.0);
    assert_eq!(gauge(&world.b, "culvert_pods_enrolled"), 1.0);
    let readiness = world.b.get("/healthz/ready").unwrap().body;
    assert!(!readiness.contains(&one.name()), "it is not missing either: {readiness}");
    let dump = world.a.get_private("/config_dump").unwrap().body;
    assert!(!dump.contains(&format!("\"{}\"", node.ipv4())), "{dump}");
}

#[test]
fn traffic_to_an_address_of_two_pods_is_refused_and_reported() {
    let world = World::new();
    let service = world.mesh.service("web").select("app", "web").port(80, 8080).apply().unwrap();
    let one = world.mesh.pod("one").on("node-b").enrolled().label("app", "web").start().unwrap();
    let two = world.mesh.pod("two").on("node-b").enrolled().service_account("two").start().unwrap();
    let _echoes = [one.serve(8080, tcp::echo).unwrap(), two.serve(8080, tcp::echo).unwrap()];
    let target = one.at(8080);
    world.reaches(target, &one.identity());
    world.ping(service.address(80)).unwrap();
    assert!(!world.a.logs().contains("two live pods claim one address"));

    let (right, disputed) = (two.manifest().addresses, one.manifest().addresses);
    two.update(|pod| pod.addresses = disputed.clone()).unwrap();
    for agent in [&world.a, &world.b] {
        eventually(PATIENCE, || gauge(agent, "culvert_address_conflicts") == disputed.len() as f64);
        for part in [one.ip().to_string().as_str(), "default/one", "default/two"] {
            eventually(PATIENCE, || match agent.get("/healthz/ready").unwrap().body {
                readiness if readiness.contains(part) => Ok(()),
                readiness => Err(format!("{part} in {readiness}")),
            });
        }
        eventually(PATIENCE, || agent.logs().contains("two live pods claim one address"));
    }
    eventually(PATIENCE, || world.ping(target).is_err());
    for refused in [target, service.address(80)] {
        assert!(world.ping(refused).is_err());
    }
    eventually(PATIENCE, || {
        let log = world.a.access_log();
        log.iter().any(|record| record.reason().as_deref() == Some("address_conflict"))
    });

    two.update(|pod| pod.addresses = right.clone()).unwrap();
    world.reaches(target, &one.identity());
    world.ping(service.address(80)).unwrap();
    world.reaches(two.at(8080), &two.identity());
    for agent in [&world.a, &world.b] {
        eventually(PATIENCE, || gauge(agent, "culvert_address_conflicts") == 0.0);
        eventually(PATIENCE, || !agent.get("/healthz/ready").unwrap().body.contains("claimed by two"));
    }
}

#[test]
fn an_address_that_moves_to_another_pod_takes_neither_identity_nor_tunnel_along() {
    let world = World::new();
    let old = world.mesh.pod("old").on("node-b").enrolled().service_account("old").start().unwrap();
    let (addresses, target) = (old.manifest().addresses, old.at(8080));
    let _echo = old.serve(8080, tcp::echo).unwrap();
    world.reaches(target, "spiffe://cluster.local/ns/default/sa/old");
    let mut stream = world.client.connect(target).unwrap();
    tcp::ping(&mut stream, "to the old one").unwrap();
    assert_eq!(gauge(&world.a, "culvert_hbone_connections"), 1.0);

    old.delete().unwrap();
    let heir = world.mesh.pod("heir").on("node-b").enrolled().service_account("new");
    let heir = heir.addresses(&addresses).start().unwrap();
    let heirs = heir.serve(8080, tcp::echo).unwrap();
    ends_in_a_reset(&mut stream);
    world.reaches(target, "spiffe://cluster.local/ns/default/sa/new");
    // The tunnel to the old pod goes.
    eventually(PATIENCE, || gauge(&world.a, "culvert_hbone_connections") == 1.0);
    let of_the_heir = || {
        let log = world.b.access_log().into_iter();
        log.filter(|record| record.is_ok() && record.destination_identity() == Some(heir.identity())).count()
    };
    eventually(PATIENCE, || heirs.open() == 0 && of_the_heir() > 0);
    assert!(of_the_heir() <= heirs.accepted(), "only who asked for it reached it");
}

#[test]
fn a_namespace_that_becomes_another_pods_takes_neither_identity_nor_tunnel_along() {
    // At once, by one file: nobody had the address in between.
    the_old_tunnel_ends(|pod| {
        "another-uid".clone_into(&mut pod.uid);
        "new".clone_into(&mut pod.service_account);
    });
}

#[test]
fn a_pod_of_another_service_account_under_its_old_name_takes_neither_identity_nor_tunnel_along() {
    the_old_tunnel_ends(|pod| "new".clone_into(&mut pod.service_account));
}

#[test]
fn what_a_pod_opened_ends_with_the_identity_that_it_was_opened_under() {
    let world = World::new();
    let server = world.mesh.pod("server").on("node-b").enrolled().start().unwrap();
    let outside = world.mesh.pod("outside").on("node-b").start().unwrap();
    let (_echo, _plain) = (server.serve(8080, tcp::echo).unwrap(), outside.serve(8080, tcp::echo).unwrap());
    let target = server.at(8080);
    world.reaches(target, "spiffe://cluster.local/ns/default/sa/default");
    let mut stream = world.client.connect(target).unwrap();
    tcp::ping(&mut stream, "under the old identity").unwrap();
    let wire = world.mesh.capture_wire().unwrap();
    world.client.update(|pod| "new".clone_into(&mut pod.service_account)).unwrap();
    ends_in_a_reset(&mut stream);
    eventually(PATIENCE, || {
        // Whatever becomes of it meanwhile, it must not go out in plaintext.
        let _ = world.ping(target);
        let log = world.b.access_log();
        let last =
            log.iter().rev().find(|record| record.is_ok()).and_then(lab::AccessRecord::source_identity);
        last.as_deref() == Some("spiffe://cluster.local/ns/default/sa/new")
    });
    let mut control = world.client.connect(outside.at(8080)).unwrap();
    tcp::ping(&mut control, "goes out in plaintext").unwrap();
    let wire = wire.stop().unwrap();
    assert!(wire.contains("goes out in plaintext"));
    assert!(!wire.contains("hello"), "the pod was out of the mesh for a moment");
}

/// Changes a pod of the service account `old` to one of `new` while a client speaks to it.
#[track_caller]
fn the_old_tunnel_ends(change: impl FnOnce(&mut lab::manifest::PodManifest)) {
    let world = World::new();
    let pod = world.mesh.pod("pod").on("node-b").enrolled().service_account("old").start().unwrap();
    let _echo = pod.serve(8080, tcp::echo).unwrap();
    let target = pod.at(8080);
    world.reaches(target, "spiffe://cluster.local/ns/default/sa/old");
    let mut stream = world.client.connect(target).unwrap();
    tcp::ping(&mut stream, "to the old one").unwrap();
    pod.update(change).unwrap();
    ends_in_a_reset(&mut stream);
    world.reaches(target, "spiffe://cluster.local/ns/default/sa/new");
}

#[test]
fn a_tunnel_to_the_old_pod_does_not_reach_the_new_one_when_its_client_has_not_heard() {
    let mesh = Mesh::new().unwrap();
    let client = mesh.pod("client").on("node-a").enrolled().start().unwrap();
    let pod = mesh.pod("pod").on("node-b").enrolled().service_account("old").start().unwrap();
    // The client's agent reads a copy, which stays as it is.
    let stale = mesh.directory().join("stale");
    fs::create_dir(&stale).unwrap();
    for entry in fs::read_dir(mesh.manifests()).unwrap().flatten() {
        fs::copy(entry.path(), stale.join(entry.file_name())).unwrap();
    }
    let (a, b) =
        (mesh.agent("node-a").manifests(&stale).start().unwrap(), mesh.agent("node-b").start().unwrap());
    a.wait_ready().unwrap();
    b.wait_ready().unwrap();
    let world = World { mesh, client, a, b };
    let echo = pod.serve(8080, tcp::echo).unwrap();
    let target = pod.at(8080);
    world.reaches(target, "spiffe://cluster.local/ns/default/sa/old");
    let mut stream = world.client.connect(target).unwrap();
    tcp::ping(&mut stream, "to the old one").unwrap();

    pod.update(|pod| {
        "another-uid".clone_into(&mut pod.uid);
        "new".clone_into(&mut pod.service_account);
    })
    .unwrap();
    ends_in_a_reset(&mut stream);
    let new = "spiffe://cluster.local/ns/default/sa/new";
    eventually(PATIENCE, || {
        let dump: serde_json::Value =
            serde_json::from_str(&world.b.get_private("/config_dump").unwrap().body).unwrap();
        dump["pods"][0]["identity"] == new && dump["pods"][0]["state"] == "enrolled"
    });
    let before = echo.accepted();
    for _ in 0..5 {
        assert!(world.ping(target).is_err(), "neither by the old tunnel nor by a new one");
    }
    assert_eq!(echo.accepted(), before, "the application of the new pod has seen nobody");
    eventually(PATIENCE, || {
        let log = world.a.access_log();
        log.iter().any(|record| record.reason().as_deref() == Some("identity_mismatch"))
    });
    // The control: who has heard reaches it.
    fs::copy(world.mesh.manifests().join("pod-default-pod.yaml"), stale.join("pod-default-pod.yaml"))
        .unwrap();
    world.reaches(target, new);
}
