//! Connections that the agent does not carry: finding them, and ending them.

use std::{
    io::{ErrorKind, Read as _},
    net::{SocketAddr, TcpListener, TcpStream},
};

use culvert::{
    capture::{Bypass, PodCapture},
    mesh::PlaintextAction::{Inspect, Pass, Refuse},
};
use nix::{
    libc,
    sys::resource::{Resource, getrlimit, setrlimit},
};
use tokio::runtime::Builder;

use crate::{
    greeter::{at, rules},
    raw,
    world::{POD4, POD6, World, addr, blocking, eventually, ip, listen},
};

/// A connection from outside, and the application's end.
struct Pair {
    client: TcpStream,
    accepted: TcpStream,
}

impl Pair {
    fn open(world: &World, server: &TcpListener, to: SocketAddr) -> Self {
        let client = world.out.run(|| TcpStream::connect(to).expect("connecting"));
        let (accepted, _) = server.accept().expect("accepting");
        Self { client, accepted }
    }

    fn is(&self, bypass: &Bypass) -> bool {
        bypass.source == self.client.local_addr().expect("getsockname")
            && bypass.destination == self.client.peer_addr().unwrap_or(bypass.destination)
    }

    /// Checks that both ends were told.
    fn assert_cut(mut self) {
        let error = lab::tcp::read(&mut self.accepted, &mut [0]).expect_err("a cut read as an end");
        assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED));
        let error = lab::tcp::read(&mut self.client, &mut [0]).expect_err("a cut read as an end");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

fn bypassing(pod: &PodCapture) -> Vec<Bypass> {
    pod.bypassing().expect("listing sockets")
}

fn destroy(pod: &PodCapture, pair: Pair) {
    let bypass = bypassing(pod).into_iter().find(|bypass| pair.is(bypass)).expect("the connection is found");
    pod.destroy(&bypass).expect("ending a connection");
    pair.assert_cut();
    pod.destroy(&bypass).expect("it has ended already");
}

#[test]
fn connections_without_the_agent_are_found_and_ended() {
    let world = World::new();
    let v4 = world.pod.run(|| listen("0.0.0.0:8000"));
    let v6 = world.pod.run(|| listen(&format!("[{POD6}]:8001")));
    let both = world.pod.run(|| listen("[::]:8002"));
    // Older than enrolment, and passed since.
    let mut pairs = vec![
        Pair::open(&world, &v4, at(POD4, 8000)),
        Pair::open(&world, &v6, at(POD6, 8001)),
        Pair::open(&world, &both, at(POD4, 8002)),
    ];
    let pod = world.enroll();
    pairs.push(Pair::open(&world, &both, at(POD6, 8002)));
    pairs.push(Pair::open(&world, &v4, at(POD4, 8000)));
    let found = bypassing(&pod);
    assert_eq!(found.len(), pairs.len(), "{found:?}");
    for pair in &pairs {
        assert_eq!(found.iter().filter(|bypass| pair.is(bypass)).count(), 1, "{found:?}");
    }
    // One is cut, and no other.
    destroy(&pod, pairs.remove(0));
    for pair in &mut pairs {
        let (client, accepted) = (&mut pair.client, &mut pair.accepted);
        std::io::Write::write_all(client, b"x").expect("writing");
        accepted.read_exact(&mut [0]).expect("reading");
    }
    for pair in pairs {
        destroy(&pod, pair);
    }
    assert_eq!(bypassing(&pod).len(), 0);
}

#[test]
fn what_nobody_has_accepted_yet_is_found() {
    let world = World::new();
    let server = world.pod.run(|| listen("0.0.0.0:8000"));
    let pod = world.enroll();
    let mut client = world.out.run(|| TcpStream::connect(at(POD4, 8000)).expect("connecting"));
    let found = bypassing(&pod);
    assert_eq!(found.len(), 1, "{found:?}");
    pod.destroy(&found[0]).expect("ending a connection");
    assert_eq!(
        lab::tcp::read(&mut client, &mut [0]).expect_err("a cut read as an end").kind(),
        ErrorKind::ConnectionReset
    );
    drop(server);
}

#[test]
fn a_half_closed_connection_is_found() {
    let world = World::new();
    let server = world.pod.run(|| listen("0.0.0.0:8000"));
    let pod = world.enroll();
    let theirs = Pair::open(&world, &server, at(POD4, 8000));
    theirs.client.shutdown(std::net::Shutdown::Write).expect("shutting down");
    let ours = Pair::open(&world, &server, at(POD4, 8000));
    ours.accepted.shutdown(std::net::Shutdown::Write).expect("shutting down");
    eventually("both are found", || bypassing(&pod).len() == 2);
    for bypass in bypassing(&pod) {
        pod.destroy(&bypass).expect("ending a connection");
    }
    // What has ended, and only waits for the last packets, is no connection.
    let ended = Pair::open(&world, &server, at(POD4, 8000));
    drop(ended.accepted);
    drop(ended.client);
    eventually("nothing is found", || bypassing(&pod).is_empty());
}

#[test]
fn what_a_server_accepted_that_listens_no_more_is_found() {
    let world = World::new();
    let older = world.pod.run(|| listen("0.0.0.0:8000"));
    let older = (Pair::open(&world, &older, at(POD4, 8000)), older).0;
    let pod = world.enroll();
    let mut pairs = Vec::new();
    for (bind, to) in [("0.0.0.0:8001", POD4), ("[::]:8002", POD6), ("[::]:8003", POD4)] {
        let server = world.pod.run(|| listen(bind));
        pairs.push(Pair::open(&world, &server, at(to, server.local_addr().expect("getsockname").port())));
    }
    let found = bypassing(&pod);
    assert_eq!(found.len(), pairs.len(), "{found:?}");
    for pair in pairs {
        destroy(&pod, pair);
    }
    // Nobody can tell any more who made this one.
    assert_eq!(bypassing(&pod).len(), 0);
    drop(older);
}

/// It completes by itself, whatever the rules are by then.
#[test]
fn a_handshake_under_way_is_found() {
    let world = World::new();
    let _applications: Vec<_> =
        [8000, 15008].into_iter().map(|port| world.pod.run(|| listen(&format!("0.0.0.0:{port}")))).collect();
    let pod = world.enroll();
    let nobody = addr("10.77.0.9:50000");
    world.out.run(|| {
        raw::forge_syn(nobody, at(POD4, 15008));
        raw::forge_syn(nobody, at(POD4, 8000));
    });
    // The one to HBONE's port came first, and is the agent's.
    eventually("the handshake is found", || !bypassing(&pod).is_empty());
    let found = bypassing(&pod);
    assert_eq!(world.stats().hbone, 1);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].source, found[0].destination), (nobody, at(POD4, 8000)));
    pod.destroy(&found[0]).expect("ending a handshake");
    assert_eq!(bypassing(&pod).len(), 0);
}

#[test]
fn the_agents_own_sockets_are_left_alone() {
    let world = World::new();
    // An application on the very ports.
    let _applications: Vec<_> =
        [8000, 15008].into_iter().map(|port| world.pod.run(|| listen(&format!("0.0.0.0:{port}")))).collect();
    let pod = world.enroll_with(&rules(Inspect, &[]));
    let plain = pod.plaintext_listeners().expect("listeners").remove(0);
    let hbone = pod.hbone_listeners().expect("listeners").remove(0);
    blocking(&plain);
    blocking(&hbone);
    let mut clients = Vec::new();
    for (listener, port) in [(&plain, 8000), (&hbone, 15008)] {
        for _ in 0..2 {
            clients.push(world.out.run(|| TcpStream::connect(at(POD4, port)).expect("connecting")));
        }
        // One of the two is accepted, the other waits.
        clients.push(listener.accept().expect("accepting").0);
    }
    assert_eq!(bypassing(&pod).len(), 0);
    // What the agent dials to another pod, also where an application comes to listen on its port.
    let server = world.out.run(|| listen("10.77.0.1:15008"));
    let runtime = Builder::new_current_thread().enable_io().build().expect("a runtime");
    let dialler = pod.dialler();
    let dialled = runtime.block_on(dialler.dial_peer(ip(POD4), addr("10.77.0.1:15008"))).expect("dialling");
    let port = dialled.local_addr().expect("getsockname").port();
    let _late = world.pod.run(|| listen(&format!("0.0.0.0:{port}")));
    let _peer = server.accept().expect("accepting");
    assert_eq!(bypassing(&pod).len(), 0);
    // The control: what passes is found.
    pod.set_plaintext(&rules(Pass, &[])).expect("changing the rules");
    clients.push(world.out.run(|| TcpStream::connect(at(POD4, 8000)).expect("connecting")));
    assert_eq!(bypassing(&pod).len(), 1);
}

#[test]
fn the_pods_own_connections_are_left_alone() {
    let world = World::new();
    let outside = world.out.run(|| listen("10.77.0.1:7000"));
    let inside = world.pod.run(|| listen("[::]:8000"));
    let pod = world.enroll();
    let mut out = world.pod.run(|| TcpStream::connect(addr("10.77.0.1:7000")).expect("connecting"));
    let _outs_peer = outside.accept().expect("accepting");
    let own: Vec<_> = [POD4, POD6, "127.0.0.1", "::1"]
        .into_iter()
        .map(|to| world.pod.run(|| TcpStream::connect(at(to, 8000)).expect("connecting")))
        .collect();
    assert_eq!(bypassing(&pod).len(), 0);
    // The control: one from outside, and only that.
    let pair = {
        for _ in &own {
            inside.accept().expect("accepting");
        }
        Pair::open(&world, &inside, at(POD4, 8000))
    };
    let found = bypassing(&pod);
    assert!(found.len() == 1 && pair.is(&found[0]), "{found:?}");
    std::io::Write::write_all(&mut out, b"x").expect("writing");
}

#[test]
fn the_nodes_own_connections_are_left_alone() {
    let world = World::with_agent_outside();
    let server = world.pod.run(|| listen("0.0.0.0:8000"));
    let before = Pair::open(&world, &server, at(POD4, 8000));
    let pod = world.enroll_with(&rules(Refuse, &[]));
    let _probe = Pair::open(&world, &server, at(POD4, 8000));
    let found = bypassing(&pod);
    // What is older than enrolment cannot be told from anybody's.
    assert!(found.len() == 1 && before.is(&found[0]), "{found:?}");
}

#[test]
fn mptcp_is_found_and_ended() {
    let world = World::new();
    let server: TcpListener = world.pod.run(|| {
        let socket = raw::mptcp(addr("0.0.0.0:0")).expect("a kernel with MPTCP");
        raw::bind(&socket, addr("0.0.0.0:8000")).expect("binding");
        nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::MAXCONN).expect("listening");
        socket.into()
    });
    let pod = world.enroll();
    let client = world.out.run(|| {
        let socket = raw::mptcp(addr("0.0.0.0:0")).expect("a kernel with MPTCP");
        raw::connect(&socket, at(POD4, 8000)).expect("connecting");
        raw::stream(socket)
    });
    let (accepted, _) = server.accept().expect("accepting");
    let found = bypassing(&pod);
    assert_eq!(found.len(), 1, "{found:?}");
    pod.destroy(&found[0]).expect("ending a connection");
    // Nothing carries it any more. The application is told when the kernel gives up on another path, after a minute.
    assert_eq!(bypassing(&pod).len(), 0);
    drop((client, accepted));
}

#[test]
fn a_list_longer_than_one_answer_is_whole() {
    let world = World::new();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
    setrlimit(Resource::RLIMIT_NOFILE, 20_000, hard.max(20_000)).expect("setrlimit");
    let server = world.pod.run(|| listen("0.0.0.0:8000"));
    let mut pairs: Vec<_> = (0..700).map(|_| Pair::open(&world, &server, at(POD4, 8000))).collect();
    let pod = world.enroll();
    let found = bypassing(&pod);
    assert_eq!(found.len(), pairs.len());
    let sources: std::collections::HashSet<_> = found.iter().map(|bypass| bypass.source).collect();
    assert!(pairs.iter().all(|pair| sources.contains(&pair.client.local_addr().expect("getsockname"))));
    destroy(&pod, pairs.swap_remove(350));
    let pair = &mut pairs[0];
    std::io::Write::write_all(&mut pair.accepted, b"x").expect("writing");
    pair.client.read_exact(&mut [0]).expect("reading");
}

#[test]
fn an_unenrolled_pod_has_none() {
    let world = World::new();
    let server = world.pod.run(|| listen("0.0.0.0:8000"));
    let pod = world.enroll();
    let mut pair = Pair::open(&world, &server, at(POD4, 8000));
    assert_eq!(bypassing(&pod).len(), 1);
    pod.unenroll().expect("un-enrolling");
    assert_eq!(bypassing(&pod).len(), 0);
    std::io::Write::write_all(&mut pair.client, b"x").expect("writing");
    pair.accepted.read_exact(&mut [0]).expect("reading");
}
