//! What both applications and an operator see of a connection that goes well.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
};

use lab::{PATIENCE, eventually, tcp};

use crate::world::{PORT, World, open};

const MARKER: &str = "the-marker-that-is-looked-for";

#[test]
fn nothing_of_it_is_on_a_wire_and_no_tls_is_made() {
    let world = World::start();
    let World { client, server, service, mesh, .. } = &world;
    let _echo = server.serve(PORT, tcp::echo).unwrap();
    let outside = mesh.pod("outside").start().unwrap();
    let _plain = outside.serve(PORT, tcp::echo).unwrap();
    let mut captures =
        [client, server, &outside].map(|pod| mesh.capture(pod.netns(), "eth0").unwrap()).into_iter();
    let speak = |target| {
        let mut stream = client.connect(target).unwrap();
        tcp::ping(&mut stream, MARKER).unwrap();
    };
    let targets = [server.at_v4(PORT), server.at_v6(PORT), service.address(80), service.address_v6(80)];
    targets.into_iter().for_each(speak);
    // The control: the same bytes to a pod that is in no mesh.
    speak(outside.at_v4(PORT));
    let [at_client, at_server, at_outside] =
        std::array::from_fn(|_| captures.next().unwrap().stop().unwrap());
    assert!(at_outside.contains(MARKER), "the capture sees nothing at all");
    let addresses = server.manifest().addresses;
    let mut flows = at_client.flows().iter().chain(at_server.flows());
    assert!(
        !flows
            .any(|flow| addresses.contains(&flow.source.ip()) || addresses.contains(&flow.destination.ip())),
        "a packet between the two"
    );
    world.assert_no_tunnel();
}

#[test]
fn both_ends_report_it_and_the_application_sees_the_client() {
    const ANSWER: usize = 100_000;
    let world = World::start();
    let World { client, server, service, agent, .. } = &world;
    let serving = server.serve(PORT, |mut stream: TcpStream| {
        let _ = stream.read_exact(&mut [0]).and_then(|()| stream.write_all(&[7; ANSWER]));
    });
    let serving = serving.unwrap();
    for (number, target) in
        [server.at_v4(PORT), server.at_v6(PORT), service.address(80)].into_iter().enumerate()
    {
        let mut stream = client.connect(target).unwrap();
        let local = stream.local_addr().unwrap();
        stream.write_all(b"?").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!((answer.len(), stream.peer_addr().unwrap()), (ANSWER, target));
        drop(stream);
        assert_eq!(serving.peers()[number], local, "address and port");
        for line in world.lines(local) {
            assert!(line.is_ok(), "{line:?}");
            assert_eq!((line.bytes_sent(), line.bytes_received()), (1, ANSWER as u64));
            assert_eq!(line.source_identity(), Some(client.identity()));
            assert_eq!(line.destination_identity(), Some(server.identity()));
            assert_eq!(line.field("src.workload").as_deref(), Some("client"));
            assert_eq!(line.field("dst.workload").as_deref(), Some("server"));
            assert_eq!(line.field("security").as_deref(), Some("mutual_tls"));
        }
    }
    for reporter in ["source", "destination"] {
        eventually(PATIENCE, || {
            let metrics = agent.metrics().unwrap();
            let labels = [("reporter", reporter), ("connection_security_policy", "mutual_tls")];
            let now = ["connections_opened", "connections_closed", "received_bytes", "sent_bytes"]
                .map(|name| metrics.sum(&format!("istio_tcp_{name}_total"), &labels) as usize);
            if now == [3, 3, 3, 3 * ANSWER] { Ok(()) } else { Err(format!("{reporter}: {now:?}")) }
        });
    }
    eventually(PATIENCE, || agent.metrics().unwrap().sum("culvert_connections_active", &[]) == 0.0);
    world.assert_no_tunnel();
}

#[test]
fn a_half_close_and_a_bulk_transfer_arrive_whole_either_way() {
    let world = World::start();
    let World { client, server, .. } = &world;
    let _up = server.serve(PORT, tcp::checksum).unwrap();
    let _down = server.serve(PORT + 1, tcp::source(64 << 20)).unwrap();
    let _both = server.serve(PORT + 2, tcp::echo).unwrap();
    tcp::upload(client.connect(server.at(PORT)).unwrap(), 64 << 20).unwrap();
    assert_eq!(tcp::download(client.connect(server.at(PORT + 1)).unwrap()).unwrap(), 64 << 20);
    tcp::exchange(client.connect(server.at(PORT + 2)).unwrap(), 16 << 20).unwrap();
    // The client ends first, and hears the rest.
    let mut stream = client.connect(server.at(PORT + 2)).unwrap();
    stream.write_all(MARKER.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, MARKER);
    world.assert_no_tunnel();
}

#[test]
fn a_reset_of_either_side_is_a_reset_for_the_other() {
    let world = World::start();
    let World { client, server, .. } = &world;
    let listener = server.listen(PORT).unwrap();
    for by_client in [true, false] {
        let near = client.connect(server.at(PORT)).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let local = near.local_addr().unwrap();
        // An application that resets at once was never reached.
        far.write_all(b"!").and_then(|()| (&near).read_exact(&mut [0])).unwrap();
        let (resetting, mut hearing) = if by_client { (near, far) } else { (far, near) };
        tcp::reset(resetting).unwrap();
        crate::world::wait_reset(&mut hearing);
        for line in world.lines(local) {
            assert_eq!(line.reason().as_deref(), Some("reset"), "{line:?}");
            let says =
                if by_client { "the client's connection" } else { "the local application's connection" };
            assert!(line.field("error").unwrap().contains(says), "{line:?}");
        }
    }
}

#[test]
fn a_pod_that_calls_itself_by_its_service_needs_no_permission() {
    let world = World::start();
    let World { server, service, .. } = &world;
    let _echo = server.serve(PORT, tcp::echo).unwrap();
    world.apply("nobody", "{}");
    let stream = open(server, service.address(80));
    let local = stream.local_addr().unwrap();
    drop(stream);
    assert!(world.lines(local).iter().all(lab::AccessRecord::is_ok));
    world.assert_no_tunnel();
}

#[test]
fn the_agents_restart_and_its_handover_lose_nothing_that_is_asked_for_afterwards() {
    let world = World::start();
    let World { client, server, agent, mesh, .. } = &world;
    let _echo = server.serve(PORT, tcp::echo).unwrap();
    let mut kept = open(client, server.at(PORT));
    // A successor takes the node over; what the predecessor carries goes on in it.
    let next = mesh.agent("node-a").arg("--take-over").start().unwrap();
    next.wait_ready().unwrap();
    let stream = open(client, server.at(PORT));
    let local = stream.local_addr().unwrap();
    drop(stream);
    for direction in ["outbound", "inbound"] {
        let line = eventually(PATIENCE, || {
            next.access_log()
                .into_iter()
                .find(|line| line.direction() == direction && line.source() == Some(local))
        });
        assert!(line.is_ok() && line.field("same_node").is_some(), "{line:?}");
    }
    tcp::ping(&mut kept, "still here").unwrap();
    agent.begin_terminate();
    tcp::ping(&mut kept, "also while it drains").unwrap();
    drop(kept);
    next.kill9();
    next.restart().unwrap();
    next.wait_ready().unwrap();
    open(client, server.at(PORT));
}
