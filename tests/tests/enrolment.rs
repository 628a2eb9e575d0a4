//! How the agent follows the manifests: pods that join and leave the mesh while they talk, manifests that are broken,
//! pods whose namespace cannot be had, and what services lead to.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use lab::{Agent, Mesh, PATIENCE, Pod, eventually, tcp};

/// A mesh of two nodes with an agent on each.
struct World {
    mesh: Mesh,
    a: Agent,
    b: Agent,
}

impl World {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(args: &[&str]) -> Self {
        let mesh = Mesh::new().unwrap();
        let start = |node| mesh.agent(node).args(args).start().unwrap();
        let (a, b) = (start("node-a"), start("node-b"));
        a.wait_ready().unwrap();
        b.wait_ready().unwrap();
        Self { mesh, a, b }
    }

    fn pod(&self, name: &str, node: &str) -> Pod {
        self.mesh.pod(name).on(node).enrolled().start().unwrap()
    }

    /// Waits until both agents say that all of these pods are in the mesh.
    fn wait_enrolled(&self, pods: &[&Pod]) {
        for agent in [&self.a, &self.b] {
            let node = self.mesh.node(agent.node()).unique_name();
            let wanted = pods.iter().filter(|pod| pod.manifest().node == node).count() as f64;
            eventually(PATIENCE, || gauge(agent, "culvert_pods_enrolled") >= wanted);
        }
        // A pod's own agent may know it before the other does.
        for pod in pods {
            let address = pod.ip().to_string();
            for agent in [&self.a, &self.b] {
                eventually(PATIENCE, || agent.get_private("/config_dump").unwrap().body.contains(&address));
            }
        }
    }

    /// Whether a connection that is made now comes out of a tunnel at the server's node.
    fn is_tunnelled(&self, client: &Pod, target: SocketAddr) -> bool {
        let opened = || {
            let metrics = self.b.metrics().unwrap();
            metrics.sum("istio_tcp_connections_opened_total", &[("reporter", "destination")])
        };
        let before = opened();
        // While the state changes a connection may fail; the next attempt tells.
        let Ok(mut stream) = client.connect(target) else { return false };
        tcp::ping(&mut stream, "tunnelled?").is_ok() && opened() > before
    }
}

fn gauge(agent: &Agent, name: &str) -> f64 {
    agent.metrics().map_or(-1.0, |metrics| metrics.sum(name, &[]))
}

fn readiness(agent: &Agent) -> String {
    agent.get("/healthz/ready").unwrap().body
}

/// Bytes that go to an echo and come back, without a pause, until they are told to end.
struct Transfer {
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(), String>>,
}

/// The harness's pattern repeats after so many bytes.
const ROUND: u64 = 65_521;

impl Transfer {
    fn start(stream: TcpStream) -> Self {
        let (rounds, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (Arc::clone(&rounds), Arc::clone(&stop));
        let thread =
            thread::spawn(move || carry(stream, &counted, &stopped).map_err(|error| error.to_string()));
        Self { rounds, stop, thread }
    }

    /// Waits until bytes have gone both ways that were sent after this call.
    fn wait_progress(&self) {
        let seen = self.rounds.load(Ordering::SeqCst);
        eventually(PATIENCE, || self.thread.is_finished() || self.rounds.load(Ordering::SeqCst) > seen + 2);
        assert!(!self.thread.is_finished(), "the transfer ended early");
    }

    fn finish(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap().unwrap();
    }
}

fn carry(mut stream: TcpStream, rounds: &AtomicU64, stop: &AtomicBool) -> std::io::Result<()> {
    stream.set_read_timeout(Some(tcp::STALL))?;
    while !stop.load(Ordering::SeqCst) {
        tcp::send(&mut stream, ROUND)?;
        tcp::receive_exactly(&mut stream, 0, ROUND)?;
        rounds.fetch_add(1, Ordering::SeqCst);
    }
    stream.shutdown(Shutdown::Write)?;
    match tcp::read(&mut stream, &mut [0])? {
        0 => Ok(()),
        _ => Err(std::io::Error::other("more came than was sent")),
    }
}

#[test]
fn a_transfer_goes_on_while_its_pods_leave_and_rejoin_the_mesh() {
    let world = World::new();
    let (client, server) = (world.pod("client", "node-a"), world.pod("server", "node-b"));
    let _echo = server.serve(8080, tcp::echo).unwrap();
    let target = server.at(8080);
    eventually(PATIENCE, || world.is_tunnelled(&client, target));

    for leaver in [&client, &server] {
        let inside = Transfer::start(client.connect(target).unwrap());
        inside.wait_progress();
        leaver.unenroll().unwrap();
        eventually(PATIENCE, || !world.is_tunnelled(&client, target));
        inside.wait_progress();

        // Back within the minute in which its HBONE port is still served.
        let outside = Transfer::start(client.connect(target).unwrap());
        outside.wait_progress();
        leaver.enroll().unwrap();
        eventually(PATIENCE, || world.is_tunnelled(&client, target));
        inside.wait_progress();
        outside.wait_progress();
        inside.finish();
        outside.finish();
    }
    let failures: Vec<_> = [&world.a, &world.b]
        .iter()
        .flat_map(|agent| agent.access_log())
        // Attempts while the two agents did not agree yet carried nothing.
        .filter(|record| !record.is_ok() && record.bytes_sent() > 0)
        .collect();
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
fn a_transfer_goes_on_when_its_pods_have_left_for_good_and_come_back_anew() {
    let world = World::with(&["--leave-period", "300ms"]);
    let (client, server) = (world.pod("client", "node-a"), world.pod("server", "node-b"));
    let _echo = server.serve(8080, tcp::echo).unwrap();
    let target = server.at(8080);
    eventually(PATIENCE, || world.is_tunnelled(&client, target));
    let hbone = SocketAddr::new(server.ip(), 15008);
    let outsider = world.mesh.pod("outsider").on("node-a").start().unwrap();
    assert!(outsider.connect(hbone).is_ok(), "the control: the agent listens for the server");

    let first = Transfer::start(client.connect(target).unwrap());
    for (leaver, agent) in [(&client, &world.a), (&server, &world.b)] {
        leaver.unenroll().unwrap();
        eventually(PATIENCE, || agent.logs().contains("the pod is out of the mesh"));
        first.wait_progress();
    }
    eventually(PATIENCE, || outsider.connect(hbone).is_err());
    assert!(!world.is_tunnelled(&client, target));
    for back in [&client, &server] {
        back.enroll().unwrap();
    }
    eventually(PATIENCE, || world.is_tunnelled(&client, target));
    first.wait_progress();
    first.finish();
}

#[test]
fn a_pod_that_joins_in_mid_transfer_keeps_what_it_has() {
    let world = World::new();
    let client = world.mesh.pod("client").on("node-a").start().unwrap();
    let server = world.mesh.pod("server").on("node-b").start().unwrap();
    let _echo = server.serve(8080, tcp::echo).unwrap();
    let target = server.at(8080);
    let transfer = Transfer::start(client.connect(target).unwrap());
    transfer.wait_progress();
    assert!(!world.is_tunnelled(&client, target));

    server.enroll().unwrap();
    eventually(PATIENCE, || gauge(&world.b, "culvert_pods_enrolled") == 1.0);
    transfer.wait_progress();
    assert!(!world.is_tunnelled(&client, target), "the client is not in the mesh");
    client.enroll().unwrap();
    eventually(PATIENCE, || world.is_tunnelled(&client, target));
    transfer.wait_progress();
    transfer.finish();
}

#[test]
fn a_pod_that_is_deleted_takes_its_connections_along() {
    let world = World::new();
    let (client, server) = (world.pod("client", "node-a"), world.pod("server", "node-b"));
    let _echo = server.serve(8080, tcp::echo).unwrap();
    eventually(PATIENCE, || world.is_tunnelled(&client, server.at(8080)));
    let mut stream = client.connect(server.at(8080)).unwrap();
    tcp::ping(&mut stream, "hello").unwrap();
    server.delete().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(tcp::read(&mut stream, &mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_pod_whose_object_is_replaced_never_speaks_plaintext() {
    let world = World::new();
    let (client, server) = (world.pod("client", "node-a"), world.pod("server", "node-b"));
    let _echo = server.serve(8080, tcp::echo).unwrap();
    let target = server.at(8080);
    world.wait_enrolled(&[&client, &server]);
    let (ports, stop) = (Mutex::new(BTreeSet::new()), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let Ok(mut stream) = client.connect(target) else { continue };
                if tcp::ping(&mut stream, "by which way?").is_ok() {
                    ports.lock().unwrap().insert(stream.local_addr().unwrap().port());
                }
            }
        });
        for uid in ["second", "third", "fourth", "fifth"] {
            // The object is another, the network namespace and the address are the same.
            client.update(|pod| uid.clone_into(&mut pod.uid)).unwrap();
            eventually(PATIENCE, || world.a.logs().matches("the pod is out of the mesh").count() > 0);
            let before = ports.lock().unwrap().len();
            eventually(PATIENCE, || ports.lock().unwrap().len() > before + 20);
        }
        stop.store(true, Ordering::Relaxed);
    });
    // What succeeded without the agent went out in plaintext, and the agent knows nothing of it.
    eventually(PATIENCE, || {
        let log = world.a.access_log();
        let known: BTreeSet<u16> = log.iter().filter_map(|record| Some(record.source()?.port())).collect();
        let unknown: Vec<_> = ports.lock().unwrap().difference(&known).copied().collect();
        if unknown.is_empty() { Ok(()) } else { Err(format!("not tunnelled: {unknown:?}")) }
    });
}

#[test]
fn a_namespace_made_anew_under_its_old_name_is_enrolled() {
    let world = World::new();
    let (client, server) = (world.pod("client", "node-a"), world.pod("server", "node-b"));
    let _echo = server.serve(8080, tcp::echo).unwrap();
    world.wait_enrolled(&[&client, &server]);
    // A name of its own for the namespace, which then leads to another one.
    let name = world.mesh.directory().join("sandbox");
    let own = client.manifest().netns.unwrap();
    let others = server.manifest().netns.unwrap();
    std::os::unix::fs::symlink(&others, &name).unwrap();
    client.update(|pod| pod.netns = Some(name.clone())).unwrap();
    eventually(PATIENCE, || readiness(&world.a).contains("default/client is not enrolled"));
    let enrolments = || world.a.logs().matches("the pod is in the mesh").count();
    let before = enrolments();
    let next = world.mesh.directory().join("sandbox.next");
    std::os::unix::fs::symlink(own, &next).unwrap();
    std::fs::rename(next, &name).unwrap();
    eventually(PATIENCE, || world.is_tunnelled(&client, server.at(8080)));
    eventually(PATIENCE, || enrolments() > before);
    let before = enrolments();
    std::fs::remove_file(&name).unwrap();
    std::os::unix::fs::symlink(&others, &name).unwrap();
    eventually(PATIENCE, || readiness(&world.a).contains("default/client is not enrolled"));
    assert_eq!(enrolments(), before);
}

#[test]
fn a_change_of_the_manifests_takes_effect_within_a_second() {
    let world = World::new();
    let pod = world.pod("client", "node-a");
    let enrolled = || gauge(&world.a, "culvert_pods_enrolled");
    eventually(PATIENCE, || enrolled() == 1.0);
    let change = |wanted: f64| {
        let start = Instant::now();
        if wanted == 0.0 {
            pod.unenroll().unwrap();
        } else {
            pod.enroll().unwrap();
        }
        eventually(PATIENCE, || enrolled() == wanted);
        start.elapsed()
    };
    // The quickest of some, since the machine may be busy with something else.
    eventually(PATIENCE, || {
        let quickest = change(0.0).min(change(1.0));
        println!("the quicker change of two took {quickest:?}");
        quickest < Duration::from_secs(1)
    });
}

#[test]
fn a_broken_manifest_is_reported_with_file_and_line_and_changes_nothing_else() {
    let world = World::new();
    let (client, server) = (world.pod("client", "node-a"), world.pod("server", "node-b"));
    let _echo = server.serve(8080, tcp::echo).unwrap();
    eventually(PATIENCE, || world.is_tunnelled(&client, server.at(8080)));
    assert_eq!(gauge(&world.a, "culvert_manifest_problems"), 0.0);

    // One of its own that is no YAML on line 4, and a pod's that is no YAML any more.
    let broken = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: }{\nspec: {}\n";
    let file = format!("pod-default-{}.yaml", server.name());
    let good = std::fs::read_to_string(world.mesh.manifests().join(&file)).unwrap();
    world.mesh.apply("broken.yaml", broken).unwrap();
    world.mesh.apply(&file, &good.replace("spec:", "spec: }{")).unwrap();
    // Of another file, later: it must take effect beside them.
    let late = world.pod("late", "node-b");
    let _late_echo = late.serve(8080, tcp::echo).unwrap();

    for agent in [&world.a, &world.b] {
        eventually(PATIENCE, || gauge(agent, "culvert_manifest_problems") == 2.0);
        agent.ready().unwrap();
        for (file, place) in [("broken.yaml", "broken.yaml:4"), (&*file, &*format!("{file}:"))] {
            eventually(PATIENCE, || match readiness(agent) {
                text if text.contains(place) => Ok(()),
                text => Err(format!("{place} in {text}")),
            });
            let names = |line: &str| line.contains(file) && line.contains("\"line\":");
            eventually(PATIENCE, || agent.logs().lines().any(names));
        }
    }
    eventually(PATIENCE, || world.is_tunnelled(&client, late.at(8080)));
    // What the file said last holds.
    eventually(PATIENCE, || world.is_tunnelled(&client, server.at(8080)));

    world.mesh.delete("broken.yaml").unwrap();
    world.mesh.apply(&file, &good).unwrap();
    for agent in [&world.a, &world.b] {
        eventually(PATIENCE, || gauge(agent, "culvert_manifest_problems") == 0.0);
        eventually(PATIENCE, || match readiness(agent) {
            text if text.contains(".yaml") => Err(text),
            _ => Ok(()),
        });
    }
    eventually(PATIENCE, || world.is_tunnelled(&client, server.at(8080)));
}

#[test]
fn a_pod_without_its_namespace_is_reported_and_enrolled_once_that_is_repaired() {
    let world = World::new();
    let (client, other) = (world.pod("client", "node-a"), world.pod("other", "node-b"));
    world.wait_enrolled(&[&client, &other]);
    for (name, wrong, what) in [
        ("without", None, "its sandbox is not found"),
        ("nowhere", Some("/run/netns/no-such-namespace".into()), "no-such-namespace"),
        ("elsewhere", Some(other.netns().path().to_owned()), "does not hold the pod's address"),
        ("nothing", Some("/etc/hostname".into()), "not a network namespace"),
    ] {
        let pod = world.mesh.pod(name).on("node-b").start().unwrap();
        let right = pod.manifest().netns;
        pod.update(|pod| {
            pod.netns = wrong;
            pod.labels.insert(lab::manifest::MESH_LABEL.to_owned(), "enabled".to_owned());
        })
        .unwrap();
        eventually(PATIENCE, || {
            let text = readiness(&world.b);
            let about = format!("pod default/{name} is not enrolled");
            let mut lines = text.lines().filter(|line| line.contains(&about));
            let said = lines.any(|line| line.contains(what) && line.contains("culvert.dev/netns"));
            if said { Ok(()) } else { Err(text) }
        });
        eventually(PATIENCE, || world.b.logs().contains(&format!("default/{name}")));
        eventually(PATIENCE, || gauge(&world.b, "culvert_pods_not_enrolled") == 1.0);
        world.b.ready().unwrap();

        pod.update(|pod| pod.netns = right).unwrap();
        let _echo = pod.serve(8080, tcp::echo).unwrap();
        eventually(PATIENCE, || world.is_tunnelled(&client, pod.at(8080)));
        eventually(PATIENCE, || gauge(&world.b, "culvert_pods_not_enrolled") == 0.0);
        eventually(PATIENCE, || match readiness(&world.b) {
            text if text.contains("not enrolled") => Err(text),
            _ => Ok(()),
        });
    }
}

#[test]
fn a_namespace_that_gets_its_address_late_is_tried_until_it_has_it() {
    let world = World::new();
    let client = world.pod("client", "node-a");
    let pod = world.mesh.pod("late").on("node-b").ipv4().start().unwrap();
    let address = pod.ip();
    pod.sh(&format!("ip address del {address}/32 dev eth0")).unwrap();
    pod.enroll().unwrap();
    eventually(PATIENCE, || readiness(&world.b).contains("does not hold the pod's address"));
    pod.sh(&format!(
        "ip address add {address}/32 dev eth0
         ip neigh replace 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent
         ip route replace default via 169.254.1.1 dev eth0 onlink"
    ))
    .unwrap();
    let _echo = pod.serve(8080, tcp::echo).unwrap();
    eventually(PATIENCE, || world.is_tunnelled(&client, pod.at(8080)));
}

/// Answers with the pod's name.
fn name_server(pod: &Pod, port: u16) -> tcp::Server {
    let name = pod.name();
    pod.serve(port, move |mut stream: TcpStream| {
        let _ = stream.write_all(name.as_bytes());
    })
    .unwrap()
}

/// Which pod answers; an error is that of the connection.
fn answer(client: &Pod, target: SocketAddr) -> std::io::Result<String> {
    let mut stream = client.connect(target)?;
    stream.set_read_timeout(Some(tcp::STALL))?;
    let mut name = String::new();
    stream.read_to_string(&mut name)?;
    Ok(name)
}

/// Which pods answer in some twenty connections: of two, one is missed by chance once in a million runs.
fn answers(client: &Pod, target: SocketAddr) -> BTreeSet<String> {
    (0..20).map(|_| answer(client, target).unwrap_or_else(|error| format!("error: {error}"))).collect()
}

fn settles_on(client: &Pod, target: SocketAddr, expected: &[&str]) {
    let expected: BTreeSet<_> = expected.iter().map(|name| (*name).to_owned()).collect();
    eventually(PATIENCE, || {
        let found = answers(client, target);
        if found == expected { Ok(()) } else { Err(format!("{target} leads to {found:?}, not {expected:?}")) }
    });
}

/// Waits until a connect is refused, and is told so at once: before the kernel sends a lost SYN again, after a second.
fn refused_at_once(client: &Pod, target: SocketAddr) {
    eventually(PATIENCE, || {
        let start = Instant::now();
        match client.connect(target) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            other => return Err(format!("{target}: {other:?}")),
        }
        let took = start.elapsed();
        if took < Duration::from_secs(1) { Ok(()) } else { Err(format!("{target}: refused after {took:?}")) }
    });
}

#[test]
fn services_lead_where_kubernetes_says() {
    let world = World::new();
    let mesh = &world.mesh;
    let client = world.pod("client", "node-a");
    let near = mesh.pod("near").on("node-a").enrolled().label("app", "web").port("web", 8080);
    let near = near.start().unwrap();
    let far = mesh.pod("far").on("node-b").enrolled().label("app", "web").port("web", 9090);
    let far = far.start().unwrap();
    let _servers: Vec<_> = [(&near, 8080), (&far, 8080), (&far, 9090), (&near, 7070), (&far, 7070)]
        .map(|(pod, port)| name_server(pod, port))
        .into();
    let service = |name: &str| mesh.service(name).select("app", "web");

    let numeric = service("numeric").port(80, 7070).apply().unwrap();
    let named = service("named").named_port("http", 80, "web").apply().unwrap();
    let affine = service("affine").port(80, 7070).session_affinity().apply().unwrap();
    let eager = service("eager").port(80, 7070).publish_not_ready().apply().unwrap();
    let close = service("close").port(80, 7070).traffic_distribution("PreferClose").apply().unwrap();
    let same = service("same").port(80, 7070).traffic_distribution("PreferSameNode").apply().unwrap();
    let local = service("local").port(80, 7070).local_only().apply().unwrap();
    service("headless").port(7070, 7070).headless().apply().unwrap();
    let nobody = mesh.service("nobody").select("app", "nothing").port(80, 7070).apply().unwrap();

    for both in [&numeric, &named, &eager] {
        settles_on(&client, both.address(80), &["far", "near"]);
        settles_on(&client, both.address_v6(80), &["far", "near"]);
    }
    for near_only in [&close, &same, &local] {
        settles_on(&client, near_only.address(80), &["near"]);
    }
    assert_eq!(answers(&client, affine.address(80)).len(), 1);
    // A headless service has no address: its clients connect to the pods.
    assert_eq!(answer(&client, far.at(7070)).unwrap(), "far");
    refused_at_once(&client, nobody.address(80));
    // A port that the service does not have is no way to the pods.
    assert!(answer(&client, numeric.address(7070)).is_err());
    let record = eventually(PATIENCE, || {
        world.a.access_log().into_iter().find(|record| record.destination() == Some(numeric.address(7070)))
    });
    assert_eq!(record.reason().as_deref(), Some("no_such_port"), "{record:?}");

    near.set_ready(false).unwrap();
    for far_only in [&numeric, &named, &affine, &close, &same] {
        settles_on(&client, far_only.address(80), &["far"]);
    }
    settles_on(&client, eager.address(80), &["far", "near"]);
    refused_at_once(&client, local.address(80));

    far.set_ready(false).unwrap();
    for empty in [&numeric, &named, &affine, &close, &same, &local] {
        refused_at_once(&client, empty.address(80));
    }
    settles_on(&client, eager.address(80), &["far", "near"]);
    assert_eq!(answer(&client, near.at(7070)).unwrap(), "near", "the pod itself is reached all the same");

    far.set_ready(true).unwrap();
    settles_on(&client, numeric.address(80), &["far"]);
}

#[test]
fn a_hundred_pods_join_and_leave_at_once() {
    const PODS: usize = 100;
    let world = World::new();
    let server = world.pod("server", "node-b");
    let _echo = server.serve(8080, tcp::echo).unwrap();
    let pods: Vec<_> = (0..PODS)
        .map(|number| world.mesh.pod(&format!("p{number}")).namespace("many").on("node-a").start().unwrap())
        .collect();
    let enrolled =
        |count: usize| eventually(3 * PATIENCE, || gauge(&world.a, "culvert_pods_enrolled") == count as f64);

    let start = Instant::now();
    world.mesh.enroll_namespace("many").unwrap();
    enrolled(PODS);
    println!("{PODS} pods joined in {:?}", start.elapsed());
    for pod in &pods {
        eventually(PATIENCE, || world.is_tunnelled(pod, server.at(8080)));
    }
    let start = Instant::now();
    world.mesh.unenroll_namespace("many").unwrap();
    enrolled(0);
    println!("{PODS} pods left in {:?}", start.elapsed());
    for pod in [&pods[0], &pods[PODS - 1]] {
        eventually(PATIENCE, || !world.is_tunnelled(pod, server.at(8080)));
    }

    world.mesh.enroll_namespace("many").unwrap();
    enrolled(PODS);
    let descriptors = world.a.fd_count();
    for pod in &pods {
        pod.delete().unwrap();
    }
    enrolled(0);
    eventually(PATIENCE, || world.a.fd_count() + 4 * PODS < descriptors);
}
