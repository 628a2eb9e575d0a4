//! What a process in a pod cannot do, and what happens when there is no agent.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{
    raw,
    world::{MESH4, MESH6, POD4, POD6, World, addr, blocking, echo, eventually, ip, line, listen},
};

#[test]
fn a_listener_of_the_agent_cannot_be_connected_to() {
    let world = World::new();
    let agent = world.serve();
    let mut refused = 0;
    let listeners = agent.pod.outbound_listeners().expect("listeners");
    for listener in listeners.into_iter().chain(agent.pod.hbone_listeners().expect("listeners")) {
        let at = listener.local_addr().expect("getsockname");
        assert!(at.ip().is_loopback() && at.port() >= 61000, "{at}");
        let error = world.pod.run(|| TcpStream::connect(at).expect_err("connected to the agent's listener"));
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        refused += 1;
        assert_eq!(world.stats().refused_direct, refused);
    }
    assert!(!agent.refused());
    // The control: what the application itself listens on is reached, also on the port of a listener elsewhere.
    let port =
        agent.pod.outbound_listeners().expect("listeners")[0].local_addr().expect("getsockname").port();
    for at in [format!("127.0.0.2:{port}"), format!("{POD4}:{port}")] {
        let _server = world.pod.run(|| listen(&at));
        world.pod.run(|| TcpStream::connect(addr(&at)).map(drop).expect("connecting"));
    }
    assert_eq!(world.stats().refused_direct, refused);
}

/// A lost entry must never reach the pod's own port 80: without one, what looks like a captured connection is refused.
#[test]
fn a_syn_that_no_connect_made_is_refused() {
    let world = World::new();
    let agent = world.serve();
    let _server = world.pod.run(|| listen("10.77.0.2:80"));
    for (number, port) in [80, 1, 1023].into_iter().enumerate() {
        world.pod.run(|| raw::forge_syn(addr("10.77.0.2:50000"), SocketAddr::new(ip(POD4), port)));
        eventually("a forged SYN is refused", || world.stats().refused_unknown == number as u64 + 1);
    }
    // As one of the agent's own to an application.
    world.pod.run(|| raw::forge_syn(addr("127.0.0.5:50000"), SocketAddr::new(ip(POD4), 80)));
    eventually("a forged SYN is refused", || world.stats().refused_unknown == 4);
    // The control: a port that captured connections do not use is none of the programs' business.
    world.pod.run(|| raw::forge_syn(addr("10.77.0.2:50000"), addr("10.77.0.2:1024")));
    // Packets on loopback are handled in order: this connection's come later.
    world.pod.run(|| TcpStream::connect(addr("10.77.0.2:80")).map(drop).expect("connecting"));
    assert_eq!(world.stats().refused_unknown, 4);
    assert!(!agent.refused());
}

/// From outside. IPv4 drops a packet with the host's own source as a martian; IPv6 does not.
#[test]
fn a_forged_source_is_not_taken_for_the_pod_itself() {
    let world = World::new();
    let agent = world.serve();
    let own = ip(POD6);
    let before = world.stats();
    for port in [80, 1023] {
        world.out.run(|| raw::forge_syn(SocketAddr::new(own, 50000), SocketAddr::new(own, port)));
    }
    eventually("forged SYNs are refused", || world.stats().refused_unknown == before.refused_unknown + 2);
    world.out.run(|| {
        raw::forge_syn(SocketAddr::new(own, 50000), SocketAddr::new(own, 15008));
        raw::forge_syn(addr("10.77.0.2:50000"), addr("10.77.0.2:80"));
    });
    // The control, and what comes later on the same way: with a source of its own the outside reaches the agent.
    world.out.run(|| TcpStream::connect(SocketAddr::new(own, 15008)).map(drop).expect("connecting"));
    let after = world.stats();
    assert_eq!(after.hbone, before.hbone + 1, "only the true source reaches the agent");
    assert_eq!(after.refused_unknown, before.refused_unknown + 2);
    assert!(!agent.refused());
}

#[test]
fn an_accepted_destination_is_taken_once() {
    let world = World::new();
    let pod = world.enroll();
    let listener = pod.outbound_listeners().expect("listeners").remove(0);
    blocking(&listener);
    let _client = world.pod.run(|| TcpStream::connect(addr(MESH4)).expect("connecting"));
    let (stream, _) = listener.accept().expect("accepting");
    assert_eq!(pod.orig_dst(&stream).expect("captured").to_string(), MESH4);
    assert!(matches!(pod.orig_dst(&stream), Err(culvert::capture::Error::NotCaptured)));
}

/// A later connection between the same ends must not take what an earlier one left, nor the other way round.
#[test]
fn connections_between_the_same_ends_are_told_apart() {
    let world = World::new();
    let pod = world.enroll();
    let listener = pod.outbound_listeners().expect("listeners").remove(0);
    blocking(&listener);
    let destinations: Vec<String> = (1..=200).map(|host| format!("10.99.1.{host}:8080")).collect();
    world.capture_all(&destinations.iter().map(String::as_str).collect::<Vec<_>>());
    // One source port, and 200 connections that are reset before they are accepted: of 1023 redirection ports many are
    // used twice.
    world.pod.run(|| {
        for to in &destinations {
            let socket = raw::tcp(addr(to));
            raw::set_option(&socket, nix::libc::SOL_SOCKET, nix::libc::SO_REUSEADDR, 1)
                .expect("SO_REUSEADDR");
            raw::bind(&socket, addr("10.77.0.2:40000")).expect("binding");
            raw::connect(&socket, addr(to)).expect("connecting");
            culvert::capture::reset_on_close(&socket).expect("SO_LINGER");
        }
    });
    for to in &destinations {
        let (stream, _) = listener.accept().expect("accepting");
        assert_eq!(pod.orig_dst(&stream).expect("captured").to_string(), *to);
    }
    assert_eq!(world.stats().handshakes, 0);
}

#[test]
fn without_an_agent_the_mesh_is_closed_and_the_rest_goes_on() {
    let mut world = World::new();
    let agent = world.serve();
    let server = world.out.run(|| listen("10.77.0.1:7000"));
    world.pod.run(|| assert_eq!(line(TcpStream::connect(addr(MESH4)).expect("connecting")), MESH4));
    drop(agent.stop());
    world.crash();
    // Nor does an application on the port of HBONE get what is the agent's.
    let _application = world.pod.run(|| listen("0.0.0.0:15008"));
    for to in [MESH4, MESH6] {
        let error = world.pod.run(|| TcpStream::connect(addr(to)).expect_err("connected without an agent"));
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
    let error = world
        .out
        .run(|| TcpStream::connect(addr("10.77.0.2:15008")).expect_err("connected without an agent"));
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    world
        .pod
        .run(|| TcpStream::connect(addr("10.77.0.1:7000")).map(drop).expect("connecting outside the mesh"));
    server.accept().expect("accepting");

    world.start();
    assert_eq!(world.stats().refused_no_agent, 3);
    assert_eq!(world.stats().handshakes, 0);
    let _agent = world.serve();
    world.pod.run(|| assert_eq!(line(TcpStream::connect(addr(MESH4)).expect("connecting")), MESH4));
}

/// An agent that hangs: one pod's handshakes are bounded, beyond that `connect` fails, and no other pod is touched.
#[test]
fn handshakes_of_a_pod_are_bounded() {
    let world = World::new();
    // Before the listeners exist: a queue of one, so that nearly every SYN waits.
    world.pod.run(|| std::fs::write("/proc/sys/net/core/somaxconn", "1").expect("setting somaxconn"));
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
    setrlimit(Resource::RLIMIT_NOFILE, 20_000, hard.max(20_000)).expect("setrlimit");
    let pod = world.enroll();
    let bound = agent_ebpf::MAX_HANDSHAKES as usize;
    let sockets = world.pod.run(|| {
        let connecting = (0..bound + 100).map(|_| {
            let socket = raw::tcp(addr(MESH4));
            nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
                .expect("O_NONBLOCK");
            let _ = raw::connect(&socket, addr(MESH4));
            socket
        });
        connecting.collect::<Vec<_>>()
    });
    let stats = world.stats();
    assert!(stats.handshakes <= bound, "{stats:?}");
    assert!(stats.refused_overload > 0, "{stats:?}");
    let error = world.pod.run(|| TcpStream::connect(addr(MESH4)).expect_err("connected beyond the bound"));
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    drop(sockets);
    eventually("the handshakes are forgotten with their sockets", || world.stats().handshakes == 0);
    drop(pod);
}

#[test]
fn a_stopped_capture_still_serves_hbone() {
    let world = World::new();
    let agent = world.serve();
    let server = world.out.run(|| listen("10.77.0.1:7000"));
    world.capture_all(&["10.77.0.1:7000"]);
    let mut captured = world.pod.run(|| TcpStream::connect(addr("10.77.0.1:7000")).expect("connecting"));
    assert_eq!(line(&captured), "10.77.0.1:7000");
    agent.pod.stop_capture().expect("stopping");
    world.pod.run(|| TcpStream::connect(addr("10.77.0.1:7000")).map(drop).expect("connecting"));
    server.accept().expect("accepting");
    echo(&mut captured);
    let hbone = agent.pod.hbone_listeners().expect("listeners").remove(0);
    blocking(&hbone);
    let _outside = world.out.run(|| TcpStream::connect(addr("10.77.0.2:15008")).expect("connecting"));
    hbone.accept().expect("accepting");
    assert_eq!(world.stats().captured, 1);
}
