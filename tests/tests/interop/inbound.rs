//! The peer asks: what our agent answers, and what it delivers.

use lab::{eventually, tcp};
use serde_json::json;

use crate::client::{IDENTITY, Inbound, PORT};

#[test]
fn the_server_says_what_hbone_says() {
    let world = Inbound::start();
    let client = world.connect(world.server.ipv4());
    let connected = &client.peer.events("connected")[0];
    assert_eq!(connected["version"], "TLSv1.3");
    assert_eq!(connected["alpn"], "h2");
    assert_eq!(connected["uris"], json!([world.server.identity()]));
    assert!(
        ["TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256"].contains(&connected["cipher"].as_str().unwrap())
    );

    let settings = client.peer.wait("settings", |_| true).unwrap()["settings"].clone();
    let number = |code: &str| settings[code].as_u64();
    // RFC 9113 §6.5.2: concurrent streams, window, frame, header list.
    assert_eq!(number("3"), Some(200));
    assert!((65_535..=4 << 20).contains(&number("4").unwrap()), "{settings}");
    assert!((16_384..=1 << 20).contains(&number("5").unwrap()), "{settings}");
    assert_eq!(number("6"), Some(64 << 10));
}

#[test]
fn requests_are_delivered_whatever_else_they_carry() {
    let world = Inbound::start();
    let echo = world.server.serve(PORT, tcp::echo).unwrap();
    let peer = world.peer.ipv4();
    let target = world.server.at_v4(PORT).to_string();
    let mut client = world.connect(world.server.ipv4());

    // The client's port is shown where the peer tells it truly; else any.
    let forwarded = format!("for=\"{peer}:4711\"");
    let headers: [&[(&str, &str)]; 7] = [
        &[],
        &[("forwarded", &forwarded)],
        &[("forwarded", "for=\"192.0.2.9:4712\";host=server")],
        &[("forwarded", "=;;for=unknown,\"")],
        &[("baggage", "k8s.cluster.name=c,k8s.namespace.name=n,service.name=s,service.version=v")],
        &[("baggage", "=,=%zz;;"), ("baggage", ""), ("traceparent", "00-0-0-00"), ("x-unknown", "1")],
        &[("authorization", "Basic Zm9vOmJhcg==")],
    ];
    for headers in headers {
        let stream = client.connect(&target, headers);
        assert_eq!(client.status(stream), "200", "{headers:?}");
        client.ping(stream, "hello");
        client.end(stream);
        assert_eq!(client.ended(stream)["bytes"], 5);
    }
    let seen = echo.peers();
    assert_eq!(seen.len(), headers.len());
    assert!(seen.iter().all(|seen| seen.ip() == peer), "{seen:?}");
    assert_eq!(seen[1].port(), 4711);
    assert_ne!(seen[2].port(), 4712);

    let log = eventually(lab::PATIENCE, || {
        let log = world.agent.access_log();
        (log.len() == headers.len()).then_some(log)
    });
    for record in log {
        assert!(record.is_ok() && record.is_from(peer), "{record:?}");
        assert_eq!(record.source_identity().as_deref(), Some(IDENTITY));
        assert_eq!((record.bytes_sent(), record.bytes_received()), (5, 5));
    }
}

#[test]
fn requests_are_answered_by_their_authority() {
    let world = Inbound::start();
    let _echo = world.server.serve(PORT, tcp::echo).unwrap();
    let (v4, v6, peer) = (world.server.ipv4(), world.server.ipv6(), world.peer.ipv4());
    let service = world.service.address(80).ip();
    let connect = |authority: String, status| ("CONNECT", authority, status);
    // Over IPv4.
    let cases = [
        connect(format!("{v4}:{PORT}"), "200"),
        connect("server.default.svc.cluster.local:80".to_owned(), "200"),
        connect(format!("[::ffff:{v4}]:{PORT}"), "200"),
        ("GET", format!("{v4}:{PORT}"), "400"),
        ("POST", format!("{v4}:{PORT}"), "400"),
        // Not the address that the connection was made to, the pod's other one included.
        connect(format!("{peer}:{PORT}"), "400"),
        connect(format!("[{v6}]:{PORT}"), "400"),
        connect(format!("{service}:80"), "400"),
        connect(format!("127.0.0.1:{PORT}"), "400"),
        connect(format!("0.0.0.0:{PORT}"), "400"),
        connect(v4.to_string(), "400"),
        connect(format!("{v4}:0"), "400"),
        // Nobody listens; nobody is called so.
        connect(format!("{v4}:{}", PORT + 1), "503"),
        connect("server.default.svc.cluster.local:81".to_owned(), "503"),
        connect("other.default.svc.cluster.local:80".to_owned(), "503"),
        connect(format!("localhost:{PORT}"), "503"),
    ];
    let mut client = world.connect(v4);
    for (method, authority, status) in cases {
        let more: &[(&str, &str)] =
            if method == "CONNECT" { &[] } else { &[(":scheme", "https"), (":path", "/")] };
        let stream = client.request(&[&[(":method", method), (":authority", &authority)], more].concat());
        assert_eq!(client.status(stream), status, "{method} {authority}");
        if status == "200" {
            client.ping(stream, "hello");
        } else {
            client.ended(stream);
        }
    }
    // Over IPv6.
    let mut client = world.connect(v6);
    for (authority, status) in [(format!("[{v6}]:{PORT}"), "200"), (format!("{v4}:{PORT}"), "400")] {
        let stream = client.connect(&authority, &[]);
        assert_eq!(client.status(stream), status, "{authority}");
    }
}

#[test]
fn ports_that_istio_keeps_for_itself_are_delivered() {
    let world = Inbound::start();
    let mut client = world.connect(world.server.ipv4());
    for port in [15001, 15006, 15008] {
        let echo = world.server.serve(port, tcp::echo).unwrap();
        let stream = client.tunnel(world.server.at_v4(port));
        client.ping(stream, "hello");
        assert_eq!(echo.accepted(), 1);
    }
}

#[test]
fn two_hundred_streams_are_carried_at_once_on_one_connection() {
    const TIMES: u64 = 4096;
    let world = Inbound::start();
    let echo = world.server.serve(PORT, tcp::echo).unwrap();
    let mut client = world.connect(world.server.ipv4());
    client.peer.wait("settings", |_| true).unwrap();
    let target = world.server.at_v4(PORT).to_string();
    let streams: Vec<_> = (0..200).map(|_| client.connect(&target, &[])).collect();
    for stream in &streams {
        assert_eq!(client.status(*stream), "200");
    }
    assert_eq!(echo.open(), streams.len());
    // Each says something else: nothing may come back on another.
    for stream in &streams {
        let text = format!("{stream:08}");
        client.tell(&json!({"do": "send", "stream": stream, "text": text, "times": TIMES}));
        client.end(*stream);
    }
    for stream in &streams {
        let end = client.ended(*stream);
        assert_eq!(end["bytes"], 8 * TIMES);
        assert_eq!(end["text"], format!("{stream:08}").repeat(512));
    }
    assert_eq!(client.peer.events("connected").len(), 1);
    eventually(lab::PATIENCE, || echo.open() == 0);
}

#[test]
fn a_stream_that_is_not_read_holds_no_other_up() {
    let world = Inbound::start();
    let _echo = world.server.serve(PORT, tcp::echo).unwrap();
    let listener = world.server.listen(PORT + 1).unwrap();
    let mut client = world.connect(world.server.ipv4());
    let slow = client.tunnel(world.server.at_v4(PORT + 1));
    let quick = client.tunnel(world.server.at_v4(PORT));
    let (stuck, _) = listener.accept().unwrap();
    // More than every buffer on the way takes.
    client.tell(&json!({"do": "send", "stream": slow, "text": "x", "times": 64 << 20}));
    for number in 0..10 {
        client.ping(quick, &format!("number {number}"));
    }
    drop(stuck);
}
