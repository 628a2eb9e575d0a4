//! What arrives at a pod, and what its applications see of it.

use std::{
    ffi::OsString,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd as _},
};

use culvert::{
    capture::{Dialler, PodCapture, end_cleanly},
    mesh::Plaintext,
};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, getsockopt, setsockopt, socket,
        sockopt::TcpCongestion,
    },
};
use tokio::runtime::{Builder, Runtime};

use crate::{
    raw,
    world::{MESH4, OUT4, OUT6, POD4, POD6, World, addr, blocking, echo, eventually, ip, listen},
};

/// Clients that exist nowhere in the suite.
const CLIENT4: &str = "10.88.0.9:45678";
const CLIENT6: &str = "[fd88::9]:45678";

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_io().build().expect("a runtime")
}

fn dial(dialler: &Dialler, target: &str, client: &str) -> std::io::Result<TcpStream> {
    let runtime = runtime();
    let stream = runtime.block_on(dialler.dial_app(addr(target), addr(client)))?.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn at(own: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(own), port)
}

/// Dials an application and checks whom it takes for its client.
fn check(world: &World, pod: &PodCapture, listens: &str, target: &str, client: &str, seen: &str) {
    let before = world.stats();
    let server = world.pod.run(|| listen(listens));
    let mut dialled = dial(&pod.dialler(), target, client).expect("dialling");
    let (mut accepted, from) = server.accept().expect("accepting");
    assert_eq!(from, addr(seen), "accept");
    assert_eq!(accepted.peer_addr().expect("getpeername"), addr(seen));
    assert_eq!(accepted.local_addr().expect("getsockname").ip().to_canonical(), addr(target).ip());
    accepted.write_all(b"marker").expect("the server speaks first");
    let mut read = [0; 6];
    dialled.read_exact(&mut read).expect("reading");
    assert_eq!(&read, b"marker");
    let after = world.stats();
    assert_eq!(after.substituted, before.substituted + 1);
    assert_eq!(after.captured, before.captured, "the agent's own socket was captured");
    assert_eq!(after.handshakes, 0);
}

#[test]
fn the_application_sees_its_client() {
    let world = World::new();
    let pod = world.enroll();
    check(&world, &pod, "0.0.0.0:8000", "10.77.0.2:8000", CLIENT4, CLIENT4);
    check(&world, &pod, "10.77.0.2:8001", "10.77.0.2:8001", CLIENT4, CLIENT4);
    check(&world, &pod, "[::]:8002", "[fd77::2]:8002", CLIENT6, CLIENT6);
    check(&world, &pod, "[::]:8003", "10.77.0.2:8003", CLIENT4, "[::ffff:10.88.0.9]:45678");
}

#[test]
fn nobody_paces_between_the_agent_and_an_application() {
    let world = World::new();
    let pod = world.enroll();
    let server = world.pod.run(|| listen("0.0.0.0:8000"));
    let outside = world.out.run(|| listen("10.77.0.1:8001"));
    let listener = pod.outbound_listeners().expect("listeners").remove(0);
    blocking(&listener);
    for (asked, expected) in [("bbr", "reno"), ("cubic", "cubic")] {
        if let Err(error) = control(&server, asked) {
            // A kernel for virtual machines may come without its modules.
            assert_eq!(error, Errno::ENOENT, "{asked}");
            println!("not looked at: this kernel has no {asked}");
            continue;
        }
        let connect = |to: &str| {
            let new = || socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None);
            let socket = world.pod.run(new).expect("a socket");
            control(&socket, asked).expect("TCP_CONGESTION");
            nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(addr(to)))
                .expect("connecting");
            socket
        };
        let dialled = dial(&pod.dialler(), "10.77.0.2:8000", CLIENT4).expect("dialling");
        let (application, _) = server.accept().expect("accepting");
        let client = connect(MESH4);
        let (captured, _) = listener.accept().expect("accepting");
        assert_eq!([controlled(&application), controlled(&client)], [expected; 2], "{asked}");
        // The agent's own have what the node has, or this.
        assert!(![controlled(&dialled), controlled(&captured)].contains(&"bbr".into()));
        // What leaves the node has what it asked for.
        assert_eq!(controlled(&connect("10.77.0.1:8001")), asked);
        outside.accept().expect("accepting");
    }
}

fn control(socket: &impl AsFd, name: &str) -> nix::Result<()> {
    setsockopt(socket, TcpCongestion, &name.into())
}

fn controlled(socket: &impl AsFd) -> OsString {
    getsockopt(socket, TcpCongestion).expect("TCP_CONGESTION")
}

#[test]
fn the_application_may_listen_where_captured_connections_go() {
    let world = World::new();
    let pod = world.enroll();
    check(&world, &pod, "0.0.0.0:80", "10.77.0.2:80", CLIENT4, CLIENT4);
    check(&world, &pod, "[::]:443", "[fd77::2]:443", CLIENT6, CLIENT6);
}

#[test]
fn an_mptcp_listener_sees_its_client() {
    let world = World::new();
    let pod = world.enroll();
    let server: TcpListener = world.pod.run(|| {
        let socket = raw::mptcp(addr("0.0.0.0:0")).expect("a kernel with MPTCP");
        raw::bind(&socket, addr("0.0.0.0:8000")).expect("binding");
        nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::MAXCONN).expect("listening");
        socket.into()
    });
    let _dialled = dial(&pod.dialler(), "10.77.0.2:8000", CLIENT4).expect("dialling");
    let (accepted, from) = server.accept().expect("accepting");
    assert_eq!(from, addr(CLIENT4));
    assert_eq!(accepted.peer_addr().expect("getpeername"), addr(CLIENT4));
}

#[test]
fn an_accepted_socket_used_again_forgets_its_client() {
    let world = World::new();
    let pod = world.enroll();
    let server = world.pod.run(|| listen("0.0.0.0:8000"));
    let outside = world.out.run(|| listen("10.77.0.1:7000"));
    let dialled = dial(&pod.dialler(), "10.77.0.2:8000", CLIENT4).expect("dialling");
    let (accepted, _) = server.accept().expect("accepting");
    assert_eq!(accepted.peer_addr().expect("getpeername"), addr(CLIENT4));
    raw::disconnect(&accepted).expect("connecting to AF_UNSPEC");
    let dialled_from = dialled.local_addr().expect("getsockname");
    drop((dialled, server));
    raw::connect(&accepted, outside.local_addr().expect("getsockname")).expect("connecting");
    assert_eq!(accepted.peer_addr().expect("getpeername"), addr("10.77.0.1:7000"));
    // Also where it meets the very address that the agent had dialled from.
    raw::disconnect(&accepted).expect("connecting to AF_UNSPEC");
    let _inside = world.pod.run(|| listen(&dialled_from.to_string()));
    raw::connect(&accepted, dialled_from).expect("connecting");
    assert_eq!(accepted.peer_addr().expect("getpeername"), dialled_from);
}

#[test]
fn what_listens_on_loopback_only_is_not_reached() {
    let world = World::new();
    let pod = world.enroll();
    let _server = world.pod.run(|| listen("127.0.0.1:8000"));
    let refused = dial(&pod.dialler(), "10.77.0.2:8000", CLIENT4).expect_err("loopback was reached");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(world.stats().handshakes, 0, "a failed dial leaves its entry");
    // The control.
    check(&world, &pod, "10.77.0.2:8000", "10.77.0.2:8000", CLIENT4, CLIENT4);
}

#[test]
fn a_client_of_the_other_family_is_refused() {
    let world = World::new();
    let pod = world.enroll();
    let refused = dial(&pod.dialler(), "10.77.0.2:8000", CLIENT6).expect_err("families were mixed");
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
}

#[test]
fn an_agent_that_dies_resets_and_one_that_ends_does_not() {
    let world = World::new();
    let pod = world.enroll();
    let server = world.pod.run(|| listen("0.0.0.0:8000"));
    let mut byte = [0];

    let dialled = dial(&pod.dialler(), "10.77.0.2:8000", CLIENT4).expect("dialling");
    let (mut accepted, _) = server.accept().expect("accepting");
    drop(dialled);
    assert_eq!(
        lab::tcp::read(&mut accepted, &mut byte).expect_err("a cut read as an end").kind(),
        ErrorKind::ConnectionReset
    );

    let dialled = dial(&pod.dialler(), "10.77.0.2:8000", CLIENT4).expect("dialling");
    let (mut accepted, _) = server.accept().expect("accepting");
    end_cleanly(&dialled).expect("an orderly end");
    drop(dialled);
    assert_eq!(lab::tcp::read(&mut accepted, &mut byte).expect("an orderly end"), 0);
}

#[test]
fn hbone_from_outside_reaches_the_agent_and_nothing_else_does() {
    let world = World::new();
    let pod = world.enroll();
    // Applications may have every port that a mesh is known for.
    let ports = [15001, 15006, 15008];
    let servers: Vec<TcpListener> = ports
        .iter()
        .map(|port| world.pod.run(|| TcpListener::bind(at("0.0.0.0", *port)).expect("listening")))
        .collect();
    let servers6: Vec<TcpListener> = ports.iter().map(|port| world.pod.run(|| v6_only(*port))).collect();
    let hbone = pod.hbone_listeners().expect("listeners");
    hbone.iter().for_each(blocking);

    for (own, out, hbone, servers) in [(POD4, OUT4, &hbone[0], &servers), (POD6, OUT6, &hbone[1], &servers6)]
    {
        for (port, server) in ports.iter().zip(servers) {
            // From outside.
            let target = at(own, *port);
            let before = world.stats().hbone;
            let mut stream = world.out.run(|| TcpStream::connect(target).expect("connecting from outside"));
            let (accepted, from) =
                if *port == 15008 { hbone.accept() } else { server.accept() }.expect("accepting");
            assert_eq!(accepted.local_addr().expect("getsockname"), target);
            assert_eq!(from.ip(), ip(out));
            assert_eq!(world.stats().hbone - before, u64::from(*port == 15008));
            drop(accepted);
            let _ = lab::tcp::read(&mut stream, &mut [0]);

            // From inside: the application's own.
            let inside = world.pod.run(|| TcpStream::connect(target).expect("connecting from inside"));
            let (_accepted, from) = server.accept().expect("accepting");
            assert_eq!(from, inside.local_addr().expect("getsockname"));
        }
    }
}

fn v6_only(port: u16) -> TcpListener {
    let socket = raw::tcp(addr("[::]:0"));
    raw::set_option(&socket, nix::libc::IPPROTO_IPV6, nix::libc::IPV6_V6ONLY, 1).expect("IPV6_V6ONLY");
    raw::bind(&socket, at("::", port)).expect("binding");
    nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::MAXCONN).expect("listening");
    socket.into()
}

/// A pod that calls its own service is its own peer.
#[test]
fn the_agent_reaches_its_own_listener_of_the_pod() {
    let world = World::new();
    let pod = world.enroll();
    let _application = world.pod.run(|| listen("0.0.0.0:15008"));
    let hbone = pod.hbone_listeners().expect("listeners");
    let runtime = runtime();
    for (own, hbone) in [(POD4, &hbone[0]), (POD6, &hbone[1])] {
        blocking(hbone);
        let dialled = runtime.block_on(pod.dialler().dial_peer(ip(own), at(own, 15008))).expect("dialling");
        let (_accepted, from) = hbone.accept().expect("accepting");
        assert_eq!(from, dialled.local_addr().expect("getsockname"));
        assert_eq!(from.ip(), ip(own));
    }
    assert_eq!(world.stats().handshakes, 0);
}

/// A service outside the mesh may lead to the pod itself, on a port that captured connections use.
#[test]
fn the_agent_reaches_the_pods_own_ports() {
    let world = World::new();
    let pod = world.enroll();
    for own in [POD4, POD6] {
        let target = at(own, 80);
        let server = world.pod.run(|| listen(&target.to_string()));
        let dialled = runtime().block_on(pod.dialler().dial_plain(target)).expect("dialling");
        let (_accepted, from) = server.accept().expect("accepting");
        assert_eq!(from, dialled.local_addr().expect("getsockname"));
        assert_eq!(world.stats().handshakes, 0, "while the connection lives");
    }
    let refused = runtime().block_on(pod.dialler().dial_plain(at(POD4, 81))).expect_err("nobody listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(world.stats().handshakes, 0, "a failed dial leaves its entry");
}

#[test]
fn hbone_to_an_address_that_is_not_the_pods_is_the_applications() {
    let world = World::new();
    let _pod = world.capture().enroll(world.pod.open(), &[ip(POD6)], &Plaintext::pass()).expect("enrolling");
    let server = world.pod.run(|| listen("0.0.0.0:15008"));
    let stream = world.out.run(|| TcpStream::connect(at(POD4, 15008)).expect("connecting from outside"));
    let (_, from) = server.accept().expect("accepting");
    assert_eq!(from, stream.local_addr().expect("getsockname"));
    assert_eq!(world.stats().hbone, 0);
}

#[test]
fn the_agent_is_never_captured() {
    let world = World::new();
    let agent = world.serve();
    let server = world.out.run(|| listen("10.77.0.1:15008"));
    world.capture_all(&["10.77.0.1:15008"]);
    let dialler = agent.pod.dialler();
    let runtime = runtime();
    for source in [Some(ip(POD4)), None] {
        let target = addr("10.77.0.1:15008");
        let dialled = runtime.block_on(async {
            match source {
                Some(source) => dialler.dial_peer(source, target).await,
                None => dialler.dial_plain(target).await,
            }
        });
        let dialled = dialled.expect("dialling");
        let (_accepted, from) = server.accept().expect("accepting");
        assert_eq!(from, dialled.local_addr().expect("getsockname"));
        assert_eq!(from.ip(), ip(POD4));
        assert!(dialled.nodelay().expect("TCP_NODELAY"));
        assert_eq!(dialled.peer_addr().expect("getpeername"), target);
        // A tunnel to another pod lives for long, and a pod's handshakes are few.
        assert_eq!(world.stats().handshakes, 0);
    }
    assert_eq!(world.stats().captured, 0);
    // The control: anybody else is.
    world.pod.run(|| {
        let mut stream = TcpStream::connect(addr("10.77.0.1:15008")).expect("connecting");
        assert_eq!(crate::world::line(&mut stream), "10.77.0.1:15008");
        echo(&mut stream);
    });
    assert_eq!(world.stats().captured, 1);
}

#[test]
fn draining_refuses_what_is_new_and_keeps_what_waits() {
    let world = World::new();
    let pod = world.enroll();
    let listener = pod.outbound_listeners().expect("listeners").remove(0);
    blocking(&listener);
    let mut waiting = world.pod.run(|| TcpStream::connect(addr(MESH4)).expect("connecting"));
    pod.drain().expect("draining");
    let late = world.pod.run(|| TcpStream::connect(addr(MESH4)).expect_err("connected to nobody"));
    assert_eq!(late.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(world.stats().refused_no_agent, 1);
    let (mut accepted, _) = listener.accept().expect("what waited was lost");
    assert_eq!(pod.orig_dst(&accepted).expect("captured").to_string(), MESH4);
    waiting.write_all(b"x").expect("writing");
    accepted.read_exact(&mut [0]).expect("reading");
    eventually("no handshake is left", || world.stats().handshakes == 0);
}
