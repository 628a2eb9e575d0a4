//! Connections that live while something changes that they depend on: policy, a certificate, a pod.

use std::net::SocketAddr;

use lab::{PATIENCE, Pod, eventually, tcp};

use crate::world::{PORT, World, open, wait_reset};

fn allow(pods: &[&Pod]) -> String {
    let of = |pod: &&Pod| pod.identity().trim_start_matches("spiffe://").to_owned();
    let principals: Vec<_> = pods.iter().map(of).collect();
    format!("{{rules: [{{from: [{{source: {{principals: {principals:?}}}}}]}}]}}")
}

/// The reasons of both ends' lines: the source's, then the destination's.
#[track_caller]
fn reasons(world: &World, client: SocketAddr) -> [String; 2] {
    world.lines(client).map(|line| line.reason().unwrap_or_default())
}

#[test]
fn a_change_of_policy_cuts_what_it_permits_no_longer_and_nothing_else() {
    let world = World::start();
    let World { client, other, server, agent, .. } = &world;
    let echo = server.serve(PORT, tcp::echo).unwrap();
    world.apply("both", &allow(&[client, other]));
    let (mut kept, mut lost) = (open(client, server.at(PORT)), open(other, server.at(PORT)));
    let address = lost.local_addr().unwrap();
    world.apply("one", &allow(&[client]));
    wait_reset(&mut lost);
    // The application has lost it too.
    eventually(PATIENCE, || echo.open() == 1);
    let [source, destination] = world.lines(address);
    assert_eq!(destination.reason().as_deref(), Some("policy_revoked"), "{destination:?}");
    assert_eq!(source.reason().as_deref(), Some("reset"), "{source:?}");
    for line in [&source, &destination] {
        assert!(line.field("error").is_some_and(|error| error.contains("default/one")), "{line:?}");
        assert_eq!(line.bytes_sent(), "hello".len() as u64);
    }
    let denied = [("policy", "none"), ("verdict", "deny"), ("mode", "enforced")];
    eventually(PATIENCE, || agent.metrics().unwrap().sum("culvert_policy_verdicts_total", &denied) == 1.0);
    tcp::ping(&mut kept, "still here").unwrap();
    world.assert_no_tunnel();
}

#[test]
fn a_revoked_certificate_of_either_end_cuts_its_connections_and_no_others() {
    let mut lists = None;
    let world = World::with(|mesh| {
        let file = mesh.directory().join("lists.pem");
        mesh.revoke(&file, &[]).unwrap();
        let args = vec!["--crl".to_owned(), file.display().to_string()];
        lists = Some(file);
        args
    });
    let World { client, other, server, agent, mesh, .. } = &world;
    let lists = lists.unwrap();
    let echo = server.serve(PORT, tcp::echo).unwrap();
    let (mut cut, mut kept) = (open(client, server.at(PORT)), open(other, server.at(PORT)));
    let address = cut.local_addr().unwrap();

    let mut revoked = vec![agent.serial("client").unwrap()];
    mesh.revoke(&lists, &revoked).unwrap();
    wait_reset(&mut cut);
    eventually(PATIENCE, || echo.open() == 1);
    assert_eq!(reasons(&world, address), ["bad_certificate", "bad_certificate"]);
    let says = world.line("inbound", address).field("error").unwrap();
    assert!(says.contains("the peer's certificate that it was made with was revoked"), "{says}");
    eventually(PATIENCE, || agent.logs().contains("the connections of two pods of this node end"));
    // The agent has it replaced.
    eventually(PATIENCE, || agent.serial("client").unwrap() != revoked[0]);
    eventually(PATIENCE, || {
        let mut stream = client.connect(server.at(PORT)).map_err(|error| error.to_string())?;
        tcp::ping(&mut stream, "with a new one").map_err(|error| error.to_string())
    });
    tcp::ping(&mut kept, "the other goes on").unwrap();

    let address = kept.local_addr().unwrap();
    revoked.push(agent.serial("server").unwrap());
    mesh.revoke(&lists, &revoked).unwrap();
    wait_reset(&mut kept);
    assert_eq!(reasons(&world, address), ["bad_certificate", "bad_certificate"]);
    world.assert_no_tunnel();
}

#[test]
fn no_connection_outlives_its_certificates_and_the_next_has_renewed_ones() {
    let world = World::with(|_| vec!["--certificate-lifetime".to_owned(), "20s".to_owned()]);
    let World { client, server, .. } = &world;
    let _echo = server.serve(PORT, tcp::echo).unwrap();
    let mut stream = open(client, server.at(PORT));
    let address = stream.local_addr().unwrap();
    eventually(2 * PATIENCE, || tcp::ping(&mut stream, "a transfer that takes its time").is_err());
    let mut found = reasons(&world, address);
    found.sort();
    // Whichever of the two certificates is the older: the one end's own, and so the other end's peer's.
    assert_eq!(found, ["bad_certificate", "no_certificate"]);
    for line in world.lines(address) {
        assert!(line.field("error").unwrap().contains("expired at"), "{line:?}");
    }
    open(client, server.at(PORT));
    world.assert_no_tunnel();
}

#[test]
fn the_end_of_either_pod_ends_the_connection_and_both_lines_say_so() {
    let world = World::start();
    let World { client, other, server, .. } = &world;
    let echo = server.serve(PORT, tcp::echo).unwrap();
    let stream = open(other, server.at(PORT));
    let address = stream.local_addr().unwrap();
    other.delete().unwrap();
    assert_eq!(reasons(&world, address), ["pod_gone", "pod_gone"]);
    eventually(PATIENCE, || echo.open() == 0);

    let mut to = open(client, server.at(PORT));
    let address = to.local_addr().unwrap();
    server.delete().unwrap();
    wait_reset(&mut to);
    assert_eq!(reasons(&world, address), ["pod_gone", "pod_gone"]);
}
