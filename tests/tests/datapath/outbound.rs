//! What a captured application sees.

use std::net::TcpStream;

use crate::world::{Agent, MESH4, MESH6, POD4, POD6, World, addr, echo, ip, line};

/// Connects from the pod and checks both ends' view.
fn check(world: &World, agent: &Agent, to: &str, own: &str, original: &str) {
    let before = world.stats();
    world.pod.run(|| {
        let mut stream = TcpStream::connect(addr(to)).unwrap_or_else(|error| panic!("connecting to {to}: {error}"));
        assert_eq!(stream.peer_addr().expect("getpeername"), addr(to));
        assert_eq!(stream.local_addr().expect("getsockname").ip(), ip(own));
        assert_eq!(line(&mut stream), original);
        echo(&mut stream);
    });
    let after = world.stats();
    assert_eq!(after.captured, before.captured + 1);
    assert_eq!(after.handshakes, 0);
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
