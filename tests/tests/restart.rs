//! What an agent's end does to connections: killed, ended in good order, ended at the end of its patience, and started
//! once more.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use lab::{Agent, Mesh, PATIENCE, Pod, eventually, tcp, try_eventually};

const MARKER: &str = "what-nobody-on-the-wire-may-read";

/// A client on `node-a`, a server on `node-b`, both in the mesh, and an agent on each node.
struct World {
    mesh: Mesh,
    client: Pod,
    server: Pod,
    a: Agent,
    b: Agent,
}

impl World {
    fn new(agent_args: &[&str]) -> Self {
        let mesh = Mesh::new().unwrap();
        let client = mesh.pod("client").on("node-a").enrolled().start().unwrap();
        let server = mesh.pod("server").on("node-b").enrolled().start().unwrap();
        let start = |node| mesh.agent(node).args(agent_args).start().unwrap();
        let (a, b) = (start("node-a"), start("node-b"));
        a.wait_ready().unwrap();
        b.wait_ready().unwrap();
        Self { mesh, client, server, a, b }
    }

    /// A connection to the server's echo that has carried bytes; waits until there can be one.
    fn connected(&self, port: u16) -> TcpStream {
        eventually(PATIENCE, || -> io::Result<TcpStream> {
            let mut stream = self.client.connect(self.server.at(port))?;
            tcp::ping(&mut stream, "hello")?;
            Ok(stream)
        })
    }
}

/// How a connection ended that is read until it does.
fn end_of(stream: &mut TcpStream) -> Result<(), ErrorKind> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match tcp::read(stream, &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error.kind()),
        }
    }
}

#[test]
fn a_killed_agent_leaves_no_way_in_and_a_restart_needs_nothing_of_the_pods() {
    let world = World::new(&[]);
    let World { mesh, client, server, a, .. } = &world;
    let outsider = mesh.pod("outsider").on("node-b").start().unwrap();
    let _echoes = [server.serve(8080, tcp::echo).unwrap(), outsider.serve(8080, tcp::echo).unwrap()];
    let mut outside = client.connect(outsider.at(8080)).unwrap();
    tcp::ping(&mut outside, "before").unwrap();
    let mut inside = world.connected(8080);

    let mut recoveries: Vec<Duration> = Vec::new();
    // Three times, and on until one was quick, since the machine may be busy with something else.
    let quick = |recoveries: &[Duration]| recoveries.iter().any(|took| *took < Duration::from_secs(1));
    while recoveries.len() < 3 || !quick(&recoveries) && recoveries.len() < 10 {
        let capture = mesh.capture_wire().unwrap();
        a.kill9();
        assert_eq!(end_of(&mut inside), Err(ErrorKind::ConnectionReset));
        for family in [server.at_v4(8080), server.at_v6(8080)] {
            // At once: before the kernel sends a lost SYN again. More than once, since the machine may be busy with something else.
            eventually(PATIENCE, || {
                let start = Instant::now();
                let refused = client.connect(family).and_then(|mut stream| tcp::ping(&mut stream, MARKER));
                assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
                start.elapsed() < Duration::from_secs(1)
            });
        }
        tcp::ping(&mut outside, MARKER).unwrap();
        tcp::exchange(client.connect(outsider.at(8080)).unwrap(), 1 << 20).unwrap();
        let captured = capture.stop().unwrap();
        assert!(captured.contains(MARKER), "the control: what goes outside the mesh is seen");
        let to_server = |flow: &&lab::Flow| {
            [flow.source.ip(), flow.destination.ip()]
                .iter()
                .any(|ip| *ip == server.ipv4() || *ip == server.ipv6())
        };
        let plain = captured.flows_of_port(8080).filter(to_server).count();
        assert_eq!(plain, 0, "not one packet goes to the server's port without an agent");

        let start = Instant::now();
        a.restart().unwrap();
        inside = world.connected(8080);
        recoveries.push(start.elapsed());
    }
    println!("a killed agent was back after {recoveries:?}");
    assert!(quick(&recoveries), "{recoveries:?}");
    tcp::ping(&mut outside, "after").unwrap();
}

/// An agent that starts takes over what an earlier one left, and forgets what nobody wants; not a pod that it cannot
/// enrol.
#[test]
fn a_pod_that_a_restarted_agent_cannot_enrol_stays_closed() {
    let world = World::new(&[]);
    let World { client, server, a, .. } = &world;
    let echo = server.serve(8080, tcp::echo).unwrap();
    drop(world.connected(8080));
    a.kill9();
    let accepted = echo.accepted();
    let addresses = client.manifest().addresses;
    client.update(|pod| pod.addresses = vec!["10.1.200.9".parse().unwrap()]).unwrap();
    a.restart().unwrap();
    // By then it has forgotten what it forgets.
    eventually(PATIENCE, || a.get("/healthz/ready").is_ok_and(|ready| ready.body.contains("10.1.200.9")));
    for target in [server.at_v4(8080), server.at_v6(8080)] {
        assert_eq!(client.connect(target).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    assert_eq!(echo.accepted(), accepted, "in plaintext");
    client.update(|pod| pod.addresses = addresses).unwrap();
    let stream = world.connected(8080);
    assert_eq!(stream.peer_addr().unwrap(), server.at(8080));
}

#[test]
fn a_transfer_that_is_cut_ends_in_a_reset_at_both_ends() {
    #[derive(Clone, Copy, Debug)]
    enum Flow {
        Up,
        Down,
        Resting,
    }
    let world = World::new(&[]);
    let (ended, ends) = mpsc::sync_channel(64);
    let ended = Mutex::new(ended);
    let _reader = world.server.serve(8080, move |mut stream: TcpStream| {
        let ended = ended.lock().unwrap().clone();
        let mut hello = [0; 5];
        if stream.read_exact(&mut hello).and_then(|()| stream.write_all(&hello)).is_ok() {
            let _ = ended.send(end_of(&mut stream));
        }
    });
    let _reader = _reader.unwrap();
    let _writer = world.server.serve(8081, |mut stream: TcpStream| {
        let mut hello = [0; 5];
        if stream.read_exact(&mut hello).and_then(|()| stream.write_all(&hello)).is_ok() {
            let _ = tcp::send(&mut stream, u64::MAX);
        }
    });
    let _writer = _writer.unwrap();

    for (flow, killed) in [Flow::Up, Flow::Down, Flow::Resting]
        .into_iter()
        .flat_map(|flow| [(flow, &world.a), (flow, &world.b)])
    {
        let case = format!("{flow:?}, {} killed", killed.node());
        let mut stream = world.connected(if matches!(flow, Flow::Down) { 8081 } else { 8080 });
        while ends.try_recv().is_ok() {} // of attempts before the tunnel could be made
        match flow {
            Flow::Up => {
                let mut writer = stream.try_clone().unwrap();
                let sending = thread::spawn(move || tcp::send(&mut writer, u64::MAX));
                eventually(PATIENCE, || busy(killed));
                killed.kill9();
                let kind = sending.join().unwrap().unwrap_err().kind();
                assert!(
                    matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
                    "{case}: {kind:?}"
                );
            }
            Flow::Down => {
                let mut some = vec![0; 4 << 20];
                stream.read_exact(&mut some).unwrap();
                killed.kill9();
                assert_eq!(end_of(&mut stream), Err(ErrorKind::ConnectionReset), "{case}: the client");
            }
            Flow::Resting => {
                killed.kill9();
                assert_eq!(end_of(&mut stream), Err(ErrorKind::ConnectionReset), "{case}: the client");
            }
        }
        if !matches!(flow, Flow::Down) {
            let end = ends.recv_timeout(PATIENCE).unwrap();
            assert_eq!(end, Err(ErrorKind::ConnectionReset), "{case}: the server");
        }
        killed.restart().unwrap();
        killed.wait_ready().unwrap();
    }
}

/// Whether the agent's processor time grows: it carries something.
fn busy(agent: &Agent) -> bool {
    let before = agent.cpu_time();
    try_eventually(Duration::from_secs(1), || agent.cpu_time() > before + Duration::from_millis(50)).is_ok()
}

#[test]
fn connections_finish_after_sigterm_and_new_ones_are_refused_until_a_restart() {
    let world = World::new(&[]);
    let _echo = world.server.serve(8080, tcp::echo).unwrap();
    for agent in [&world.a, &world.b] {
        let mut stream = world.connected(8080);
        agent.begin_terminate();
        eventually(PATIENCE, || agent.ready().is_err());
        let target = world.server.at(8080);
        // At once by the client's own agent; by the server's, the client's agent has taken the connection by then.
        eventually(PATIENCE, || {
            world.client.connect(target).and_then(|mut stream| tcp::ping(&mut stream, "new")).is_err()
        });
        assert!(agent.is_running(), "it waits for the connection");
        tcp::exchange(stream.try_clone().unwrap(), 8 << 20).unwrap();
        assert_eq!(end_of(&mut stream), Ok(()));
        drop(stream);
        assert!(agent.wait_end(PATIENCE).unwrap().success());

        if agent.node() == "node-a" {
            assert_eq!(world.client.connect(target).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
        agent.restart().unwrap();
        agent.wait_ready().unwrap();
        drop(world.connected(8080));
    }
}

#[test]
fn connections_are_reset_when_the_grace_period_is_over_and_the_agent_ends() {
    let world = World::new(&["--grace-period", "1s"]);
    let (ended, ends) = mpsc::sync_channel(64);
    let ended = Mutex::new(ended);
    let server = world.server.serve(8080, move |mut stream: TcpStream| {
        let ended = ended.lock().unwrap().clone();
        let mut hello = [0; 5];
        if stream.read_exact(&mut hello).and_then(|()| stream.write_all(&hello)).is_ok() {
            let _ = ended.send(end_of(&mut stream));
        }
    });
    let _server = server.unwrap();
    for agent in [&world.a, &world.b] {
        let mut stream = world.connected(8080);
        while ends.try_recv().is_ok() {} // of attempts before the tunnel could be made
        let status = agent.terminate().unwrap();
        assert!(status.success(), "{status}");
        assert_eq!(end_of(&mut stream), Err(ErrorKind::ConnectionReset), "{}: the client", agent.node());
        let end = ends.recv_timeout(PATIENCE).unwrap();
        assert_eq!(end, Err(ErrorKind::ConnectionReset), "{}: the server", agent.node());
        assert!(agent.logs().contains("the grace period of 1s is over"), "{}", agent.logs());
        eventually(PATIENCE, || {
            agent.access_log().iter().any(|record| record.reason().as_deref() == Some("shutdown"))
        });
        agent.restart().unwrap();
        agent.wait_ready().unwrap();
    }
}

/// Connections that come as fast as they can, from several threads.
struct Storm {
    over: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    threads: Vec<thread::JoinHandle<Tally>>,
}

#[derive(Debug, Default)]
struct Tally {
    refused: usize,
    lost: Vec<String>,
}

impl Storm {
    fn start(client: &Pod, target: SocketAddr) -> Self {
        let (over, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = (0..8)
            .map(|_| {
                let (client, over, served) = (client.clone(), Arc::clone(&over), Arc::clone(&served));
                thread::spawn(move || {
                    let mut tally = Tally::default();
                    // One thread inside the pod, not one a connection.
                    client.run(|| {
                        while !over.load(Ordering::SeqCst) {
                            match TcpStream::connect(target) {
                                Ok(stream) => match request(stream) {
                                    Ok(()) => drop(served.fetch_add(1, Ordering::SeqCst)),
                                    Err(error) => tally.lost.push(error.to_string()),
                                },
                                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                                    tally.refused += 1;
                                    thread::sleep(Duration::from_millis(1));
                                }
                                Err(error) => tally.lost.push(format!("connect: {error}")),
                            }
                        }
                    });
                    tally
                })
            })
            .collect();
        Self { over, served, threads }
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }

    fn end(self) -> Tally {
        self.over.store(true, Ordering::SeqCst);
        self.threads.into_iter().fold(Tally::default(), |mut sum, thread| {
            let Tally { refused, lost } = thread.join().unwrap();
            sum.refused += refused;
            sum.lost.extend(lost);
            sum
        })
    }
}

fn request(mut stream: TcpStream) -> io::Result<()> {
    tcp::ping(&mut stream, "a request")?;
    stream.shutdown(Shutdown::Write)?;
    match tcp::read(&mut stream, &mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::other("more came than was asked for")),
    }
}

#[test]
fn what_waits_in_a_queue_is_served_on_the_way_out() {
    let world = World::new(&[]);
    let _echo = world.server.serve(8080, tcp::echo).unwrap();
    drop(world.connected(8080));
    for _ in 0..3 {
        let storm = Storm::start(&world.client, world.server.at(8080));
        eventually(PATIENCE, || storm.served() > 200);
        let status = world.a.terminate().unwrap();
        assert!(status.success(), "{status}");
        let before = storm.served();
        assert!(before > 200);
        world.a.restart().unwrap();
        // It is served again without a gap in which a connect succeeds and is reset.
        eventually(PATIENCE, || storm.served() > before + 200);
        let Tally { refused, lost } = storm.end();
        println!("{before} were served before the end, {refused} refused, {} lost", lost.len());
        assert!(refused > 0, "the control: the agent was away");
        assert!(lost.is_empty(), "{} were lost: {:?}", lost.len(), &lost[..lost.len().min(3)]);
    }
}

#[test]
fn tunnels_that_wait_in_a_queue_are_served_on_the_way_out() {
    let world = World::new(&[]);
    let clients: Vec<_> = (0..24)
        .map(|number| world.mesh.pod(&format!("c{number}")).on("node-a").enrolled().start().unwrap())
        .collect();
    let _echo = world.server.serve(8080, tcp::echo).unwrap();
    drop(world.connected(8080));
    eventually(PATIENCE, || world.a.metrics().unwrap().sum("culvert_pods_enrolled", &[]) == 25.0);
    // Stopped, it accepts nothing: the tunnels of the new clients wait in its listener's queue, and SIGTERM with them.
    world.b.signal(nix::sys::signal::Signal::SIGSTOP);
    let target = world.server.at(8080);
    let waiting: Vec<_> = clients.iter().map(|client| client.connect(target).unwrap()).collect();
    let syns = || {
        let text = world.server.sh("cat /proc/net/tcp").unwrap();
        // State 01 is ESTABLISHED; 3AA0 is 15008, the local port of a tunnel.
        text.lines()
            .filter(|line| line.contains(":3AA0 ") && line.split_whitespace().nth(3) == Some("01"))
            .count()
    };
    eventually(PATIENCE, || syns() >= clients.len());
    world.b.begin_terminate();
    world.b.signal(nix::sys::signal::Signal::SIGCONT);
    for stream in waiting {
        request(stream).unwrap();
    }
    assert!(world.b.wait_end(Duration::from_secs(60)).unwrap().success());
}

/// The kernel gives up the verification of a program when a signal comes.
#[test]
fn an_agent_that_is_stopped_and_continued_while_it_starts_serves_all_the_same() {
    let world = World::new(&[]);
    let _echo = world.server.serve(8080, tcp::echo).unwrap();
    drop(world.connected(8080));
    // Not every stop meets a verification.
    for _ in 0..4 {
        world.a.restart().unwrap();
        for _ in 0..25 {
            world.a.signal(nix::sys::signal::Signal::SIGSTOP);
            world.a.signal(nix::sys::signal::Signal::SIGCONT);
            thread::sleep(Duration::from_millis(10));
        }
        world.a.wait_ready().unwrap();
    }
    drop(world.connected(8080));
}

#[test]
fn a_second_agent_of_a_node_refuses_to_start_and_disturbs_nothing() {
    let world = World::new(&[]);
    let _echo = world.server.serve(8080, tcp::echo).unwrap();
    let mut stream = world.connected(8080);
    let second = world.mesh.agent("node-a").start().unwrap();
    assert!(!second.wait_end(PATIENCE).unwrap().success());
    let unique = world.mesh.node("node-a").unique_name();
    let complaint = format!("another agent of node \"{unique}\" is running");
    assert!(second.logs().contains(&complaint), "{}", second.logs());
    tcp::ping(&mut stream, "still there").unwrap();
    drop(world.connected(8080));
    world.a.ready().unwrap();
    assert_eq!(world.a.get_private("/healthz/live").unwrap().status, 200, "its socket is still its own");
}
