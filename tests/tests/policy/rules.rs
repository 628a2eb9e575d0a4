//! Rules: by identity, address and port, on mutual TLS and on plaintext alike.

use std::io::ErrorKind;

use lab::{PATIENCE, Pod, eventually, tcp};

use crate::{
    objects::{allow, deny, from, mode, to_ports},
    world::{OTHER_PORT, PORT, World, open, refusal},
};

/// The client may, the other one may not; each by `rules`.
#[track_caller]
fn check_only_the_client(world: &World, name: &str, rules: &str) {
    world.apply(&[allow(name, rules)]);
    open(&world.client, world.server.at(PORT));
    open(&world.client, world.service.address(80));
    assert_eq!(refusal(&world.other, world.server.at(PORT)), ErrorKind::ConnectionReset, "{rules}");
}

#[test]
fn allow_and_deny_go_by_who_the_client_is() {
    let world = World::start();
    let server = world.server.serve(PORT, tcp::echo).unwrap();
    open(&world.other, world.server.at(PORT));
    check_only_the_client(&world, "a", &from("principals", &["cluster.local/ns/front/sa/client"]));
    check_only_the_client(&world, "b", &from("namespaces", &["front"]));
    check_only_the_client(&world, "c", &from("serviceAccounts", &["front/client"]));
    check_only_the_client(&world, "d", &from("notNamespaces", &["back"]));
    let accepted = server.accepted();

    world.apply(&[deny("e", &from("principals", &["*/sa/other"]))]);
    open(&world.client, world.server.at(PORT));
    assert_eq!(refusal(&world.other, world.server.at(PORT)), ErrorKind::ConnectionReset);
    assert_eq!(server.accepted(), accepted + 1);
}

#[test]
fn rules_go_by_the_applications_port_on_tunnels_too() {
    let world = World::start();
    let _servers = [PORT, OTHER_PORT].map(|port| world.server.serve(port, tcp::echo).unwrap());
    open(&world.client, world.server.at(OTHER_PORT));
    world.apply(&[allow("one-port", &to_ports(&["8080"]))]);
    open(&world.client, world.server.at(PORT));
    open(&world.client, world.service.address(80));
    assert_eq!(refusal(&world.client, world.server.at(OTHER_PORT)), ErrorKind::ConnectionReset);
    open(&world.stranger, world.server.at(PORT));
    assert!(refused(&world.stranger, &world, OTHER_PORT));
}

#[test]
fn addresses_decide_on_plaintext_and_tunnels_and_the_application_sees_the_real_client() {
    let world = World::start();
    let server = world.server.serve(PORT, tcp::echo).unwrap();
    let (stranger, other) = (world.stranger.ipv4().to_string(), world.other.ipv4().to_string());
    world.apply(&[deny("two", &from("ipBlocks", &[&stranger, &other]))]);
    let before = server.accepted();
    assert!(refused(&world.stranger, &world, PORT));
    assert_eq!(refusal(&world.other, world.server.at_v4(PORT)), ErrorKind::ConnectionReset);
    assert_eq!(server.accepted(), before);
    let line = eventually(PATIENCE, || world.lines_of(&world.stranger).pop());
    assert_eq!(line.reason().as_deref(), Some("policy_denied"));
    assert_eq!(line.field("policy").as_deref(), Some("shop/two"));

    // Who is not listed is let in, its IPv6 address too, and is shown as it is.
    for target in [world.server.at_v4(PORT), world.server.at_v6(PORT)] {
        for pod in [&world.neighbour, &world.client] {
            let stream = open(pod, target);
            assert_eq!(server.peers().last(), Some(&stream.local_addr().unwrap()));
        }
    }
    open(&world.stranger, world.server.at_v6(PORT));
    // Plaintext that was looked at is counted as what it is.
    let plaintext = [("reporter", "destination"), ("connection_security_policy", "none")];
    eventually(PATIENCE, || {
        world.b.metrics().unwrap().sum("istio_tcp_connections_opened_total", &plaintext) == 3.0
    });
}

#[test]
fn half_closes_and_bulk_survive_inspection() {
    let world = World::start();
    let _server = world.server.serve(PORT, tcp::echo).unwrap();
    world.apply(&[deny("some", &from("ipBlocks", &["192.0.2.0/24"]))]);
    tcp::exchange(world.stranger.connect(world.server.at_v4(PORT)).unwrap(), 4 << 20).unwrap();
    tcp::exchange(world.stranger.connect(world.server.at_v6(PORT)).unwrap(), 4 << 20).unwrap();
}

#[test]
fn a_pod_speaks_to_itself_whatever_the_policies_say() {
    let world = World::start();
    let _server = world.server.serve(PORT, tcp::echo).unwrap();
    world.apply(&[allow("clients", &from("principals", &["cluster.local/ns/front/sa/client"]))]);
    open(&world.server, world.service.address(80));
    open(&world.server, world.server.at(PORT));
    open(&world.server, ([127, 0, 0, 1], PORT).into());
    assert_eq!(refusal(&world.other, world.service.address(80)), ErrorKind::ConnectionReset);
}

#[test]
fn a_pod_speaks_to_itself_in_plaintext_where_its_mode_is_disable() {
    let world = World::start();
    // Below 1024, where captured connections have their ports too.
    let _server = world.server.serve(80, tcp::echo).unwrap();
    let service =
        world.mesh.service("low").namespace("shop").select("app", "server").port(80, 80).apply().unwrap();
    eventually(PATIENCE, || crate::world::works(&world.server, service.address(80)));
    world.apply(&[mode("disable", "DISABLE"), allow("nobody", "[]")]);
    open(&world.server, service.address(80));
    open(&world.server, service.address_v6(80));
    open(&world.server, world.server.at(80));
    assert_eq!(refusal(&world.stranger, world.server.at(80)), ErrorKind::ConnectionRefused);
}

#[test]
fn what_cannot_be_read_allows_nobody() {
    let world = World::start();
    let _server = world.server.serve(PORT, tcp::echo).unwrap();
    open(&world.client, world.server.at(PORT));
    // Ports are strings.
    world.apply(&[allow("typo", "[{to: [{operation: {ports: [8080]}}]}]")]);
    assert_eq!(refusal(&world.client, world.server.at(PORT)), ErrorKind::ConnectionReset);
    assert!(refused(&world.stranger, &world, PORT));
    eventually(PATIENCE, || world.b.logs().contains("shop/typo"));
    world.apply(&[deny("harmless", "[]")]);
    open(&world.client, world.server.at(PORT));
    open(&world.stranger, world.server.at(PORT));
    world.apply(&[mode("typo-too", "STRIKT")]);
    open(&world.client, world.server.at(PORT));
    assert_eq!(refusal(&world.stranger, world.server.at(PORT)), ErrorKind::ConnectionRefused);
    eventually(PATIENCE, || world.b.ready().is_ok() && readiness(&world).contains("shop/typo-too"));
}

fn readiness(world: &World) -> String {
    world.b.get("/healthz/ready").unwrap().body
}

/// Whether plaintext is refused: by the kernel at once, or by the agent that looked at it.
fn refused(pod: &Pod, world: &World, port: u16) -> bool {
    [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset]
        .contains(&refusal(pod, world.server.at_v4(port)))
}
