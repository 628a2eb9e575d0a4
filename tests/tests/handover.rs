//! An agent takes over from another one of its node, as in a rolling update: no connection is refused, and none ends.

use std::{
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use lab::{Agent, Mesh, PATIENCE, Pod, eventually, tcp};

const PORT: u16 = 8080;

struct World {
    mesh: Mesh,
    client: Pod,
    server: Pod,
}

impl World {
    fn new() -> Self {
        let mesh = Mesh::new().unwrap();
        let client = mesh.pod("client").on("node-a").enrolled().start().unwrap();
        let server = mesh.pod("server").on("node-b").enrolled().start().unwrap();
        Self { mesh, client, server }
    }

    /// Starts an agent that takes its node over where there is one already.
    fn agent(&self, node: &str, instance: &str) -> Agent {
        self.mesh.agent(node).arg("--take-over").arg("--instance").arg(instance).start().unwrap()
    }
}

/// Waits until this very agent is ready: another one of the node may answer for a while.
fn wait_ready(agent: &Agent, instance: &str) {
    eventually(PATIENCE, || {
        let ready = agent.cli(&["ready", "--instance", instance]).unwrap();
        ready
            .status
            .success()
            .then_some(())
            .ok_or_else(|| String::from_utf8_lossy(&ready.stdout).into_owned())
    });
}

/// Opens one connection after the other, each of one round trip, until told to stop; returns how many there were.
fn churn(client: &Pod, target: SocketAddr, stop: &AtomicBool, opened: &AtomicUsize) {
    while !stop.load(Ordering::Relaxed) {
        let mut stream = client.connect(target).unwrap_or_else(|error| panic!("{target}: {error}"));
        tcp::ping(&mut stream, "hello").unwrap_or_else(|error| panic!("{target}: {error}"));
        opened.fetch_add(1, Ordering::Relaxed);
    }
}

/// Waits until some more connections have been made.
fn some_more(opened: &AtomicUsize) {
    let enough = opened.load(Ordering::Relaxed) + 50;
    eventually(PATIENCE, || opened.load(Ordering::Relaxed) >= enough);
}

#[test]
fn agents_are_replaced_under_load_and_no_connection_fails() {
    let world = World::new();
    let World { client, server, .. } = &world;
    let _echo = server.serve(PORT, tcp::echo).unwrap();
    let mut old = [("node-a", world.agent("node-a", "a0")), ("node-b", world.agent("node-b", "b0"))];
    wait_ready(&old[0].1, "a0");
    wait_ready(&old[1].1, "b0");
    let open = || -> TcpStream {
        eventually(PATIENCE, || {
            let mut stream = client.connect(server.at(PORT))?;
            tcp::ping(&mut stream, "hello").map(|()| stream)
        })
    };
    let mut lasting = vec![open()];
    let (stop, opened) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        // However this ends, the clients do too.
        let _stopped = Stop(&stop);
        for target in [server.at_v4(PORT), server.at_v6(PORT)] {
            let (stop, opened) = (&stop, &opened);
            scope.spawn(move || churn(client, target, stop, opened));
        }
        some_more(&opened);
        for round in 1..=3 {
            for (node, agent) in &mut old {
                let instance = format!("{node}-{round}");
                let new = world.agent(node, &instance);
                wait_ready(&new, &instance);
                // What the old one carries goes on beside what the new one takes.
                for stream in &mut lasting {
                    tcp::ping(stream, "still there").unwrap();
                }
                lasting.push(open());
                some_more(&opened);
                assert!(agent.is_running(), "nobody has ended it");
                let replaced = std::mem::replace(agent, new);
                replaced.begin_terminate();
                some_more(&opened);
                lasting.clear();
                assert!(replaced.wait_end(2 * PATIENCE).unwrap().success(), "{}", replaced.logs());
                agent.get_private("/healthz/live").expect("the socket is the new one's");
                some_more(&opened);
            }
        }
    });
    println!("{} connections", opened.load(Ordering::Relaxed));
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_successor_that_ends_at_once_leaves_an_agent_that_ends_and_lets_the_next_one_in() {
    let world = World::new();
    let _echo = world.server.serve(PORT, tcp::echo).unwrap();
    let (old, b) = (world.agent("node-a", "old"), world.agent("node-b", "b"));
    wait_ready(&old, "old");
    wait_ready(&b, "b");
    let new = world.agent("node-a", "new");
    wait_ready(&new, "new");
    new.kill9();
    assert!(!old.wait_end(PATIENCE).unwrap().success(), "it has no node, and says so by its end");
    assert!(old.logs().contains("start an agent again"), "{}", old.logs());
    let next = world.agent("node-a", "next");
    wait_ready(&next, "next");
    eventually(PATIENCE, || {
        let mut stream = world.client.connect(world.server.at(PORT))?;
        tcp::ping(&mut stream, "hello")
    });
}

#[test]
fn a_policy_that_changes_after_the_handover_holds_for_what_the_old_agent_carries() {
    let world = World::new();
    let _echo = world.server.serve(PORT, tcp::echo).unwrap();
    let (a, old) = (world.agent("node-a", "a"), world.agent("node-b", "old"));
    wait_ready(&a, "a");
    wait_ready(&old, "old");
    let mut stream = eventually(PATIENCE, || {
        let mut stream = world.client.connect(world.server.at(PORT))?;
        tcp::ping(&mut stream, "hello").map(|()| stream)
    });
    let new = world.agent("node-b", "new");
    wait_ready(&new, "new");
    tcp::ping(&mut stream, "still there").unwrap();
    world
        .mesh
        .apply(
            "policy.yaml",
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody, namespace: default}\nspec: {}\n",
        )
        .unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let end = tcp::read(&mut stream, &mut [0]).expect_err("a cut read as an end");
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(old.is_running());
}
