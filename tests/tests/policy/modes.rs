//! Modes: what becomes of plaintext, and of mutual TLS beside it.

use std::{fs, io::ErrorKind, net::SocketAddr};

use lab::{PATIENCE, Pod, eventually, tcp};

use crate::{
    objects::{allow, deny, from, mode, port_mode, port_modes},
    world::{OTHER_PORT, PORT, World, open, refusal, works},
};

#[test]
fn strict_refuses_plaintext_before_the_application_and_lets_mutual_tls_in() {
    let world = World::start();
    let server = world.server.serve(PORT, tcp::echo).unwrap();
    let targets = [world.server.at_v4(PORT), world.server.at_v6(PORT)];
    // Control: nothing else is in the way.
    for target in targets {
        open(&world.stranger, target);
        open(&world.neighbour, target);
    }
    world.apply(&[mode("strict", "STRICT")]);
    let before = server.accepted();
    for target in targets {
        assert_eq!(refusal(&world.stranger, target), ErrorKind::ConnectionRefused, "from another node");
        assert_eq!(refusal(&world.neighbour, target), ErrorKind::ConnectionRefused, "from the same node");
    }
    assert_eq!(server.accepted(), before, "the application has seen a connection");
    for target in targets {
        open(&world.client, target);
    }
    open(&world.client, world.service.address(80));

    for pod in [&world.stranger, &world.neighbour] {
        let refused = eventually(PATIENCE, || {
            let lines = world.lines_of(pod);
            let refused: Vec<_> = lines
                .into_iter()
                .filter(|line| line.reason().as_deref() == Some("plaintext_refused"))
                .collect();
            (refused.len() == targets.len()).then_some(refused)
        });
        for line in refused {
            assert_eq!(line.field("policy").as_deref(), Some("shop/strict"), "{line:?}");
            assert_eq!(line.field("security").as_deref(), Some("none"), "{line:?}");
            assert_eq!(line.source_identity(), None, "{line:?}");
            assert_eq!(line.field("src.workload").as_deref(), Some(&*pod.name()), "{line:?}");
            assert!(line.destination().is_some_and(|target| targets.contains(&target)), "{line:?}");
        }
    }
    world.wait_verdicts("shop/strict", "deny", "enforced", 4.0);
}

#[test]
fn permissive_takes_plaintext_and_mutual_tls() {
    let world = World::start();
    let _server = world.server.serve(PORT, tcp::echo).unwrap();
    world.apply(&[mode("strict", "STRICT")]);
    assert_eq!(refusal(&world.stranger, world.server.at(PORT)), ErrorKind::ConnectionRefused);
    world.apply(&[mode("permissive", "PERMISSIVE")]);
    open(&world.stranger, world.server.at(PORT));
    let stream = open(&world.client, world.server.at(PORT));
    let line = world.line_from_closed(stream);
    assert_eq!(line.field("security").as_deref(), Some("mutual_tls"));
}

#[test]
fn a_port_has_its_own_mode() {
    let world = World::start();
    let _servers = [PORT, OTHER_PORT].map(|port| world.server.serve(port, tcp::echo).unwrap());
    let (port, other) = (world.server.at(PORT), world.server.at(OTHER_PORT));
    let check = |opened: SocketAddr, closed: SocketAddr| {
        open(&world.stranger, opened);
        assert_eq!(refusal(&world.stranger, closed), ErrorKind::ConnectionRefused);
        open(&world.client, opened);
        open(&world.client, closed);
    };
    world.apply(&[port_mode("one-open", "STRICT", PORT, "PERMISSIVE")]);
    check(port, other);
    world.apply(&[port_mode("one-closed", "PERMISSIVE", PORT, "STRICT")]);
    check(other, port);
    // The namespace's mode is what the workload's inherits, and the port's goes before both.
    world.apply(&[mode("strict", "STRICT"), port_mode("inherits", "UNSET", OTHER_PORT, "DISABLE")]);
    assert_eq!(refusal(&world.stranger, port), ErrorKind::ConnectionRefused);
    open(&world.stranger, other);
}

#[test]
fn more_ports_than_the_kernel_is_told_of_are_the_agents_to_decide() {
    let world = World::start();
    let servers = [PORT, OTHER_PORT].map(|port| world.server.serve(port, tcp::echo).unwrap());
    let (port, other) = (world.server.at(PORT), world.server.at(OTHER_PORT));
    open(&world.stranger, other);
    world.apply(&[port_modes("many", "PERMISSIVE", 9000..=9199, "STRICT")]);
    let before = servers[1].accepted();
    assert_eq!(refusal(&world.stranger, other), ErrorKind::ConnectionReset);
    assert_eq!(servers[1].accepted(), before);
    let line = eventually(PATIENCE, || {
        world.lines_of(&world.stranger).into_iter().find(|line| line.destination() == Some(other))
    });
    assert_eq!(line.reason().as_deref(), Some("plaintext_refused"), "{line:?}");
    assert_eq!(line.field("policy").as_deref(), Some("shop/many"), "{line:?}");
    open(&world.stranger, port);
    open(&world.client, other);
    tcp::ping(&mut world.mesh.node("node-b").connect(other).unwrap(), "probe").unwrap();
}

#[test]
fn disable_makes_peers_send_plaintext() {
    const SECRET: &str = "sent-by-mutual-tls-and-hidden";
    const OPEN: &str = "sent-in-plaintext-on-purpose";
    let world = World::start();
    let _server = world.server.serve(PORT, tcp::echo).unwrap();
    let send = |what: &str, target| {
        let mut stream = world.client.connect(target).unwrap();
        tcp::ping(&mut stream, what).unwrap();
        stream
    };
    let wire = world.mesh.capture_wire().unwrap();
    send(SECRET, world.server.at(PORT));
    world.apply(&[mode("disabled", "DISABLE")]);
    send(&format!("{OPEN}-to-the-pod"), world.server.at(PORT));
    let source = send(&format!("{OPEN}-by-the-service"), world.service.address(80)).local_addr().unwrap();
    let wire = wire.stop().unwrap();
    assert!(!wire.contains(SECRET));
    assert!(wire.contains(format!("{OPEN}-to-the-pod")));
    assert!(wire.contains(format!("{OPEN}-by-the-service")));
    let line =
        eventually(PATIENCE, || world.a.access_log().into_iter().find(|line| line.source() == Some(source)));
    assert_eq!(line.field("security").as_deref(), Some("none"), "{line:?}");
    assert_eq!(line.destination_identity().as_deref(), Some(&*world.server.identity()), "{line:?}");
}

#[test]
fn without_a_policy_that_looks_plaintext_never_meets_the_agent() {
    let world = World::start();
    let server = world.server.serve(PORT, tcp::echo).unwrap();
    let counted = || world.b.metrics().unwrap().sum("istio_tcp_connections_opened_total", &[]);
    let before = counted();
    let direct = open(&world.stranger, world.server.at_v4(PORT));
    assert_eq!(kernel_peers(&world.server, PORT), [direct.local_addr().unwrap()]);
    drop(direct);
    eventually(PATIENCE, || server.open() == 0);
    assert_eq!(counted(), before);
    assert_eq!(world.lines_of(&world.stranger).len(), 0);
    // Control: with a policy that looks at it the agent stands in between, and the application is told of the client.
    world.apply(&[deny("some", &from("ipBlocks", &["192.0.2.0/24"]))]);
    let inspected = open(&world.stranger, world.server.at_v4(PORT));
    // The agent's own end has the client for its peer.
    let peers = kernel_peers(&world.server, PORT);
    assert!(peers.iter().any(|peer| peer.ip().is_loopback()), "{peers:?}");
    assert_eq!(server.peers().last(), Some(&inspected.local_addr().unwrap()));
    eventually(PATIENCE, || counted() == before + 1.0);
}

#[test]
fn a_policy_without_room_for_plaintext_refuses_it_in_the_kernel() {
    let world = World::start();
    let server = world.server.serve(PORT, tcp::echo).unwrap();
    open(&world.stranger, world.server.at(PORT));
    world.apply(&[allow("clients", &from("principals", &["cluster.local/ns/front/sa/client"]))]);
    let before = server.accepted();
    assert_eq!(refusal(&world.stranger, world.server.at(PORT)), ErrorKind::ConnectionRefused);
    assert_eq!(server.accepted(), before);
    open(&world.client, world.server.at(PORT));
    let line = eventually(PATIENCE, || {
        world.lines_of(&world.stranger).into_iter().find(|line| line.reason().is_some())
    });
    assert_eq!(line.reason().as_deref(), Some("policy_denied"));
    let error = line.field("error").unwrap_or_default();
    assert!(error.contains("without an identity") && error.contains("shop/clients"), "{error}");
}

#[test]
fn a_killed_agent_leaves_strict_in_force() {
    let world = World::start();
    let server = world.server.serve(PORT, tcp::echo).unwrap();
    world.apply(&[mode("strict", "STRICT")]);
    let before = server.accepted();
    world.b.kill9();
    assert_eq!(refusal(&world.stranger, world.server.at(PORT)), ErrorKind::ConnectionRefused);
    assert_eq!(refusal(&world.neighbour, world.server.at(PORT)), ErrorKind::ConnectionRefused);
    assert_eq!(server.accepted(), before);
    // Control: the server serves.
    tcp::ping(&mut world.mesh.node("node-b").connect(world.server.at(PORT)).unwrap(), "probe").unwrap();
}

#[test]
fn a_killed_agent_leaves_what_it_inspected_refused() {
    let world = World::start();
    let server = world.server.serve(PORT, tcp::echo).unwrap();
    world.apply(&[deny("some", &from("ipBlocks", &["192.0.2.0/24"]))]);
    open(&world.stranger, world.server.at(PORT));
    let before = server.accepted();
    world.b.kill9();
    assert!(works(&world.stranger, world.server.at(PORT)).is_err());
    assert_eq!(server.accepted(), before);
    world.b.restart().unwrap();
    world.b.wait_ready().unwrap();
    open(&world.stranger, world.server.at(PORT));
}

/// The peers of a pod's established connections at one of its ports, by the kernel's own table, which no program of ours
/// answers for.
fn kernel_peers(pod: &Pod, port: u16) -> Vec<SocketAddr> {
    let table = pod.run(|| fs::read_to_string("/proc/thread-self/net/tcp").unwrap());
    let mapped = pod.run(|| fs::read_to_string("/proc/thread-self/net/tcp6").unwrap());
    table.lines().chain(mapped.lines()).filter_map(|line| established(line, port)).collect()
}

/// Reads a line of /proc/net/tcp or tcp6 (proc_pid_net(5)): `sl local remote state …`, addresses in hexadecimal words of
/// the machine's byte order.
fn established(line: &str, port: u16) -> Option<SocketAddr> {
    let mut fields = line.split_whitespace().skip(1);
    let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
    let at = |end: &str| {
        let (address, port) = end.split_once(':')?;
        // An IPv4-mapped address ends with the IPv4 one.
        let word = u32::from_str_radix(address.get(address.len() - 8..)?, 16).ok()?;
        let address = std::net::Ipv4Addr::from(word.to_ne_bytes());
        Some(SocketAddr::new(address.into(), u16::from_str_radix(port, 16).ok()?))
    };
    const ESTABLISHED: &str = "01";
    (state == ESTABLISHED && at(local)?.port() == port).then(|| at(remote)).flatten()
}
