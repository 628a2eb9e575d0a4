//! A connection through the mesh behaves as TCP does: bytes arrive whole in both directions, each direction ends by
//! itself, a reset is a reset, a reader that stalls holds up nobody else, and the agents' memory has a bound.
//!
//! # The bound
//! A stream whose reader stalls holds, in the agent of the reader, the window (1 MiB), and in the agent of the writer
//! the send buffer (512 KiB) and one read (64 KiB); see `hbone`'s documentation. [`STREAM_BOUND`] is the larger one
//! with what allocation costs.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{Arc, Barrier, Mutex, mpsc},
    thread,
    time::Duration,
};

use lab::{AccessRecord, Agent, Mesh, PATIENCE, Pod, eventually, tcp};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const PORT: u16 = 8080;

/// A client on one node, a server on another, and the agents of both.
struct World {
    client: Pod,
    server: Pod,
    agents: [Agent; 2],
    mesh: Mesh,
}

impl World {
    fn new() -> Self {
        Self::with(&[])
    }

    /// Agents of which each has one thread for connections, so that all of them share a tunnel.
    fn of_one_tunnel() -> Self {
        Self::with(&["--threads", "1"])
    }

    fn with(args: &[&str]) -> Self {
        let mesh = Mesh::new().unwrap();
        let client = mesh.pod("client").on("node-a").enrolled().start().unwrap();
        let server = mesh.pod("server").on("node-b").enrolled().start().unwrap();
        let agents = ["node-a", "node-b"].map(|node| mesh.agent(node).args(args).start().unwrap());
        agents.iter().for_each(|agent| agent.wait_ready().unwrap());
        Self { client, server, agents, mesh }
    }

    fn target(&self) -> SocketAddr {
        self.server.at(PORT)
    }

    fn connect(&self) -> TcpStream {
        patient(self.client.connect(self.target()).unwrap())
    }

    /// A connection of which the test holds both ends.
    fn pair(&self, listener: &std::net::TcpListener) -> Pair {
        pair(&self.client, self.target(), listener)
    }

    fn carried(&self, metric: &str) -> [f64; 2] {
        self.agents.each_ref().map(|agent| agent.metrics().unwrap().sum(metric, &[]))
    }

    /// What both agents report once each has written `count` lines: a thread of its own writes them.
    fn records(&self, count: usize) -> Vec<AccessRecord> {
        let records = |agent: &Agent| {
            eventually(PATIENCE, || Some(agent.access_log()).filter(|records| records.len() == count))
        };
        self.agents.iter().flat_map(records).collect()
    }

    fn wait_until_idle(&self) {
        eventually(PATIENCE, || self.carried("culvert_connections_active") == [0.0; 2]);
    }
}

/// Both ends of one connection.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    /// A byte each way: both agents carry the connection from here on.
    fn greet(&mut self) {
        for (from, to) in [(&self.client, &self.server), (&self.server, &self.client)] {
            let (mut from, mut to) = (from, to);
            from.write_all(b"!").unwrap();
            to.read_exact(&mut [0]).unwrap();
        }
    }
}

fn pair(client: &Pod, target: SocketAddr, listener: &std::net::TcpListener) -> Pair {
    let client = patient(client.connect(target).unwrap());
    let server = patient(listener.accept().unwrap().0);
    Pair { client, server }
}

/// What hangs is a failure, not a test that never ends.
fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(tcp::STALL)).unwrap();
    stream.set_write_timeout(Some(tcp::STALL)).unwrap();
    stream
}

fn read_to_end(mut stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map(|_| bytes)
}

/// Writes until nobody takes any more, and returns how much went: the pattern of [`tcp::send`], in whole chunks.
fn write_until_stalled(stream: &TcpStream) -> u64 {
    struct Counted<'a>(&'a TcpStream, u64);
    impl Write for Counted<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Twice: the time of the first may have gone by while the whole machine stood still.
            let written = match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.0.write(bytes)?,
                written => written?,
            };
            self.1 += written as u64;
            Ok(written)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    // Long against every delay on the way: nothing moved for so long is at a stand.
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut counted = Counted(stream, 0);
    let error = tcp::send(&mut counted, u64::MAX).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "the writer stalls, and nothing else: {error}");
    counted.1
}

#[test]
fn either_side_may_end_its_direction_and_go_on_reading() {
    let world = World::new();
    let listener = world.server.listen(PORT).unwrap();
    for server_ends_first in [false, true] {
        let Pair { client, server } = world.pair(&listener);
        let (first, second) = if server_ends_first { (server, client) } else { (client, server) };
        (&first).write_all(b"the last word").unwrap();
        first.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&second).unwrap(), b"the last word");
        // More than all buffers on the way hold: the direction is really used, and long after the other has ended.
        thread::scope(|scope| {
            scope.spawn(|| {
                tcp::send(&mut &second, 32 << 20).unwrap();
                second.shutdown(Shutdown::Write).unwrap();
            });
            assert_eq!(tcp::receive(&mut &first).unwrap(), 32 << 20);
        });
    }
    world.wait_until_idle();
    assert!(world.records(2).iter().all(AccessRecord::is_ok));
}

#[test]
fn a_server_may_speak_first() {
    let world = World::new();
    let _server = world.server.serve(PORT, tcp::speak_first("220 ready\r\n")).unwrap();
    let mut stream = world.connect();
    let mut greeting = [0; 11];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
    tcp::ping(&mut stream, "EHLO\r\n").unwrap();
}

#[test]
fn an_immediate_close_is_an_end_of_file_at_the_other_side() {
    const COUNT: usize = 200;
    let world = World::new();
    let (ends, seen) = mpsc::sync_channel(COUNT);
    let ends = Mutex::new(ends);
    let server = world.server.serve(PORT, move |stream| {
        let end = read_to_end(&patient(stream)).map(|bytes| bytes.len());
        ends.lock().unwrap().send(end).unwrap();
    });
    for _ in 0..COUNT {
        drop(world.client.connect(world.target()).unwrap());
    }
    for _ in 0..COUNT {
        assert_eq!(seen.recv_timeout(PATIENCE).unwrap().unwrap(), 0);
    }
    drop(server);

    let _server = world.server.serve(PORT, drop).unwrap();
    for _ in 0..COUNT {
        assert_eq!(read_to_end(&world.connect()).unwrap(), b"");
    }
    world.wait_until_idle();
}

#[test]
fn two_gibibytes_each_way_at_once_arrive_whole() {
    const BYTES: u64 = 2 << 30;
    let world = World::new();
    let listener = world.server.listen(PORT).unwrap();
    let Pair { client, server } = world.pair(&listener);
    thread::scope(|scope| {
        let other = scope.spawn(|| tcp::exchange(server, BYTES));
        tcp::exchange(client, BYTES).unwrap();
        other.join().unwrap().unwrap();
    });
    world.wait_until_idle();
    for record in world.records(1) {
        assert_eq!((record.bytes_sent(), record.bytes_received()), (BYTES, BYTES), "{record:?}");
    }
}

#[test]
fn two_thousand_connections_live_at_once_between_one_pair_of_pods() {
    const COUNT: usize = 2000;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let world = World::new();
    let server = world.server.serve(PORT, |mut stream| {
        let mut buffer = [0; 64];
        while let Ok(length @ 1..) = tcp::read(&mut stream, &mut buffer) {
            if stream.write_all(&buffer[..length]).is_err() {
                return;
            }
        }
    });
    let server = server.unwrap();
    let mut streams: Vec<_> = (0..COUNT).map(|_| world.connect()).collect();
    for round in 0..2 {
        for (number, stream) in streams.iter_mut().enumerate() {
            tcp::ping(stream, &format!("round {round} of {number}\n")).unwrap();
        }
    }
    assert_eq!(server.open(), COUNT);
    let clients: std::collections::HashSet<_> = server.peers().into_iter().collect();
    assert_eq!(clients.len(), COUNT, "each is known to the server by an address of its own");
    assert_eq!(world.carried("culvert_connections_active"), [COUNT as f64; 2]);
    let connections = world.carried("culvert_hbone_connections")[0];
    // A hundred each, and a few more where several were opened at once.
    assert!((20.0..=30.0).contains(&connections), "{connections} connections carry {COUNT} streams");

    drop(streams);
    eventually(PATIENCE, || server.open() == 0);
    world.wait_until_idle();
}

/// Streams that stall at once: half of those that one connection between two agents carries.
const STALLED: usize = 50;
/// The most that a stream may cost either agent: a window of 1 MiB, and half as much again for what allocation costs.
const STREAM_BOUND: u64 = (1 << 20) + (1 << 19);

#[test]
fn readers_that_stall_cost_bounded_memory_and_hold_up_no_other_stream() {
    let world = World::of_one_tunnel();
    let listener = world.server.listen(PORT).unwrap();
    let echo = world.server.serve(PORT + 1, tcp::echo).unwrap();
    let exchange = || {
        let stream = world.client.connect(SocketAddr::new(world.server.ip(), echo.address().port())).unwrap();
        tcp::exchange(stream, 16 << 20).unwrap();
    };
    exchange();
    for client_reads in [false, true] {
        let before = world.agents.each_ref().map(Agent::own_memory);
        let pairs: Vec<_> = (0..STALLED).map(|_| world.pair(&listener)).collect();
        let ends = pairs.iter().map(
            |Pair { client, server }| {
                if client_reads { (server, client) } else { (client, server) }
            },
        );
        let ends: Vec<_> = ends.collect();
        let sent: Vec<u64> = thread::scope(|scope| {
            let writers: Vec<_> =
                ends.iter().map(|(writer, _)| scope.spawn(|| write_until_stalled(writer))).collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        let grown: Vec<_> = world
            .agents
            .iter()
            .zip(before)
            .map(|(agent, before)| agent.own_memory().saturating_sub(before))
            .collect();
        println!("client reads: {client_reads}; sent {}; grown by {grown:?} bytes", sent.iter().sum::<u64>());
        for (agent, grown) in world.agents.iter().zip(&grown) {
            let most = STALLED as u64 * STREAM_BOUND;
            assert!(*grown <= most, "{} grew by {grown}, and may by {most}", agent.node());
        }
        // That memory is seen at all; the second time, it is that of the first.
        let least = STALLED as u64 * (1 << 18);
        assert!(client_reads || grown.iter().all(|grown| *grown > least), "{grown:?}");

        exchange();
        let connections = world.carried("culvert_hbone_connections")[0];
        assert_eq!(connections, 1.0, "the exchange shared the connection of those that stall");

        // Those that stall go on where they were, and lose nothing.
        thread::scope(|scope| {
            for (&(writer, reader), sent) in ends.iter().zip(&sent) {
                let mut reader = reader;
                writer.shutdown(Shutdown::Write).unwrap();
                scope.spawn(move || assert_eq!(tcp::receive(&mut reader).unwrap(), *sent));
            }
        });
        drop(pairs);
        world.wait_until_idle();
    }
}

/// What a connection is doing when one of its ends resets it.
#[derive(Clone, Copy, Debug)]
enum State {
    /// Bytes have gone both ways, and nothing is underway.
    Idle,
    /// The side that resets has ended its direction before.
    EndedByResetter,
    /// The other side has ended its direction before.
    EndedByOther,
    /// The side that resets has sent until nobody took any more.
    ResetterStalled,
    /// The other side has sent until nobody took any more.
    OtherStalled,
    /// The side that resets has sent until nobody took any more, to one that has ended its own direction.
    ResetterStalledAndEndedByOther,
    /// The other side has sent until nobody took any more, to one that has ended its own direction.
    OtherStalledAndEndedByResetter,
}

impl State {
    const ALL: [Self; 7] = [
        Self::Idle,
        Self::EndedByResetter,
        Self::EndedByOther,
        Self::ResetterStalled,
        Self::OtherStalled,
        Self::ResetterStalledAndEndedByOther,
        Self::OtherStalledAndEndedByResetter,
    ];

    fn reach(self, resetter: &TcpStream, other: &TcpStream) {
        let end = |from: &TcpStream, mut to: &TcpStream| {
            from.shutdown(Shutdown::Write).unwrap();
            assert_eq!(tcp::read(&mut to, &mut [0]).unwrap(), 0);
        };
        match self {
            Self::Idle => {}
            Self::EndedByResetter => end(resetter, other),
            Self::EndedByOther => end(other, resetter),
            Self::ResetterStalled => drop(write_until_stalled(resetter)),
            Self::OtherStalled => drop(write_until_stalled(other)),
            Self::ResetterStalledAndEndedByOther => {
                end(other, resetter);
                write_until_stalled(resetter);
            }
            Self::OtherStalledAndEndedByResetter => {
                end(resetter, other);
                write_until_stalled(other);
            }
        }
    }
}

/// Resets connections in every state from either side, and waits for the kernel to tell the other side, which neither
/// reads nor writes, of the reset: ECONNRESET, or EPIPE after an end of file (net/ipv4/tcp_input.c, `tcp_reset`).
fn reset_in_every_state(client: &Pod, target: SocketAddr, listener: &std::net::TcpListener) {
    let cases = State::ALL.into_iter().flat_map(|state| [(state, false), (state, true)]);
    let cases: Vec<_> = cases
        .map(|(state, server_resets)| {
            let mut pair = pair(client, target, listener);
            pair.greet();
            (state, server_resets, pair)
        })
        .collect();
    // One waits for another's stall otherwise.
    thread::scope(|scope| {
        for (state, server_resets, Pair { client, server }) in cases {
            scope.spawn(move || {
                let (resetter, other) = if server_resets { (server, client) } else { (client, server) };
                state.reach(&resetter, &other);
                tcp::reset(resetter).unwrap();
                let told = lab::try_eventually(PATIENCE, || other.take_error().unwrap());
                let error = told.unwrap_or_else(|_| {
                    panic!("{state:?}, reset by the server: {server_resets}: the other side is not told")
                });
                let kinds = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
                assert!(kinds.contains(&error.kind()), "{state:?}, {server_resets}: {error}");
            });
        }
    });
}

#[test]
fn a_reset_reaches_the_other_side_as_a_reset_in_every_state() {
    let world = World::new();
    // What TCP itself does, and that the check sees it.
    let [bare_client, bare_server] = [("bare-client", "node-a"), ("bare-server", "node-b")]
        .map(|(name, node)| world.mesh.pod(name).on(node));
    let (bare_client, bare_server) = (bare_client.start().unwrap(), bare_server.start().unwrap());
    reset_in_every_state(&bare_client, bare_server.at(PORT), &bare_server.listen(PORT).unwrap());

    let listener = world.server.listen(PORT).unwrap();
    for target in [world.server.at_v4(PORT), world.server.at_v6(PORT)] {
        reset_in_every_state(&world.client, target, &listener);
    }
    world.wait_until_idle();
    for record in world.records(4 * State::ALL.len()) {
        assert_eq!(record.reason().as_deref(), Some("reset"), "{record:?}");
    }
}

#[test]
fn a_client_that_goes_on_sending_to_a_server_that_has_closed_is_told() {
    let world = World::new();
    let listener = world.server.listen(PORT).unwrap();
    for target in [world.server.at_v4(PORT), world.server.at_v6(PORT)] {
        let mut pair = pair(&world.client, target, &listener);
        pair.greet();
        drop(pair.server);
        assert_eq!(tcp::read(&mut pair.client, &mut [0]).unwrap(), 0);
        let error = tcp::send(&mut pair.client, u64::MAX).unwrap_err();
        let kinds = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
        assert!(kinds.contains(&error.kind()), "{target}: {error}");
    }
    world.wait_until_idle();
}

#[test]
fn a_reader_hears_of_a_reset_and_never_of_an_end_of_file() {
    let world = World::new();
    let listener = world.server.listen(PORT).unwrap();
    for server_resets in [false, true] {
        let mut pair = world.pair(&listener);
        pair.greet();
        let (resetter, other) =
            if server_resets { (pair.server, pair.client) } else { (pair.client, pair.server) };
        let reading = Arc::new(Barrier::new(2));
        let reader = thread::spawn({
            let reading = reading.clone();
            move || {
                reading.wait();
                read_to_end(&other)
            }
        });
        reading.wait();
        (&resetter).write_all(b"half a sent").unwrap();
        tcp::reset(resetter).unwrap();
        let error = reader.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
