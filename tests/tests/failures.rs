//! What goes wrong on the way: the client hears of it soon, the access log says why, and nothing is left behind.
//!
//! The peers that misbehave are this process's own, in the namespace of a pod on a node without an agent.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use culvert::{
    hbone,
    identity::{LocalCa, SvidStore},
    mesh::Identity,
};
use lab::{Agent, Mesh, PATIENCE, Pod, eventually, tcp};
use nix::sys::socket::Backlog;
use tokio::io::AsyncReadExt;
use tokio_rustls::TlsAcceptor;

const PORT: u16 = 8080;
/// Where nobody listens.
const CLOSED: u16 = 9999;
const HBONE: u16 = 15008;

/// A silent peer is given up 30 seconds after its last PING at the latest; and as long again.
const GIVEN_UP: Duration = Duration::from_secs(60);

fn agents<const N: usize>(mesh: &Mesh, nodes: [&str; N]) -> [Agent; N] {
    let agents = nodes.map(|node| mesh.agent(node).start().unwrap());
    agents.iter().for_each(|agent| agent.wait_ready().unwrap());
    agents
}

/// Connects, and reads what cannot come: the error, which must be one, and soon.
fn failure(client: &Pod, target: SocketAddr) -> io::ErrorKind {
    let failed = client.connect(target).and_then(|mut stream| {
        stream.set_read_timeout(Some(2 * PATIENCE))?;
        stream.read_exact(&mut [0])
    });
    failed.expect_err("nobody serves there").kind()
}

/// The reason that an agent's access log gives for the one connection to `target`.
fn reason(agent: &Agent, target: SocketAddr) -> String {
    let record = eventually(PATIENCE, || {
        agent.access_log().into_iter().find(|record| record.destination() == Some(target))
    });
    record.reason().unwrap_or_else(|| panic!("no reason in {record:?}"))
}

/// What an agent holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Held {
    descriptors: usize,
    tasks: f64,
    connections: f64,
    tunnels: f64,
    streams: f64,
    handshakes: f64,
    map_entries: usize,
}

impl Held {
    fn by(mesh: &Mesh, agent: &Agent) -> Self {
        let metrics = agent.metrics().unwrap();
        let metric = |name| metrics.sum(name, &[]);
        Self {
            descriptors: agent.fd_count(),
            tasks: metric("culvert_tasks"),
            connections: metric("culvert_connections_active"),
            tunnels: metric("culvert_hbone_connections"),
            streams: metric("culvert_hbone_streams"),
            handshakes: metric("culvert_capture_handshakes"),
            map_entries: map_entries(mesh.node(agent.node()).unique_name()),
        }
    }
}

fn held<const N: usize>(mesh: &Mesh, agents: &[Agent; N]) -> [Held; N] {
    agents.each_ref().map(|agent| Held::by(mesh, agent))
}

/// Waits until nothing is underway, and returns what agents hold then: what they held twice, since a descriptor may be
/// of the question itself.
fn idle<const N: usize>(mesh: &Mesh, agents: &[Agent; N]) -> [Held; N] {
    let (mut last, mut since) = (held(mesh, agents), Instant::now());
    eventually(PATIENCE, || {
        let mut now = held(mesh, agents);
        for (now, last) in now.iter_mut().zip(&last) {
            // The connection that asks is counted too, and may still be closing when the next one asks.
            now.descriptors = now.descriptors.min(last.descriptors);
        }
        let idle = now.iter().all(|held| held.connections == 0.0 && held.handshakes == 0.0);
        if !idle || now != last {
            (last, since) = (now, Instant::now());
        }
        if since.elapsed() > SETTLED { Ok(now) } else { Err(format!("{now:?}")) }
    })
}

/// Longer than an agent goes on listening to a client that it refused, without counting it as a connection.
const SETTLED: Duration = Duration::from_secs(1);

#[track_caller]
fn wait_until_held<const N: usize>(mesh: &Mesh, agents: &[Agent; N], wanted: [Held; N]) {
    eventually(GIVEN_UP, || {
        let now = held(mesh, agents);
        if now == wanted { Ok(()) } else { Err(format!("held before: {wanted:#?}, now: {now:#?}")) }
    });
}

/// The entries of the maps that connections make, counted by bpftool: the handshakes of every pod, and the names.
fn map_entries(node: &str) -> usize {
    let pins = Path::new("/sys/fs/bpf/culvert").join(node).join(format!("layout-{}", agent_ebpf::LAYOUT));
    let pinned = |name| dump(&["pinned", pins.join(name).to_str().unwrap()]);
    let handshakes = pinned("HANDSHAKES");
    let inner = handshakes.iter().filter_map(inner_map);
    inner.map(|id| dump(&["id", &id]).len()).sum::<usize>() + pinned("NAMES").len()
}

fn dump(map: &[&str]) -> Vec<serde_json::Value> {
    let output = Command::new("bpftool").args(["-j", "map", "dump"]).args(map).output().unwrap();
    let parsed = serde_json::from_slice::<Vec<serde_json::Value>>(&output.stdout);
    parsed.unwrap_or_else(|error| panic!("bpftool map dump {map:?}: {error}: {output:?}"))
}

/// The id that an entry of a map of maps has for its value: four bytes in the host's order.
fn inner_map(entry: &serde_json::Value) -> Option<String> {
    let bytes = entry.get("value")?.as_array()?.iter();
    let bytes: Vec<u8> = bytes
        .filter_map(|byte| u8::from_str_radix(byte.as_str()?.trim_start_matches("0x"), 16).ok())
        .collect();
    Some(u32::from_ne_bytes(bytes.try_into().ok()?).to_string())
}

#[test]
fn an_application_that_does_not_listen_is_a_reset_at_once() {
    let mesh = Mesh::new().unwrap();
    let client = mesh.pod("client").on("node-a").enrolled().start().unwrap();
    let server = mesh.pod("server").on("node-b").enrolled().start().unwrap();
    let agents = agents(&mesh, ["node-a", "node-b"]);
    for target in [server.at_v4(CLOSED), server.at_v6(CLOSED)] {
        assert_eq!(failure(&client, target), io::ErrorKind::ConnectionReset);
        assert_eq!(reason(&agents[0], target), "peer_unavailable");
        assert_eq!(reason(&agents[1], target), "dial_failed");
    }
    let _server = server.serve(CLOSED, tcp::echo).unwrap();
    tcp::exchange(client.connect(server.at(CLOSED)).unwrap(), 1000).unwrap();
}

/// The destination's agent gives it up before the client's agent gives up the destination's, and so the log says which
/// of them was at fault.
#[test]
fn an_application_that_does_not_answer_is_given_up() {
    let mesh = Mesh::new().unwrap();
    let client = mesh.pod("client").on("node-a").enrolled().start().unwrap();
    let server = mesh.pod("server").on("node-b").enrolled().start().unwrap();
    let agents = agents(&mesh, ["node-a", "node-b"]);
    // One connection fits into the queue of an application that accepts none; the kernel drops the others' SYNs.
    let full = server.listen(PORT).unwrap();
    nix::sys::socket::listen(&full, Backlog::new(0).unwrap()).unwrap();
    let _waiting = server.connect(server.at(PORT)).unwrap();
    for target in [server.at_v4(PORT), server.at_v6(PORT)] {
        assert_eq!(failure(&client, target), io::ErrorKind::ConnectionReset);
        assert_eq!(reason(&agents[0], target), "peer_unavailable");
        assert_eq!(reason(&agents[1], target), "timeout");
    }
}

#[test]
fn without_a_certificate_nothing_is_sent() {
    let mesh = Mesh::new().unwrap();
    let client = mesh.pod("client").on("node-a").enrolled().start().unwrap();
    let stranger = mesh.pod("stranger").on("node-a").start().unwrap();
    let server = mesh.pod("server").on("node-b").enrolled().start().unwrap();
    let echo = server.serve(PORT, tcp::echo).unwrap();
    // No certificate outlives the one that signed it, and an authority whose own has expired signs no more.
    let ca = mesh.directory().join("short-lived");
    let mut init = Command::new(lab::culvert().unwrap());
    init.args(["ca", "init", ca.to_str().unwrap(), "--trust-domain", "cluster.local"]);
    assert!(init.args(["--intermediate-lifetime", "15s"]).status().unwrap().success());
    let agents = ["node-a", "node-b"].map(|node| mesh.agent(node).ca_dir(&ca).start().unwrap());
    for agent in &agents {
        agent.wait_ready().unwrap();
        eventually(PATIENCE, || {
            agent.metrics().unwrap().sum("culvert_certificate_requests_total", &[("result", "failed")]) > 0.0
        });
    }
    for target in [server.at_v4(PORT), server.at_v6(PORT)] {
        assert_eq!(failure(&client, target), io::ErrorKind::ConnectionReset);
        assert_eq!(reason(&agents[0], target), "no_certificate");
    }
    assert_eq!(echo.accepted(), 0, "in plaintext");
    // The control: plaintext would have arrived.
    tcp::ping(&mut stranger.connect(server.at(PORT)).unwrap(), "plain").unwrap();
    assert_eq!(echo.accepted(), 1);
}

/// How a peer on port 15008 misbehaves.
#[derive(Clone, Copy, Debug)]
enum Peer {
    /// Refuses TCP.
    Absent,
    /// Drops every packet.
    Dropping,
    /// Accepts TCP and says nothing.
    Silent,
    /// Begins a TLS record and does not end it.
    SilentInTls,
    /// Resets in the middle of the handshake.
    ResetsInTls,
    /// Ends the connection in the middle of the handshake.
    ClosesInTls,
    /// Says nothing once TLS stands.
    SilentAfterTls,
    /// Resets once TLS stands.
    ResetsAfterTls,
    /// Takes CONNECT and does not answer.
    NeverAnswers,
    /// Resets the request's stream.
    ResetsRequest,
}

impl Peer {
    /// Each with the reasons that the access log may give.
    const ALL: [(Self, &'static [&'static str]); 10] = [
        (Self::Absent, &["dial_failed"]),
        (Self::Dropping, &["timeout"]),
        (Self::Silent, &["timeout"]),
        (Self::SilentInTls, &["timeout"]),
        (Self::ResetsInTls, &["tls"]),
        (Self::ClosesInTls, &["tls"]),
        (Self::SilentAfterTls, &["timeout"]),
        // The reset may come before the handshake's last flight has left.
        (Self::ResetsAfterTls, &["tunnel_lost", "tls"]),
        (Self::NeverAnswers, &["timeout"]),
        (Self::ResetsRequest, &["reset"]),
    ];

    async fn serve(self, mut stream: tokio::net::TcpStream, svids: SvidStore, identity: Identity) {
        let reset = |stream: tokio::net::TcpStream| drop(tcp::reset(stream.into_std().unwrap()));
        match self {
            Self::Absent | Self::Dropping => unreachable!("nobody listens"),
            Self::Silent => {}
            Self::SilentInTls | Self::ResetsInTls | Self::ClosesInTls => {
                drop(stream.read(&mut [0; 64]).await);
                match self {
                    Self::ResetsInTls => return reset(stream),
                    Self::ClosesInTls => {
                        // All of ClientHello: what is left unread turns a close into a reset.
                        let mut rest = [0; 16 * 1024];
                        drop(stream.read(&mut rest).await);
                        return;
                    }
                    // The header of a ServerHello of 122 bytes.
                    _ => drop(stream.try_write(&[22, 3, 3, 0, 122])),
                }
            }
            Self::SilentAfterTls | Self::ResetsAfterTls => {
                let svid = svids.svid(&identity).await.unwrap();
                let tls = TlsAcceptor::from(svid.server_config()).accept(stream).await.unwrap();
                if matches!(self, Self::ResetsAfterTls) {
                    return reset(tls.into_inner().0);
                }
                return forever(tls).await;
            }
            Self::NeverAnswers | Self::ResetsRequest => {
                let svid = svids.svid(&identity).await.unwrap();
                let mut http = hbone::accept(stream, svid).await.unwrap();
                let mut held = Vec::new();
                while let Some(Ok(incoming)) = http.next().await {
                    if matches!(self, Self::NeverAnswers) {
                        held.push(incoming);
                    }
                }
                return;
            }
        }
        forever(stream).await;
    }
}

/// Holds something until the runtime ends.
async fn forever<T>(_held: T) {
    std::future::pending::<()>().await;
}

#[test]
fn a_peer_that_fails_in_any_stage_is_reported_to_the_client_and_in_the_log() {
    let mesh = Mesh::new().unwrap();
    let client = mesh.pod("client").on("node-a").enrolled().start().unwrap();
    let good = mesh.pod("good").on("node-a").enrolled().start().unwrap();
    let _echo = good.serve(PORT, tcp::echo).unwrap();
    let peers = Peer::ALL.map(|(peer, reasons)| {
        let name = format!("{peer:?}").to_lowercase();
        (peer, reasons, mesh.pod(&name).on("node-b").enrolled().start().unwrap())
    });
    let agents = agents(&mesh, ["node-a"]);
    tcp::exchange(client.connect(good.at(PORT)).unwrap(), 1000).unwrap();
    let before = idle(&mesh, &agents);

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let inside = runtime.enter();
    let ca = LocalCa::open(&mesh.ca().unwrap()).unwrap();
    let identity = Identity::new(ca.trust_domain().clone(), "default", "default").unwrap();
    let svids = SvidStore::new(Arc::new(ca));
    for (peer, _, pod) in &peers {
        match peer {
            Peer::Absent => {}
            Peer::Dropping => blackhole(&mesh, pod.ip()),
            peer => {
                let listener = pod.listen(HBONE).unwrap();
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let (peer, svids, identity) = (*peer, svids.clone(), identity.clone());
                runtime.spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::spawn(peer.serve(stream, svids.clone(), identity.clone()));
                    }
                });
            }
        }
    }
    thread::scope(|scope| {
        for (peer, reasons, pod) in &peers {
            let (client, agent) = (&client, &agents[0]);
            scope.spawn(move || {
                let target = pod.at(PORT);
                let kind = failure(client, target);
                assert_eq!(kind, io::ErrorKind::ConnectionReset, "{peer:?}");
                let reason = reason(agent, target);
                assert!(reasons.contains(&&*reason), "{peer:?}: {reason}");
            });
        }
        // Nobody waits for them.
        tcp::exchange(client.connect(good.at(PORT)).unwrap(), 1000).unwrap();
    });
    // Two of them answer PINGs, and are kept for later; until they go.
    eventually(GIVEN_UP, || held(&mesh, &agents)[0].tunnels == before[0].tunnels + 2.0);
    drop(inside);
    drop(runtime);
    wait_until_held(&mesh, &agents, before);
}

/// Drops every packet to `address` on its node, without a word.
fn blackhole(mesh: &Mesh, address: IpAddr) {
    let prefix = if address.is_ipv4() { 32 } else { 128 };
    let mut ip = mesh.node("node-b").command("ip");
    let status = ip.args(["route", "replace", "blackhole", &format!("{address}/{prefix}")]).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_pod_that_vanished_and_a_node_that_was_cut_off_end_in_resets() {
    let mesh = Mesh::new().unwrap();
    let client = mesh.pod("client").on("node-a").enrolled().start().unwrap();
    let vanishing = mesh.pod("vanishing").on("node-b").enrolled().start().unwrap();
    let cut = mesh.pod("cut").on("node-b").enrolled().start().unwrap();
    let agents = agents(&mesh, ["node-a", "node-b"]);
    let before = idle(&mesh, &agents);
    let servers = [&vanishing, &cut].map(|pod| pod.serve(PORT, tcp::echo).unwrap());
    let targets = [vanishing.at(PORT), cut.at(PORT)];
    let mut established = targets.map(|target| client.connect(target).unwrap());
    for stream in &mut established {
        tcp::ping(stream, "here").unwrap();
    }
    vanishing.vanish().unwrap();
    blackhole(&mesh, cut.ip());
    thread::scope(|scope| {
        for target in targets {
            let (client, agent) = (&client, &agents[0]);
            scope.spawn(move || {
                assert_eq!(failure(client, target), io::ErrorKind::ConnectionReset);
                let told = reason(agent, target);
                // A connection on another thread than the first has no tunnel to wait on, and the pod no way to it any more.
                let no_way = target == targets[0] && told == "dial_failed";
                assert!(told == "timeout" || no_way, "{target}: {told}");
            });
        }
        for mut stream in established {
            scope.spawn(move || {
                stream.set_read_timeout(Some(GIVEN_UP)).unwrap();
                let error = stream.read_exact(&mut [0]).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
            });
        }
    });
    drop(servers);
    let quiet = |held: [Held; 2]| held.map(|held| (held.connections, held.tunnels, held.streams, held.tasks));
    eventually(GIVEN_UP, || {
        let now = held(&mesh, &agents);
        if quiet(now) == quiet(before) { Ok(()) } else { Err(format!("{before:#?} {now:#?}")) }
    });
}

#[test]
fn a_client_that_fails_in_the_handshake_is_let_go_and_logged() {
    let mesh = Mesh::new().unwrap();
    let server = mesh.pod("server").on("node-b").enrolled().start().unwrap();
    let stranger = mesh.pod("stranger").on("node-a").start().unwrap();
    let agents = agents(&mesh, ["node-b"]);
    let before = idle(&mesh, &agents);
    let connect = || stranger.connect(server.at(HBONE)).unwrap();

    // The beginning of a ClientHello of 512 bytes.
    let hello = [22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    let silent = connect();
    let mut stalled = connect();
    stalled.write_all(&hello).unwrap();
    let mut resetting = connect();
    resetting.write_all(&hello).unwrap();
    let mut plain = connect();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    eventually(PATIENCE, || Held::by(&mesh, &agents[0]).descriptors >= before[0].descriptors + 3);

    let expected = [(&silent, "timeout"), (&stalled, "timeout"), (&resetting, "tls"), (&plain, "tls")]
        .map(|(stream, reason)| (stream.local_addr().unwrap(), reason));
    tcp::reset(resetting).unwrap();
    for mut stream in [silent, stalled, plain] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // Ended or reset, but ended: no deadline of this side.
        let ended = stream.read_to_end(&mut Vec::new());
        assert!(ended.is_ok() || ended.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset));
    }
    for (address, reason) in expected {
        let record = eventually(PATIENCE, || {
            agents[0].access_log().into_iter().find(|record| record.source() == Some(address))
        });
        assert_eq!(record.reason().as_deref(), Some(reason), "{record:?}");
    }
    wait_until_held(&mesh, &agents, before);
}

/// One of ten kinds of short connection, good and bad.
struct Shorts<'a> {
    client: &'a Pod,
    stranger: &'a Pod,
    echo: SocketAddr,
    closing: SocketAddr,
    resetting: SocketAddr,
    absent: SocketAddr,
    /// A service without an endpoint.
    empty: SocketAddr,
    hbone: SocketAddr,
}

impl Shorts<'_> {
    /// `count` connections: a tenth by the stranger, the others from 15 threads inside the client.
    fn run(&self, count: usize) {
        let left = AtomicUsize::new(count - count / 10);
        let take = |left: usize| left.checked_sub(1);
        let work = || {
            for kind in (0..9).cycle() {
                if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
                    return;
                }
                self.one(kind);
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| self.stranger.run(|| (0..count / 10).for_each(|_| self.bad_handshake())));
            for _ in 0..15 {
                scope.spawn(|| self.client.run(work));
            }
        });
    }

    fn one(&self, kind: usize) {
        let connect = |target| {
            let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            io::Result::Ok(stream)
        };
        // `connect_timeout` looks at the socket's error once it is connected: a reset may be there already.
        let read = |target| connect(target)?.read_to_end(&mut Vec::new());
        match kind {
            0..=3 => tcp::ping(&mut connect(self.echo).unwrap(), "short").unwrap(),
            4 => assert_eq!(read(self.closing).unwrap(), 0),
            5 => assert!(read(self.resetting).is_err()),
            6 => assert!(read(self.absent).is_err()),
            7 => {
                let error = TcpStream::connect_timeout(&self.empty, PATIENCE).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            }
            _ => {
                let mut stream = connect(self.echo).unwrap();
                stream.write_all(b"cut off").unwrap();
                tcp::reset(stream).unwrap();
            }
        }
    }

    fn bad_handshake(&self) {
        let mut stream = TcpStream::connect_timeout(&self.hbone, PATIENCE).unwrap();
        stream.write_all(&[22, 3, 1]).unwrap();
        tcp::reset(stream).unwrap();
    }
}

#[test]
fn ten_thousand_short_connections_leave_nothing_behind() {
    let mesh = Mesh::new().unwrap();
    let client = mesh.pod("client").on("node-a").enrolled().start().unwrap();
    let server = mesh.pod("server").on("node-b").enrolled().start().unwrap();
    let stranger = mesh.pod("stranger").on("node-a").start().unwrap();
    let empty = mesh.service("empty").select("app", "nobody").port(80, 80).apply().unwrap();
    let agents = agents(&mesh, ["node-a", "node-b"]);
    let echo = server.serve(PORT, small_echo).unwrap();
    let _closing = server.serve(PORT + 1, drop).unwrap();
    let _resetting = server.serve(PORT + 2, |stream| tcp::reset(stream).unwrap()).unwrap();
    let shorts = Shorts {
        client: &client,
        stranger: &stranger,
        echo: server.at(PORT),
        closing: server.at(PORT + 1),
        resetting: server.at(PORT + 2),
        absent: server.at(CLOSED),
        empty: empty.address(80),
        hbone: server.at(HBONE),
    };
    shorts.run(500);
    let before = idle(&mesh, &agents);

    // What is held is seen, of each kind.
    let open: Vec<_> = (0..20).map(|_| client.connect(server.at(PORT)).unwrap()).collect();
    eventually(PATIENCE, || echo.open() == 20);
    let [a, b] = held(&mesh, &agents);
    for (now, before) in [a, b].iter().zip(&before) {
        assert!(
            now.descriptors >= before.descriptors + 20 && now.tasks >= before.tasks + 20.0,
            "{before:?} {now:?}"
        );
        assert_eq!(now.connections, 20.0);
    }
    assert_eq!(a.streams, 20.0);
    // One connection fits into the queue of an application that accepts none; the kernel drops the others' SYNs.
    let full = server.listen(PORT + 3).unwrap();
    nix::sys::socket::listen(&full, Backlog::new(0).unwrap()).unwrap();
    let mut waiting = Vec::new();
    eventually(PATIENCE, || {
        // Each is given up after some seconds, however long it takes to look.
        waiting.extend((0..6).map(|_| client.connect(server.at(PORT + 3)).unwrap()));
        let now = held(&mesh, &agents)[1];
        let seen = now.handshakes >= 4.0 && now.map_entries >= before[1].map_entries + 4;
        if seen { Ok(()) } else { Err(format!("{:?} {now:?}", before[1])) }
    });
    drop((open, waiting, full));
    wait_until_held(&mesh, &agents, before);

    let start = Instant::now();
    shorts.run(10_000);
    println!("10,000 connections, good and bad, in {:?}", start.elapsed());
    wait_until_held(&mesh, &agents, before);
    let failed = agents[0].metrics().unwrap().sum("culvert_connections_failed_total", &[]);
    assert!(failed >= 2000.0, "those to nobody and those that were reset: {failed}");
}

/// An echo that costs a thread little.
fn small_echo(mut stream: TcpStream) {
    let mut buffer = [0; 64];
    while let Ok(length @ 1..) = tcp::read(&mut stream, &mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

/// Connects, pings and closes, from several threads of the pod; returns the first error.
fn close_first(pod: &Pod, target: SocketAddr, count: usize) -> io::Result<()> {
    const THREADS: usize = 8;
    let left = AtomicUsize::new(count);
    let take = |left: usize| left.checked_sub(1);
    let work = || {
        while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
            tcp::ping(&mut stream, "!")?;
        }
        Ok(())
    };
    pod.run(|| {
        thread::scope(|scope| {
            let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().unwrap())
        })
    })
}

#[test]
fn thirty_thousand_connections_closed_by_the_client_find_a_port() {
    const COUNT: usize = 30_000;
    let mesh = Mesh::new().unwrap();
    let client = mesh.pod("client").on("node-a").enrolled().start().unwrap();
    let server = mesh.pod("server").on("node-b").enrolled().start().unwrap();
    let bare = mesh.pod("bare").on("node-a").start().unwrap();
    let bare_server = mesh.pod("bare-server").on("node-b").start().unwrap();
    let agents = agents(&mesh, ["node-a", "node-b"]);
    let _echo = server.serve(PORT, small_echo).unwrap();
    let _bare_echo = bare_server.serve(PORT, small_echo).unwrap();

    // A closed connection keeps its port for a minute (net/ipv4/tcp.c, TCP_TIMEWAIT_LEN). Without the mesh the ports run out:
    // here of a thousand, which also a slow machine uses up in that time.
    for pod in [&bare, &client] {
        pod.sh("echo 40000 40999 > /proc/sys/net/ipv4/ip_local_port_range").unwrap();
    }
    let error = close_first(&bare, bare_server.at(PORT), 2000).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);

    // The tunnel that all share is there already.
    close_first(&client, server.at(PORT), 100).unwrap();
    let before = idle(&mesh, &agents);
    let cpu = agents.each_ref().map(Agent::cpu_time);
    let start = Instant::now();
    close_first(&client, server.at(PORT), COUNT).unwrap();
    let took = start.elapsed();
    let cpu = [agents[0].cpu_time() - cpu[0], agents[1].cpu_time() - cpu[1]];
    println!(
        "{COUNT} connections in {took:?}: {:.0} a second; agents' processor time {cpu:?}",
        COUNT as f64 / took.as_secs_f64()
    );
    wait_until_held(&mesh, &agents, before);
}
