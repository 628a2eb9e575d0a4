//! The addresses that the two applications see are those that they would see without the mesh.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
};

use lab::{Mesh, Pod};

use crate::{
    connects::{Connect, WAYS},
    world::{PORT, World},
};

/// What both ends of one connection say of it, exactly as the kernel says it to them.
#[derive(Debug, Eq, PartialEq)]
struct Seen {
    client_peer: SocketAddr,
    client_local: SocketAddr,
    accepted: SocketAddr,
    server_peer: SocketAddr,
    server_local: SocketAddr,
}

/// Connects, exchanges a byte each way, and asks both ends for both names.
fn observe(client: &Pod, target: SocketAddr, listener: &TcpListener, connect: Connect) -> Seen {
    let mut stream = client.run(|| connect(target)).unwrap_or_else(|error| panic!("to {target}: {error}"));
    let client_peer = stream.peer_addr().unwrap();
    stream.write_all(b"?").unwrap();
    let (mut accepted, address) = listener.accept().unwrap();
    let mut byte = [0];
    accepted.read_exact(&mut byte).unwrap();
    accepted.write_all(b"!").unwrap();
    stream.set_read_timeout(Some(lab::PATIENCE)).unwrap();
    stream.read_exact(&mut byte).unwrap();
    // Not another name now than before.
    assert_eq!(stream.peer_addr().unwrap(), client_peer);
    Seen {
        client_peer,
        client_local: stream.local_addr().unwrap(),
        accepted: address,
        server_peer: accepted.peer_addr().unwrap(),
        server_local: accepted.local_addr().unwrap(),
    }
}

/// As a socket of both families writes an IPv4 address.
fn mapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
        v6 => v6,
    }
}

/// Checks what both ends of a connection to `target` see, written as each socket's family has it.
fn check(client: &Pod, server: &Pod, target: SocketAddr, listener: &TcpListener, connect: Connect) {
    let both = listener.local_addr().unwrap().is_ipv6();
    let v4 = target.ip().to_canonical().is_ipv4();
    let (from, to) = if v4 { (client.ipv4(), server.ipv4()) } else { (client.ipv6(), server.ipv6()) };
    let seen = observe(client, target, listener, connect);
    let as_asked = |address| if target.is_ipv6() { mapped(address) } else { address };
    let as_served = |address| if both { mapped(address) } else { address };
    let source = SocketAddr::new(as_served(from), seen.client_local.port());
    let expected = Seen {
        client_peer: target,
        client_local: SocketAddr::new(as_asked(from), seen.client_local.port()),
        accepted: source,
        server_peer: source,
        server_local: SocketAddr::new(as_served(to), PORT),
    };
    assert_eq!(seen, expected, "to {target}");
    assert!(seen.client_local.port() >= 1024);
}

/// The same address as an IPv6 socket writes it.
fn as_mapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(mapped(address.ip()), address.port())
}

#[test]
fn both_ends_see_pod_addresses_whatever_way_the_client_connects() {
    let world = World::start();
    let World { client, server, service, a, .. } = &world;
    let listener = server.listen(PORT).unwrap();
    let targets = [
        server.at_v4(PORT),
        server.at_v6(PORT),
        as_mapped(server.at_v4(PORT)),
        service.address(80),
        service.address_v6(80),
        as_mapped(service.address(80)),
    ];
    for (name, connect) in WAYS {
        println!("{name}");
        for target in targets {
            check(client, server, target, &listener, connect);
        }
    }
    drop(listener);

    // A server of one family is told of that family.
    for address in [IpAddr::from(Ipv4Addr::UNSPECIFIED), server.ipv4(), server.ipv6()] {
        let listener = server.netns().listen_at(SocketAddr::new(address, PORT)).unwrap();
        let target = if address.is_ipv4() { server.at_v4(PORT) } else { server.at_v6(PORT) };
        check(client, server, target, &listener, TcpStream::connect::<SocketAddr>);
    }

    // None of it went past the mesh.
    let connections = WAYS.len() * targets.len() + 3;
    lab::eventually(lab::PATIENCE, || a.access_log().len() == connections);
    assert!(
        a.access_log().iter().all(|record| record.is_from(client.ipv4()) || record.is_from(client.ipv6()))
    );
}

#[test]
fn pods_of_one_family_see_their_own_addresses() {
    let mesh = Mesh::new().unwrap();
    let pod = |name: &str, node: &str| mesh.pod(name).on(node).enrolled();
    let pairs = [
        (pod("client4", "node-a").ipv4().start().unwrap(), pod("server4", "node-b").ipv4().start().unwrap()),
        (pod("client6", "node-a").ipv6().start().unwrap(), pod("server6", "node-b").ipv6().start().unwrap()),
    ];
    let agents = ["node-a", "node-b"].map(|node| mesh.agent(node).start().unwrap());
    for agent in &agents {
        agent.wait_ready().unwrap();
    }
    for (client, server) in &pairs {
        let listener = server.listen(PORT).unwrap();
        check(client, server, server.at(PORT), &listener, TcpStream::connect::<SocketAddr>);
    }
    // A pod of one family has no way to the other's address, and is told so as without the mesh.
    let (client4, server6) = (&pairs[0].0, &pairs[1].1);
    let outside = mesh.pod("outside").on("node-a").ipv4().start().unwrap();
    let errors = [&outside, client4].map(|pod| pod.connect(server6.at(PORT)).unwrap_err().raw_os_error());
    assert_eq!(errors[0], errors[1]);
}

/// Each address has tunnels of its own: a client in another's tunnel would be seen under that one's address.
#[test]
fn a_pod_of_two_addresses_is_seen_under_the_one_that_it_connects_from() {
    let mesh = Mesh::new().unwrap();
    let client = mesh.pod("client").on("node-a").enrolled().start().unwrap();
    let second: IpAddr = "10.1.200.2".parse().unwrap();
    client.sh(&format!("ip addr add {second}/32 dev eth0")).unwrap();
    let mut ip = mesh.node("node-a").command("ip");
    let route = ["route", "add", &second.to_string(), "via", &client.ipv4().to_string()];
    assert!(ip.args(route).status().unwrap().success());
    client.update(|pod| pod.addresses.push(second)).unwrap();
    let server = mesh.pod("server").on("node-b").enrolled().start().unwrap();
    let agents = ["node-a", "node-b"].map(|node| mesh.agent(node).start().unwrap());
    for agent in &agents {
        agent.wait_ready().unwrap();
    }
    let _who = server.serve(PORT, lab::tcp::who).unwrap();
    for address in [client.ipv4(), second] {
        let stream = client.run(|| crate::connects::bound(address, server.at_v4(PORT))).unwrap();
        assert_eq!(stream.local_addr().unwrap().ip(), address);
        assert_eq!(lab::tcp::ask_who(stream).unwrap().ip(), address);
    }
}

/// What differs from plain TCP is that connect succeeds when the agent takes it, and a later failure is a
/// reset, never an end of file.
#[test]
fn a_closed_port_is_a_reset_after_connect_instead_of_a_refusal() {
    let world = World::start();
    let World { client, server, a, b, mesh, .. } = &world;
    let outside = mesh.pod("outside").on("node-a").start().unwrap();
    let plain = mesh.pod("plain").on("node-b").start().unwrap();
    let refused = |error: std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
    // Without the mesh; and to a pod outside of it also from within.
    assert!(refused(outside.connect(plain.at_v4(PORT)).unwrap_err()));
    assert!(refused(client.connect(plain.at_v4(PORT)).unwrap_err()));

    for target in [server.at_v4(PORT), server.at_v6(PORT)] {
        // The reset may be quicker than the return of `connect`.
        let ending = client.connect(target).and_then(|mut stream| {
            stream.set_read_timeout(Some(lab::PATIENCE))?;
            lab::tcp::read(&mut stream, &mut [0])
        });
        assert_eq!(ending.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
    for (agent, reason) in [(a, "peer_unavailable"), (b, "dial_failed")] {
        let log = lab::eventually(lab::PATIENCE, || {
            let log = agent.access_log();
            (log.len() == 2).then_some(log)
        });
        assert!(log.iter().all(|record| record.reason().as_deref() == Some(reason)), "{log:?}");
    }
}

#[test]
fn a_second_connect_changes_nothing() {
    let world = World::start();
    let World { client, server, service, .. } = &world;
    let _echo = server.serve(PORT, lab::tcp::echo).unwrap();
    let mut stream = client.run(|| TcpStream::connect(server.at_v4(PORT))).unwrap();
    for other in [service.address(80), SocketAddr::new(Ipv4Addr::new(192, 0, 2, 1).into(), 80)] {
        let error = client.run(|| crate::connects::again(&stream, other)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EISCONN));
        assert_eq!(stream.peer_addr().unwrap(), server.at_v4(PORT));
    }
    lab::tcp::ping(&mut stream, "still there").unwrap();
}

/// Under the redirected address the agent's end of a captured connection has a port that servers are fond of.
#[test]
fn captured_connections_leave_every_port_to_the_pods_own_servers() {
    let world = World::start();
    let World { client, server, .. } = &world;
    let _echo = server.serve(PORT, lab::tcp::echo).unwrap();
    let mut streams: Vec<_> = (0..20).map(|_| client.connect(server.at_v4(PORT)).unwrap()).collect();
    for stream in &mut streams {
        lab::tcp::ping(stream, "hello").unwrap();
    }
    // And where the server ends first, it stays in TIME_WAIT for a minute.
    let _who = server.serve(PORT + 1, lab::tcp::who).unwrap();
    for _ in 0..20 {
        lab::tcp::ask_who(client.connect(server.at_v4(PORT + 1)).unwrap()).unwrap();
    }
    let ports = [ESTABLISHED, TIME_WAIT].map(|state| {
        lab::eventually(lab::PATIENCE, || {
            let ports = client.run(|| privileged_local_ports(state));
            (!ports.is_empty()).then_some(ports)
        })
    });
    for port in ports.concat() {
        let listener = client.listen(port).unwrap_or_else(|error| panic!("{port}: {error}"));
        drop(listener);
    }
    for stream in &mut streams {
        lab::tcp::ping(stream, "still there").unwrap();
    }
}

/// As /proc/net/tcp has them (include/net/tcp_states.h).
const ESTABLISHED: &str = "01";
const TIME_WAIT: &str = "06";

/// The ports below 1024 that connections of the calling thread's namespace have at their own end.
fn privileged_local_ports(wanted: &str) -> Vec<u16> {
    let table = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let ports = table.lines().skip(1).filter_map(|line| {
        // `sl local_address rem_address st …`, in hexadecimal.
        let mut fields = line.split_whitespace().skip(1);
        let (local, _, state) = (fields.next()?, fields.next()?, fields.next()?);
        let port = u16::from_str_radix(local.split_once(':')?.1, 16).ok()?;
        (state == wanted && port < 1024).then_some(port)
    });
    ports.collect()
}
