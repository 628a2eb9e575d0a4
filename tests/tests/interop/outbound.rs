//! The peer is asked: how our agent asks, and what becomes of the answers.

use std::{
    collections::HashSet,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr},
    thread,
};

use lab::{PATIENCE, Peer, eventually, tcp};
use serde_json::{Value, json};

use crate::server::{Outbound, PORT, behave, ending};

#[test]
fn requests_have_a_method_and_an_authority_and_hints() {
    let world = Outbound::start(1);
    let pod = &world.pods[0];
    let service = world.mesh.service("server").select("app", "server").port(80, PORT).apply().unwrap();
    for (peer, target, authority) in [
        (pod.ipv4(), pod.at_v4(PORT), pod.at_v4(PORT)),
        (pod.ipv6(), pod.at_v6(PORT), pod.at_v6(PORT)),
        (pod.ipv4(), service.address(80), pod.at_v4(PORT)),
    ] {
        let server = world.serve(0, peer);
        // The service's manifest may be younger than the agent's view of it.
        let mut stream = eventually(PATIENCE, || world.client.connect(target));
        tcp::ping(&mut stream, "hello").unwrap();

        let request = server.wait("request", |_| true).unwrap();
        let headers = headers(&request);
        let source = tcp::canonical(stream.local_addr().unwrap());
        assert_eq!(headers[0], (":method", "CONNECT"));
        assert_eq!(headers[1], (":authority", authority.to_string().as_str()));
        let forwarded = format!("for=\"{source}\"");
        for (name, value) in &headers[2..] {
            match *name {
                "forwarded" => assert_eq!(*value, forwarded),
                "baggage" => {
                    assert!(value.contains("k8s.namespace.name=default,"), "{value}");
                    assert!(value.contains("service.name=client"), "{value}");
                }
                other => panic!("a header {other}: {value}"),
            }
        }

        let connected = &server.events("connected")[0];
        assert_eq!(connected["uris"], json!([world.client.identity()]));
        assert_eq!((&connected["version"], &connected["alpn"]), (&json!("TLSv1.3"), &json!("h2")));
        assert_eq!(connected["sni"], Value::Null);
        assert_eq!(connected["peer"][0], source.ip().to_string());
        check_settings(&server.wait("settings", |_| true).unwrap()["settings"]);
        drop(stream);
    }
}

fn headers(request: &Value) -> Vec<(&str, &str)> {
    let headers = request["headers"].as_array().unwrap().iter();
    headers.map(|pair| (pair[0].as_str().unwrap(), pair[1].as_str().unwrap())).collect()
}

/// RFC 9113 §6.5.2, and hbone.md's numbers as the most.
fn check_settings(settings: &Value) {
    let number = |code: &str| settings[code].as_u64();
    assert_eq!(number("2"), Some(0), "push is off: {settings}");
    assert!((65_535..=4 << 20).contains(&number("4").unwrap()), "{settings}");
    assert!((16_384..=1 << 20).contains(&number("5").unwrap()), "{settings}");
    assert_eq!(number("6"), Some(16 << 10), "{settings}");
}

#[test]
fn bytes_and_half_closes_pass_both_ways() {
    let world = Outbound::start(1);
    let target = world.pods[0].at_v4(PORT);
    let server = world.serve(0, target.ip());
    tcp::exchange(world.connect(target), 4 << 20).unwrap();
    let mut stream = world.connect(target);
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "question");
    // One connection carried both.
    eventually(PATIENCE, || server.events("end").len() == 2);
    assert_eq!(server.events("connected").len(), 1);
    assert!(server.events("reset").is_empty());
}

#[test]
fn answers_that_are_no_tunnel_are_resets_with_a_reason() {
    let cases = [
        (json!({"as": "status", "status": 401}), "peer_denied", "401"),
        (json!({"as": "status", "status": 503}), "peer_unavailable", "503"),
        (json!({"as": "status", "status": 400}), "protocol", "400"),
        (json!({"as": "status", "status": 302}), "protocol", "302"),
        (json!({"as": "reset"}), "reset", "reset the request"),
        (json!({"as": "refuse"}), "reset", "reset the request"),
        (json!({"as": "goaway"}), "tunnel_lost", "ended before it answered"),
        (json!({"as": "garbage"}), "protocol", "does not speak HBONE"),
        (json!({"as": "close"}), "tunnel_lost", "ended before it answered"),
        (json!({"as": "silent"}), "timeout", "the answer to CONNECT"),
    ];
    let world = Outbound::start(cases.len() + 1);
    // At once: one of them lasts as long as the agent's patience.
    thread::scope(|scope| {
        for (number, (behaviour, reason, says)) in cases.into_iter().enumerate() {
            let world = &world;
            scope.spawn(move || {
                let target = world.pods[number].at_v4(PORT);
                let mut server = world.serve(number, target.ip());
                behave(&mut server, behaviour.clone());
                assert_eq!(ending(world.try_connect(target)), Err(ErrorKind::ConnectionReset), "{behaviour}");
                let record = world.record(target);
                let error = record.field("error").unwrap_or_default();
                println!("{behaviour}: {error}");
                assert_eq!(record.reason().as_deref(), Some(reason), "{behaviour}: {error}");
                assert!(error.contains(says), "{behaviour}: {error}");
            });
        }
    });
    // The control, and nobody at all.
    let target = world.pods.last().unwrap().at_v4(PORT);
    assert_eq!(ending(world.try_connect(target)), Err(ErrorKind::ConnectionReset));
    assert_eq!(world.record(target).reason().as_deref(), Some("dial_failed"));
    let _server = world.serve(world.pods.len() - 1, target.ip());
    tcp::ping(&mut world.connect(target), "hello").unwrap();
}

#[test]
fn a_complete_answer_is_delivered_although_the_peer_takes_no_more() {
    const BYTES: usize = 900 << 10;
    let world = Outbound::start(1);
    let target = world.pods[0].at_v4(PORT);
    let mut server = world.serve(0, target.ip());
    // Within the stream's window and beyond what the kernel takes for an application that does not read.
    behave(&mut server, json!({"as": "answer", "bytes": BYTES}));
    let mut stream = world.connect(target);
    server.wait("pong", |_| true).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer.len(), BYTES);
    eventually(PATIENCE, || stream.write(b"more").is_err());
    assert_eq!(world.record(target).reason().as_deref(), Some("reset"));
}

#[test]
fn a_tunnel_that_is_cut_or_reset_is_a_reset_and_never_an_end_of_file() {
    let commands = [
        (json!({"do": "cut", "how": "fin"}), "tunnel_lost"),
        (json!({"do": "cut", "how": "tls"}), "tunnel_lost"),
        (json!({"do": "cut", "how": "rst"}), "tunnel_lost"),
        (json!({"do": "reset"}), "reset"),
    ];
    let world = Outbound::start(commands.len());
    for (number, (command, reason)) in commands.iter().enumerate() {
        let target = world.pods[number].at_v4(PORT);
        let mut server = world.serve(number, target.ip());
        let mut stream = world.connect(target);
        tcp::ping(&mut stream, "half a transfer").unwrap();
        server.tell(command).unwrap();
        let error = tcp::read(&mut stream, &mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{command}");
        assert_eq!(world.record(target).reason().as_deref(), Some(*reason), "{command}");
        // The next connection is none the worse.
        if *reason == "tunnel_lost" {
            tcp::ping(&mut world.connect(target), "hello").unwrap();
            eventually(PATIENCE, || server.events("connected").len() == 2);
        }
    }
}

#[test]
fn an_application_that_resets_or_ends_is_told_to_the_peer() {
    let world = Outbound::start(1);
    let target = world.pods[0].at_v4(PORT);
    let mut server = world.serve(0, target.ip());
    behave(&mut server, json!({"as": "hold"}));
    let stream = world.connect(target);
    server.wait("request", |_| true).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    server.wait("end", |_| true).unwrap();
    assert!(server.events("reset").is_empty());
    tcp::reset(world.connect(target)).unwrap();
    let reset = server.wait("reset", |_| true).unwrap();
    // CANCEL, RFC 9113 §7.
    assert_eq!((&reset["code"], &reset["by_peer"]), (&json!(8), &json!(true)));
    drop(stream);
}

#[test]
fn goaway_moves_new_streams_to_another_connection_and_spares_the_old() {
    let world = Outbound::start(1);
    let target = world.pods[0].at_v4(PORT);
    let mut server = world.serve(0, target.ip());
    let mut old = world.connect(target);
    tcp::ping(&mut old, "before").unwrap();
    server.tell(&json!({"do": "goaway"})).unwrap();
    let mut new = eventually(PATIENCE, || {
        let mut stream = world.connect(target);
        tcp::ping(&mut stream, "after").unwrap();
        (server.events("connected").len() == 2).then_some(stream)
    });
    tcp::ping(&mut old, "still there").unwrap();
    tcp::ping(&mut new, "as well").unwrap();
}

#[test]
fn the_hundred_and_first_stream_opens_a_second_connection() {
    // Each thread has tunnels of its own.
    let world = Outbound::start_with(1, &["--threads", "1"]);
    let target = world.pods[0].at_v4(PORT);
    let server = world.serve(0, target.ip());
    let open = || {
        let mut stream = world.connect(target);
        tcp::ping(&mut stream, "hello").unwrap();
        stream
    };
    let mut streams: Vec<_> = (0..100).map(|_| open()).collect();
    eventually(PATIENCE, || server.events("request").len() == 100);
    assert_eq!(connections(&server), HashSet::from([1]));
    streams.push(open());
    eventually(PATIENCE, || connections(&server) == HashSet::from([1, 2]));
    assert_eq!(server.events("connected").len(), 2);
    for stream in &mut streams {
        tcp::ping(stream, "again").unwrap();
    }
}

/// Which of the server's connections have had requests.
fn connections(server: &Peer) -> HashSet<u64> {
    server.events("request").iter().map(|request| request["connection"].as_u64().unwrap()).collect()
}

#[test]
fn tunnels_of_two_pods_of_one_identity_are_never_shared() {
    let world = Outbound::start(1);
    let target: SocketAddr = world.pods[0].at_v4(PORT);
    let twin = world.mesh.pod("twin").on("node-a").service_account("client").enrolled().start().unwrap();
    let server = world.serve(0, target.ip());
    tcp::ping(&mut world.connect(target), "hello").unwrap();
    // Until its agent has taken the twin in, it speaks plaintext to a port that is closed.
    let mut stream = eventually(PATIENCE, || twin.connect(target));
    tcp::ping(&mut stream, "hello").unwrap();
    let peers =
        || server.events("connected").iter().map(|event| event["peer"][0].clone()).collect::<Vec<_>>();
    eventually(PATIENCE, || peers() == [json!(world.client.ipv4()), json!(twin.ipv4())]);
}
