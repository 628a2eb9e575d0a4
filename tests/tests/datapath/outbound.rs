//! What a captured application sees, however it connects.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
};

use culvert::capture::end_cleanly;
use nix::libc;

use crate::{
    raw,
    world::{
        Agent, MESH4, MESH6, POD4, POD6, World, addr, blocking, echo, emulated, eventually, ip, line, listen,
    },
};

/// Connects from the pod and checks both ends' view.
fn check(world: &World, agent: &Agent, to: &str, own: &str, original: &str) {
    let before = world.stats();
    world.pod.run(|| {
        let stream =
            TcpStream::connect(addr(to)).unwrap_or_else(|error| panic!("connecting to {to}: {error}"));
        assert_view(stream, to, own, original);
    });
    assert_captured(world, agent, before.captured + 1);
}

fn assert_view(mut stream: TcpStream, to: &str, own: &str, original: &str) {
    assert_eq!(stream.peer_addr().expect("getpeername"), addr(to));
    assert_eq!(stream.local_addr().expect("getsockname").ip(), ip(own));
    assert_eq!(line(&mut stream), original);
    echo(&mut stream);
}

fn assert_captured(world: &World, agent: &Agent, captured: u64) {
    let now = world.stats();
    assert_eq!(now.captured, captured);
    assert_eq!(now.handshakes, 0);
    assert!(!agent.refused());
}

#[test]
fn ipv4_is_captured() {
    let world = World::new();
    let agent = world.serve();
    check(&world, &agent, MESH4, POD4, MESH4);
}

#[test]
fn ipv6_is_captured() {
    let world = World::new();
    let agent = world.serve();
    check(&world, &agent, MESH6, POD6, MESH6);
}

#[test]
fn ipv4_over_an_ipv6_socket_is_captured() {
    let world = World::new();
    let agent = world.serve();
    check(&world, &agent, "[::ffff:10.99.0.1]:8080", "::ffff:10.77.0.2", MESH4);
}

#[test]
fn a_non_blocking_connect_is_captured() {
    let world = World::new();
    let agent = world.serve();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    world.pod.run(|| {
        let stream = runtime.block_on(tokio::net::TcpStream::connect(addr(MESH4))).expect("connecting");
        let stream = stream.into_std().expect("a stream");
        stream.set_nonblocking(false).expect("a blocking stream");
        assert_view(stream, MESH4, POD4, MESH4);
    });
    assert_captured(&world, &agent, 1);
}

#[test]
fn mptcp_is_captured_and_sees_its_peer() {
    let world = World::new();
    let agent = world.serve();
    let names = world.pin(agent_ebpf::maps::NAMES);
    for (to, own) in [(MESH4, POD4), (MESH6, POD6)] {
        let before = world.stats().captured;
        let plain = world.pod.run(|| TcpStream::connect(addr(to)).expect("connecting"));
        assert!(raw::is_empty(&names), "TCP needs none of the few names that there are");
        drop(plain);
        world.pod.run(|| {
            let socket = raw::mptcp(addr(to)).expect("a kernel with MPTCP");
            raw::connect(&socket, addr(to)).expect("connecting");
            assert!(!raw::is_empty(&names));
            let stream = raw::stream(socket);
            assert_view(stream.try_clone().expect("dup"), to, own, to);
            // A subflow that is merely closed may live for another minute.
            raw::disconnect(&stream).expect("connecting to AF_UNSPEC");
        });
        assert_captured(&world, &agent, before + 2);
        eventually("the name goes with the connection", || raw::is_empty(&names));
    }
    let socket = world.pod.run(|| raw::mptcp(addr(MESH4)).expect("a kernel with MPTCP"));
    raw::connect(&socket, addr(MESH4)).expect("connecting");
    let pod = agent.stop();
    assert!(!raw::is_empty(&names));
    pod.unenroll().expect("un-enrolling");
    assert!(raw::is_empty(&names), "names go with the pod");
}

#[test]
fn fast_open_is_captured() {
    let world = World::new();
    let agent = world.serve();
    // Twice each: the second time there could be a cookie, and `connect` would then be put off until the first byte.
    for round in 1..=2 {
        world.pod.run(|| {
            let socket = raw::tcp(addr(MESH4));
            assert_eq!(raw::send_fast_open(&socket, addr(MESH4), b"marker").expect("sendto"), 6);
            let mut stream = raw::stream(socket);
            assert_eq!(line(&mut stream), MESH4);
            assert_eq!(stream.peer_addr().expect("getpeername"), addr(MESH4));
            let mut back = [0; 6];
            stream.read_exact(&mut back).expect("reading");
            assert_eq!(&back, b"marker");
        });
        assert_captured(&world, &agent, 2 * round - 1);
        world.pod.run(|| {
            let socket = raw::tcp(addr(MESH4));
            raw::set_option(&socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1)
                .expect("TCP_FASTOPEN_CONNECT");
            raw::connect(&socket, addr(MESH4)).expect("connecting");
            let mut stream = raw::stream(socket);
            stream.write_all(b"marker").expect("writing");
            assert_eq!(line(&mut stream), MESH4);
            assert_eq!(stream.peer_addr().expect("getpeername"), addr(MESH4));
        });
        assert_captured(&world, &agent, 2 * round);
    }
}

#[test]
fn a_socket_used_again_sees_its_new_peer() {
    let world = World::new();
    let agent = world.serve();
    let other = "10.99.0.2:9090";
    world.capture_all(&[MESH4, other]);
    let server = world.out.run(|| listen("10.77.0.1:7000"));
    world.pod.run(|| {
        let socket = raw::tcp(addr(MESH4));
        for to in [MESH4, other, MESH4] {
            raw::connect(&socket, addr(to)).unwrap_or_else(|error| panic!("connecting to {to}: {error}"));
            assert_view(raw::stream(socket.try_clone().expect("dup")), to, POD4, to);
            // A fork, or anybody else with the socket, cannot connect it elsewhere.
            let again =
                raw::connect(&socket, addr(other)).expect_err("a connected socket was connected again");
            assert_eq!(again.raw_os_error(), Some(libc::EISCONN));
            raw::disconnect(&socket).expect("connecting to AF_UNSPEC");
        }
        // What was captured once leaves nothing behind.
        raw::connect(&socket, addr("10.77.0.1:7000")).expect("connecting outside the mesh");
        let (_, from) = server.accept().expect("accepting");
        let stream = raw::stream(socket);
        assert_eq!(stream.peer_addr().expect("getpeername"), addr("10.77.0.1:7000"));
        assert_eq!(stream.local_addr().expect("getsockname"), from);
    });
    assert_captured(&world, &agent, 3);
}

#[test]
fn a_refused_socket_can_be_used_again() {
    let world = World::new();
    let agent = world.serve();
    world.pod.run(|| {
        let socket = raw::tcp(addr(MESH4));
        let refused = raw::connect(&socket, addr("10.77.0.1:9")).expect_err("nobody listens there");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        raw::connect(&socket, addr(MESH4)).expect("connecting");
        assert_view(raw::stream(socket), MESH4, POD4, MESH4);
    });
    assert_captured(&world, &agent, 1);
}

#[test]
fn a_bound_socket_keeps_its_port() {
    let world = World::new();
    let agent = world.serve();
    let mut connected = 0;
    // Every port that a connection can be redirected to is once the source port of some connection.
    for port in [40000, 80, 1, 1023].into_iter().chain(500..520) {
        for (to, own) in [(MESH4, POD4), (MESH6, POD6)] {
            world.pod.run(|| {
                let socket = raw::tcp(addr(to));
                raw::set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).expect("SO_REUSEADDR");
                let local = std::net::SocketAddr::new(ip(own), port);
                raw::bind(&socket, local).expect("binding");
                raw::connect(&socket, addr(to)).expect("connecting");
                let stream = raw::stream(socket);
                assert_eq!(stream.local_addr().expect("getsockname"), local);
                assert_view(stream, to, own, to);
            });
            connected += 1;
        }
    }
    assert_captured(&world, &agent, connected);
}

/// Redirected to its own port a socket would be connected to itself. One of 1023 redirections could be.
#[test]
fn a_bound_socket_is_never_connected_to_itself() {
    let world = World::new();
    let _agent = world.serve();
    let connections = if emulated() { 100 } else { 8_000 };
    world.pod.run(|| {
        for count in 0..connections {
            let socket = raw::tcp(addr(MESH4));
            raw::set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).expect("SO_REUSEADDR");
            raw::bind(&socket, addr("10.77.0.2:500")).expect("binding");
            raw::connect(&socket, addr(MESH4)).expect("connecting");
            culvert::capture::reset_on_close(&socket).expect("SO_LINGER");
            let stream = raw::stream(socket);
            stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("SO_RCVTIMEO");
            assert_eq!(line(stream), MESH4, "connection {count}");
        }
    });
}

#[test]
fn a_socket_bound_to_loopback_fails_as_without_the_mesh() {
    let world = World::new();
    let agent = world.serve();
    let connect = |to: &str| {
        world.pod.run(|| {
            let socket = raw::tcp(addr(to));
            raw::bind(&socket, addr("127.0.0.1:0")).expect("binding");
            raw::connect(&socket, addr(to)).expect_err("loopback reached the outside").raw_os_error()
        })
    };
    // The control: what the kernel itself says.
    assert_eq!(connect("10.77.0.1:7000"), Some(libc::EINVAL));
    assert_eq!(connect(MESH4), Some(libc::EINVAL));
    assert_captured(&world, &agent, 0);
}

#[test]
fn a_socket_bound_to_a_device_is_captured() {
    let world = World::new();
    let agent = world.serve();
    for (to, own) in [(MESH4, POD4), (MESH6, POD6)] {
        let before = world.stats().captured;
        world.pod.run(|| {
            let socket = raw::tcp(addr(to));
            raw::set_bytes(&socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, b"eth0\0")
                .expect("SO_BINDTODEVICE");
            raw::connect(&socket, addr(to)).expect("connecting");
            assert_view(raw::stream(socket), to, own, to);
        });
        assert_captured(&world, &agent, before + 1);
    }
}

#[test]
fn the_server_may_speak_first_and_either_side_may_end_first() {
    let world = World::new();
    let _agent = world.serve();
    world.pod.run(|| {
        let mut stream = TcpStream::connect(addr(MESH4)).expect("connecting");
        assert_eq!(line(&mut stream), MESH4);
        stream.write_all(b"last words").expect("writing");
        stream.shutdown(std::net::Shutdown::Write).expect("ending one direction");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("reading to the end");
        assert_eq!(rest, b"last words");
    });
}

/// Whoever closes first keeps the source port in TIME_WAIT: with one destination port there would be 28,000 a minute.
#[test]
fn source_ports_do_not_run_out() {
    let world = World::new();
    let pod = world.enroll();
    let connections = if emulated() { 1_000 } else { 30_000 };
    let listener = pod.outbound_listeners().expect("listeners").remove(0);
    blocking(&listener);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..connections {
                let (mut stream, _) = listener.accept().expect("accepting");
                assert_eq!(pod.orig_dst(&stream).expect("captured").to_string(), MESH4);
                assert_eq!(lab::tcp::read(&mut stream, &mut [0]).expect("the client's end"), 0);
                end_cleanly(&stream).expect("an orderly end");
            }
        });
        world.pod.run(|| {
            for count in 0..connections {
                let stream = TcpStream::connect(addr(MESH4))
                    .unwrap_or_else(|error| panic!("connection {count} of {connections}: {error}"));
                drop(stream);
            }
        });
    });
    let stats = world.stats();
    assert_eq!(stats.captured, connections as u64);
    assert_eq!(stats.handshakes, 0);
}
