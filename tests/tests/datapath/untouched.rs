//! What the programs leave alone. Each check has its control: the same thing captured.

use std::{
    collections::HashMap,
    io::ErrorKind,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use culvert::{
    capture::{Config, Stats},
    mesh::Destination,
};

use crate::{
    raw,
    world::{MESH4, OUT4, OUT6, POD4, POD6, World, addr, echo, ip, line, listen},
};

/// What the kernel has counted, without how full the maps are.
fn counters(world: &World) -> Stats {
    Stats { handshakes: 0, pods: 0, destinations: 0, ..world.stats() }
}

/// Connects and checks that both ends see each other as they are.
fn plain(server: &TcpListener, to: &str, connect: impl FnOnce() -> TcpStream) {
    let stream = connect();
    let (accepted, from) = server.accept().expect("accepting");
    assert_eq!(stream.peer_addr().expect("getpeername"), addr(to));
    assert_eq!(stream.local_addr().expect("getsockname"), from);
    assert_eq!(accepted.peer_addr().expect("getpeername"), from);
}

#[test]
fn destinations_outside_the_mesh() {
    let world = World::new();
    let agent = world.serve();
    for to in ["10.77.0.1:7000", "[fd77::1]:7000"] {
        let server = world.out.run(|| listen(to));
        let before = counters(&world);
        plain(&server, to, || world.pod.run(|| TcpStream::connect(addr(to)).expect("connecting")));
        assert_eq!(counters(&world), before);
        drop(server);

        world.capture_all(&[MESH4, to]);
        world.pod.run(|| assert_eq!(line(TcpStream::connect(addr(to)).expect("connecting")), to));
        assert_eq!(counters(&world).captured, before.captured + 1);
    }
    assert!(!agent.refused());
}

#[test]
fn loopback_and_the_pods_own_addresses() {
    let world = World::new();
    let agent = world.serve();
    // In the mesh like every pod's; and no pod range, however wide, takes loopback along.
    world.capture_all(&[
        MESH4,
        "10.77.0.2:0",
        "[fd77::2]:0",
        "127.0.0.1:0",
        "[::1]:0",
        "0.0.0.0:0",
        "[::]:0",
    ]);
    let before = counters(&world);
    // Ports in and out of the range that captured connections use.
    for to in [
        "127.0.0.1:80",
        "127.0.0.1:8000",
        "10.77.0.2:80",
        "10.77.0.2:1023",
        "10.77.0.2:1024",
        "10.77.0.2:8000",
        "[::1]:80",
        "[fd77::2]:81",
        "[fd77::2]:8000",
    ] {
        let server = world.pod.run(|| listen(to));
        plain(&server, to, || world.pod.run(|| TcpStream::connect(addr(to)).expect("connecting")));
    }
    // `connect` to no address means loopback.
    for (to, loopback) in [("0.0.0.0:82", "127.0.0.1:82"), ("[::]:82", "[::1]:82")] {
        let server = world.pod.run(|| listen(loopback));
        plain(&server, loopback, || world.pod.run(|| TcpStream::connect(addr(to)).expect("connecting")));
    }
    assert_eq!(counters(&world), before);
    assert_eq!(world.stats().handshakes, 0);
    assert!(!agent.refused());
    world.pod.run(|| assert_eq!(line(TcpStream::connect(addr(MESH4)).expect("connecting")), MESH4));
    assert_eq!(counters(&world).captured, before.captured + 1);
}

#[test]
fn a_pod_whose_own_service_is_not_there_is_refused_by_the_kernel() {
    let world = World::new();
    let _agent = world.serve();
    world.pod.run(|| {
        let refused = TcpStream::connect(addr("10.77.0.2:80")).expect_err("nobody listens there");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    });
    assert_eq!(world.stats().handshakes, 0);
}

fn udp(at: &str, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((ip(at), port)).expect("binding");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("SO_RCVTIMEO");
    socket
}

/// Goes on where a signal came in between, as [`lab::tcp::read`] does.
fn receive(socket: &UdpSocket, bytes: &mut [u8]) -> (usize, SocketAddr) {
    loop {
        match socket.recv_from(bytes) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            received => return received.expect("receiving"),
        }
    }
}

#[test]
fn udp_to_a_captured_destination() {
    let world = World::new();
    let _agent = world.serve();
    world.capture_all(&["10.77.0.1:0", "[fd77::1]:0"]);
    for (out, own) in [(OUT4, POD4), (OUT6, POD6)] {
        let server = world.out.run(|| udp(out, 7000));
        let before = counters(&world);
        let client = world.pod.run(|| udp(own, 0));
        raw::datagram(&client, (ip(out), 7000).into());
        let mut bytes = [0; 16];
        let (length, from) = receive(&server, &mut bytes);
        assert_eq!((&bytes[..length], from), (&b"datagram"[..], client.local_addr().expect("getsockname")));
        assert_eq!(client.peer_addr().expect("getpeername"), (ip(out), 7000).into());
        // Inbound too, to the port that TCP connections are steered from.
        let server = world.pod.run(|| udp(own, 15008));
        let client = world.out.run(|| udp(out, 0));
        raw::datagram(&client, (ip(own), 15008).into());
        assert_eq!(receive(&server, &mut bytes).1, client.local_addr().expect("getsockname"));
        assert_eq!(counters(&world), before);

        world.pod.run(|| TcpStream::connect((ip(out), 7000)).map(drop).expect("connecting"));
        assert_eq!(counters(&world).captured, before.captured + 1);
    }
}

#[test]
fn pods_that_are_not_enrolled() {
    let world = World::new();
    world.capture_all(&["10.77.0.1:7000", "10.77.0.2:7000"]);
    let server = world.out.run(|| listen("10.77.0.1:7000"));
    let before = counters(&world);
    plain(&server, "10.77.0.1:7000", || {
        world.pod.run(|| TcpStream::connect(addr("10.77.0.1:7000")).expect("connecting"))
    });
    // Nor is the outside while the pod is enrolled.
    let agent = world.serve();
    let inside = world.pod.run(|| listen("10.77.0.2:7000"));
    plain(&inside, "10.77.0.2:7000", || {
        world.out.run(|| TcpStream::connect(addr("10.77.0.2:7000")).expect("connecting"))
    });
    assert_eq!(counters(&world), before);
    world.pod.run(|| {
        assert_eq!(line(TcpStream::connect(addr("10.77.0.1:7000")).expect("connecting")), "10.77.0.1:7000");
    });
    assert_eq!(counters(&world).captured, before.captured + 1);
    drop(agent);
}

#[test]
fn connections_from_before_enrolment() {
    let world = World::new();
    let server = world.out.run(|| listen("10.77.0.1:7000"));
    let mut early = world.pod.run(|| TcpStream::connect(addr("10.77.0.1:7000")).expect("connecting"));
    let (mut accepted, _) = server.accept().expect("accepting");
    let echoes = std::thread::spawn(move || {
        let _ = std::io::copy(&mut accepted.try_clone().expect("dup"), &mut accepted);
    });
    world.capture_all(&["10.77.0.1:7000"]);
    let agent = world.serve();
    echo(&mut early);
    // And captured ones live on when the pod leaves.
    let mut late = world.pod.run(|| TcpStream::connect(addr("10.77.0.1:7000")).expect("connecting"));
    assert_eq!(line(&late), "10.77.0.1:7000");
    agent.stop().unenroll().expect("un-enrolling");
    echo(&mut late);
    assert_eq!(late.peer_addr().expect("getpeername"), addr("10.77.0.1:7000"));
    echo(&mut early);
    drop(early);
    echoes.join().expect("the server's thread");
}

#[test]
fn a_socket_of_a_pod_that_left_forgets_where_it_was_captured_to() {
    let world = World::new();
    let agent = world.serve();
    let outside = world.out.run(|| listen("10.77.0.1:7000"));
    // Under the address that the connection was redirected to, and another port.
    let inside = world.pod.run(|| listen("10.77.0.2:8000"));
    let socket = world.pod.run(|| raw::tcp(addr(MESH4)));
    raw::connect(&socket, addr(MESH4)).expect("connecting");
    let stream = raw::stream(socket);
    assert_eq!(line(&stream), MESH4);
    agent.stop().unenroll().expect("un-enrolling");
    let before = counters(&world);
    for (server, to) in [(&outside, "10.77.0.1:7000"), (&inside, "10.77.0.2:8000")] {
        raw::disconnect(&stream).expect("connecting to AF_UNSPEC");
        plain(server, to, || {
            raw::connect(&stream, addr(to)).expect("connecting");
            stream.try_clone().expect("dup")
        });
    }
    assert_eq!(counters(&world), before);
}

#[test]
fn destinations_are_told_apart() {
    let world = World::new();
    let agent = world.serve();
    let (refused, passed) = ("10.77.0.1:7000", "[fd77::1]:7000");
    let server = world.out.run(|| listen(passed));
    world.set_destinations(&HashMap::from([
        (ip("10.99.0.1"), Destination::Capture),
        (addr(refused).ip(), Destination::Refuse),
        (addr(passed).ip(), Destination::Pass),
    ]));
    assert_eq!(world.stats().destinations, 3);
    let error = world.pod.run(|| TcpStream::connect(addr(refused)).expect_err("a refused destination"));
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(world.stats().refused_destination, 1);
    plain(&server, passed, || world.pod.run(|| TcpStream::connect(addr(passed)).expect("connecting")));
    world.pod.run(|| assert_eq!(line(TcpStream::connect(addr(MESH4)).expect("connecting")), MESH4));
    // What is no longer wanted is forgotten.
    world.capture_all(&[passed]);
    assert_eq!(world.stats().destinations, 1);
    world.pod.run(|| assert_eq!(line(TcpStream::connect(addr(passed)).expect("connecting")), passed));
    assert!(!agent.refused());
}

#[test]
fn an_unknown_address_in_a_pod_range_is_captured() {
    let mut world = World::new();
    world.crash();
    let ranges = ["10.99.0.0/16", "fd99::/64"].map(|net| net.parse().expect("a range"));
    let config = Config { pod_ranges: ranges.to_vec(), ..world.config() };
    world.start_with(&config);
    let agent = world.serve();
    for to in ["10.99.255.255:1", "[fd99::ffff]:1"] {
        world.pod.run(|| assert_eq!(line(TcpStream::connect(addr(to)).expect("connecting")), to));
    }
    // What is known to be outside passes, also inside a range; what is outside the range passes too.
    world.set_destinations(&HashMap::from([(ip("10.99.0.7"), Destination::Pass)]));
    let captured = world.stats().captured;
    world.pod.run(|| {
        for to in ["10.99.0.7:1", "10.98.0.1:1", "[fd98::1]:1"] {
            // Nobody is there: the world outside does not forward.
            let socket = raw::tcp(addr(to));
            nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
                .expect("O_NONBLOCK");
            let _ = raw::connect(&socket, addr(to));
        }
    });
    assert_eq!(world.stats().captured, captured);
    // Without ranges they are forgotten.
    agent.stop();
    world.crash();
    world.start();
    let _agent = world.serve();
    world.pod.run(|| {
        let socket = raw::tcp(addr("10.99.255.255:1"));
        nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
            .expect("O_NONBLOCK");
        let _ = raw::connect(&socket, addr("10.99.255.255:1"));
    });
    assert_eq!(world.stats().captured, captured);
}
