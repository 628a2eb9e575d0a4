//! A storm of policy: a thousand changes while five hundred connections run, and no wrong verdict.
//!
//! What "no wrong verdict" means: sets of policies follow one another. An attempt to connect that begins when set `m` is
//! known to be in force, and ends when `n` is the last that was written, must have the verdict of one of `m..=n`. A
//! connection that breaks must be forbidden by one of the sets between that in force when it was attempted and the last
//! that was written. So what all sets permit never breaks and what all forbid never opens. After the storm exactly what
//! the last set permits is alive.

use std::{
    net::{SocketAddr, TcpStream},
    ops::RangeInclusive,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use lab::{PATIENCE, Pod, eventually, tcp};

use crate::{
    objects::{Policy, allow, mode, port_mode},
    world::{OTHER_PORT, PORT, World, works},
};

const CHANGES: usize = 1000;

/// After so many the storm waits until they are in force, so that what must be is known again.
const BATCH: usize = 50;

/// Somewhat longer than the agents gather changes for, so that most sets are in force for a while.
const PACE: Duration = Duration::from_millis(25);

/// A worker's pause between two rounds of its connections.
const ROUND: Duration = Duration::from_millis(20);

/// How many connections a worker opens in one round.
const AT_ONCE: usize = 20;

/// Who connects, and where to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Class {
    /// By mutual TLS, in every set.
    Tunnel,
    /// In plaintext, in every set.
    Plaintext,
    /// By mutual TLS, in no set.
    NoTunnel,
    /// In plaintext, in no set.
    NoPlaintext,
    /// By mutual TLS, in some sets.
    SomeTunnel,
    /// In plaintext, in some sets.
    SomePlaintext,
    /// In plaintext to a port that is STRICT in some sets.
    SomeStrict,
    /// In plaintext to a pod that no policy looks at in some sets, so that it bypasses the agent, and that is STRICT in
    /// the others.
    SomeDirect,
}

/// How many connections each keeps open, or tries to.
const CLASSES: [(Class, usize); 8] = [
    (Class::Tunnel, 120),
    (Class::Plaintext, 120),
    (Class::SomeTunnel, 80),
    (Class::SomePlaintext, 80),
    (Class::SomeStrict, 50),
    (Class::SomeDirect, 50),
    (Class::NoTunnel, 1),
    (Class::NoPlaintext, 1),
];

/// Whether the changing clients are permitted: throughout a batch, in none of it, or by turns.
fn some(set: usize) -> bool {
    match set / BATCH % 3 {
        0 => true,
        1 => false,
        _ => set.is_multiple_of(2),
    }
}

/// Whether the other port is STRICT.
fn strict(set: usize) -> bool {
    (set / 7).is_multiple_of(2)
}

/// Whether the other pod is STRICT: throughout every other batch, so that its connections live for a while.
fn closed(set: usize) -> bool {
    set / BATCH % 2 == 1
}

fn permits(set: usize, class: Class) -> bool {
    match class {
        Class::Tunnel | Class::Plaintext => true,
        Class::NoTunnel | Class::NoPlaintext => false,
        Class::SomeTunnel => some(set),
        // Out of step with the tunnels.
        Class::SomePlaintext => some(set + BATCH),
        Class::SomeStrict => some(set + BATCH) && !strict(set),
        Class::SomeDirect => !closed(set),
    }
}

/// Which sets may be in force.
#[derive(Default)]
struct Progress {
    in_force: AtomicUsize,
    written: AtomicUsize,
    over: AtomicBool,
}

impl Progress {
    fn since(&self, begin: usize) -> RangeInclusive<usize> {
        begin..=self.written.load(Ordering::SeqCst)
    }

    fn now(&self) -> usize {
        self.in_force.load(Ordering::SeqCst)
    }
}

struct Clients<'a> {
    world: &'a World,
    /// In the mesh; permitted in some sets.
    some: Pod,
    /// Outside the mesh; permitted in some sets.
    some_plaintext: Pod,
    /// In the mesh, on the server's node, of another namespace than the server's policies.
    direct: Pod,
}

impl Clients<'_> {
    fn of(&self, class: Class) -> (&Pod, SocketAddr) {
        let world = self.world;
        let port = if class == Class::SomeStrict { OTHER_PORT } else { PORT };
        let pod = match class {
            Class::Tunnel => &world.client,
            Class::Plaintext => &world.neighbour,
            Class::NoTunnel => &world.other,
            Class::NoPlaintext => &world.stranger,
            Class::SomeTunnel => &self.some,
            Class::SomePlaintext | Class::SomeStrict | Class::SomeDirect => &self.some_plaintext,
        };
        let server = if class == Class::SomeDirect { &self.direct } else { &world.server };
        (pod, server.at_v4(port))
    }

    fn policies(&self, set: usize) -> [Policy; 3] {
        let mut principals = vec!["\"cluster.local/ns/front/sa/client\""];
        if permits(set, Class::SomeTunnel) {
            principals.push("\"cluster.local/ns/flux/sa/some\"");
        }
        let mut addresses = vec![self.world.neighbour.ipv4().to_string()];
        if permits(set, Class::SomePlaintext) {
            addresses.push(self.some_plaintext.ipv4().to_string());
        }
        let rules = format!(
            "[{{from: [{{source: {{principals: [{}]}}}}, {{source: {{ipBlocks: [{}]}}}}]}}]",
            principals.join(", "),
            addresses.join(", ")
        );
        let at_port = if strict(set) { "STRICT" } else { "PERMISSIVE" };
        [
            allow(&format!("allow-{set}"), &rules),
            port_mode(&format!("mode-{set}"), "PERMISSIVE", OTHER_PORT, at_port),
            mode(&format!("direct-{set}"), if closed(set) { "STRICT" } else { "PERMISSIVE" }).of("direct"),
        ]
    }
}

#[test]
fn no_verdict_is_wrong_while_a_thousand_changes_run() {
    let world = World::start();
    let _servers = [PORT, OTHER_PORT].map(|port| world.server.serve(port, tcp::echo).unwrap());
    let some = world.mesh.pod("some").namespace("flux").service_account("some").on("node-a").enrolled();
    let some_plaintext = world.mesh.pod("some-plaintext").on("node-a").start().unwrap();
    let direct = world.mesh.pod("direct").namespace("direct").on("node-b").enrolled().start().unwrap();
    let _direct_server = direct.serve(PORT, tcp::echo).unwrap();
    let clients = Clients { world: &world, some: some.start().unwrap(), some_plaintext, direct };
    // The first set is in force before anybody connects.
    world.apply(&clients.policies(0));
    eventually(PATIENCE, || works(&clients.some, world.server.at(PORT)));
    eventually(PATIENCE, || works(&world.client, clients.direct.at(PORT)));
    // Control: what comes to it bypasses the agent.
    works(&clients.some_plaintext, clients.direct.at_v4(PORT)).unwrap();
    assert_eq!(world.lines_of(&clients.some_plaintext).len(), 0);
    let progress = Progress::default();
    let fates = thread::scope(|scope| {
        let start = |(class, count)| {
            let worker =
                Worker { class, count, clients: &clients, progress: &progress, fates: Fates::default() };
            scope.spawn(move || (class, worker.run()))
        };
        let workers: Vec<_> = CLASSES.into_iter().map(start).collect();
        for set in 1..=CHANGES {
            progress.written.store(set, Ordering::SeqCst);
            world.write(&clients.policies(set));
            thread::sleep(PACE);
            if set % BATCH == 0 {
                world.wait_for_policies(&clients.policies(set));
                progress.in_force.store(set, Ordering::SeqCst);
            }
        }
        progress.over.store(true, Ordering::SeqCst);
        let join = |worker: thread::ScopedJoinHandle<'_, _>| worker.join().expect("a verdict was wrong");
        workers.into_iter().map(join).collect::<Vec<_>>()
    });
    for (class, fates) in fates {
        fates.check(class);
        check_after(&clients, class, fates.held);
    }
}

/// After the storm the last set alone decides on what is alive and what can be opened.
fn check_after(clients: &Clients<'_>, class: Class, held: Vec<Held>) {
    let (pod, target) = clients.of(class);
    if permits(CHANGES, class) {
        let open = held.len();
        for mut held in held {
            tcp::ping(&mut held.stream, "after").unwrap_or_else(|error| panic!("{class:?}: {error}"));
        }
        assert!(open > 0, "{class:?}: nothing is left to be alive");
        works(pod, target).unwrap_or_else(|error| panic!("{class:?}: {error}"));
    } else {
        for mut held in held {
            let lost = tcp::ping(&mut held.stream, "after").is_err();
            assert!(lost || !still_alive(&mut held.stream), "{class:?}: alive, and forbidden");
        }
        works(pod, target).expect_err("it opens, and is forbidden");
    }
}

/// Whether a connection goes on for as long as a test is patient.
fn still_alive(stream: &mut TcpStream) -> bool {
    lab::try_eventually(PATIENCE, || tcp::ping(stream, "after").is_err()).is_err()
}

struct Held {
    stream: TcpStream,
    /// The set that was in force when it was attempted.
    since: usize,
}

/// What became of a class's connections.
#[derive(Default)]
struct Fates {
    held: Vec<Held>,
    opened: usize,
    refused: usize,
    broken: usize,
}

impl Fates {
    /// Nothing is shown by a storm in which nothing happened.
    fn check(&self, class: Class) {
        let Self { held, opened, refused, broken } = self;
        println!("{class:?}: {} alive, {opened} opened, {refused} refused, {broken} broken", held.len());
        match class {
            Class::Tunnel | Class::Plaintext => assert!(*opened > 0 && *refused == 0 && *broken == 0),
            Class::NoTunnel | Class::NoPlaintext => assert!(*opened == 0 && *refused > 0),
            Class::SomeTunnel | Class::SomePlaintext | Class::SomeStrict | Class::SomeDirect => {
                assert!(*opened > 0 && *refused > 0 && *broken > 0);
            }
        }
    }
}

struct Worker<'a> {
    class: Class,
    count: usize,
    clients: &'a Clients<'a>,
    progress: &'a Progress,
    fates: Fates,
}

impl Worker<'_> {
    /// Keeps its connections open, and checks each of their fates.
    fn run(mut self) -> Fates {
        loop {
            let over = self.progress.over.load(Ordering::SeqCst);
            self.round();
            if over {
                return self.fates;
            }
            thread::sleep(ROUND);
        }
    }

    fn round(&mut self) {
        let mut held = std::mem::take(&mut self.fates.held);
        for _ in held.len()..self.count.min(held.len() + AT_ONCE) {
            match self.attempt() {
                Some(one) => {
                    self.fates.opened += 1;
                    held.push(one);
                }
                None => self.fates.refused += 1,
            }
        }
        let before = held.len();
        held.retain_mut(|held| match tcp::ping(&mut held.stream, "storm") {
            Ok(()) => true,
            Err(error) => {
                self.check(held.since, false, &format!("a connection broke: {error}"));
                false
            }
        });
        self.fates.broken += before - held.len();
        self.fates.held = held;
    }

    fn attempt(&self) -> Option<Held> {
        let (pod, target) = self.clients.of(self.class);
        let since = self.progress.now();
        let attempt = pod.connect(target).and_then(|mut stream| {
            tcp::ping(&mut stream, "hello")?;
            Ok(stream)
        });
        match attempt {
            Ok(stream) => {
                self.check(since, true, "a connection opened");
                Some(Held { stream, since })
            }
            Err(error) => {
                self.check(since, false, &format!("a connection was refused: {error}"));
                None
            }
        }
    }

    /// One of the sets that may have been in force since `since` must be of this verdict.
    fn check(&self, since: usize, permitted: bool, what: &str) {
        let mut sets = self.progress.since(since);
        let range = sets.clone();
        assert!(
            sets.any(|set| permits(set, self.class) == permitted),
            "{:?}: {what}, against all of the sets {range:?}",
            self.class
        );
    }
}
