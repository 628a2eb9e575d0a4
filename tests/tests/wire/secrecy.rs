//! Nothing but TLS crosses between the nodes.

use std::net::SocketAddr;

use lab::{Captured, Pod, tcp};

use crate::world::{PORT, World};

/// What is looked for on the wire: what an application says, and what identities begin with.
const MARKERS: [&str; 2] = ["the-marker-that-is-looked-for", "spiffe://cluster.local"];

/// Sends the markers to each target, an echo, so that they come back as well.
fn exchange(client: &Pod, targets: &[SocketAddr]) {
    for target in targets {
        let mut stream = client.connect(*target).unwrap();
        for marker in MARKERS {
            tcp::ping(&mut stream, marker).unwrap();
        }
    }
}

fn is_seen(captured: &Captured) -> [bool; 2] {
    MARKERS.map(|marker| captured.contains(marker))
}

#[test]
fn only_tls_crosses_between_enrolled_pods() {
    let world = World::start();
    let World { client, server, service, a, b, mesh } = &world;
    let plain_client = mesh.pod("plain-client").on("node-a").start().unwrap();
    let plain_server = mesh.pod("plain-server").on("node-b").start().unwrap();
    let _echo = server.serve(PORT, tcp::echo).unwrap();
    let _plain_echo = plain_server.serve(PORT, tcp::echo).unwrap();

    // The control: the same capture of the same bytes between pods that are in no mesh.
    let capture = mesh.capture_wire().unwrap();
    exchange(&plain_client, &[plain_server.at_v4(PORT), plain_server.at_v6(PORT)]);
    let captured = capture.stop().unwrap();
    assert_eq!(is_seen(&captured), [true, true]);
    assert!(captured.flows_of_port(PORT).all(|flow| flow.tls().is_none()));

    let targets = [server.at_v4(PORT), server.at_v6(PORT), service.address(80), service.address_v6(80)];
    let capture = mesh.capture_wire().unwrap();
    exchange(client, &targets);
    let captured = capture.stop().unwrap();
    assert_eq!(is_seen(&captured), [false, false]);
    assert!(!captured.flows().is_empty());
    for flow in captured.flows() {
        let (source, destination) = (flow.source, flow.destination);
        assert!([source.port(), destination.port()].contains(&15008), "{source} to {destination}");
        let tls = flow.tls().unwrap_or_else(|| panic!("{source} to {destination} is not TLS"));
        assert!(tls.handshake >= 1 && tls.encrypted > 1, "{tls:?}");
    }
    // From the pod to the pod, by either family: not from node to node.
    for (from, to) in [(client.ipv4(), server.ipv4()), (client.ipv6(), server.ipv6())] {
        let mut flows = captured.flows().iter();
        assert!(flows.any(|flow| flow.source.ip() == from && flow.destination == SocketAddr::new(to, 15008)));
    }
    for (agent, direction) in [(a, "outbound"), (b, "inbound")] {
        let log = lab::eventually(lab::PATIENCE, || {
            let log = agent.access_log();
            (log.len() == targets.len()).then_some(log)
        });
        for record in log {
            assert!(record.is_ok() && record.direction() == direction, "{record:?}");
            assert_eq!(record.field("security").as_deref(), Some("mutual_tls"));
            assert_eq!(record.source_identity(), Some(client.identity()));
            assert_eq!(record.destination_identity(), Some(server.identity()));
        }
    }
}
