//! Bytes that are no HBONE, HTTP/2 that means harm, and strings that are to mislead who reads the log.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use lab::{PATIENCE, Pod, Process, eventually, http};

use crate::world::{PORT, World};

const HBONE: u16 = 15008;

fn connect(pod: &Pod, target: SocketAddr) -> TcpStream {
    let stream = pod.connect(target).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A record of TLS that says it is longer than it is, and the beginning of a ClientHello.
const CUT_SHORT: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and no more";

#[test]
fn bytes_that_are_no_tls_end_the_connection_and_leave_nothing() {
    let world = World::start();
    let World { mesh, server, b, .. } = &world;
    let outsider = mesh.pod("outsider").on("node-a").start().unwrap();
    world.assert_well("the beginning");
    let random: Vec<u8> = (0..20_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let http = b"GET / HTTP/1.1\r\nHost: server\r\n\r\n".as_slice();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice();
    // Their lines come a little later than their ends.
    eventually(PATIENCE, || b.access_log().iter().filter(|record| record.is_ok()).count() >= 2);
    let before = (b.fd_count(), b.access_log().len());
    let mut held = Vec::new();
    for _ in 0..50 {
        for (bytes, target) in [&random[..], http, preface, CUT_SHORT, b""]
            .into_iter()
            .flat_map(|bytes| [(bytes, server.at_v4(HBONE)), (bytes, server.at_v6(HBONE))])
        {
            let mut stream = connect(&outsider, target);
            // It may have ended already.
            let _ = stream.write_all(bytes);
            held.push(stream);
        }
    }
    eventually(PATIENCE, || b.fd_count() > before.0 + 100);
    for stream in &mut held {
        // Whoever is cut short is told so by an end of file, too.
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    drop(held);
    eventually(PATIENCE, || b.fd_count() <= before.0 + 2);
    let records = eventually(PATIENCE, || {
        let log = b.access_log();
        (log.len() >= before.1 + 500).then(|| log[before.1..].to_vec())
    });
    assert!(records.iter().all(|record| !record.is_ok() && record.source_identity().is_none()));
    world.assert_well("garbage");
}

/// Begins an attack by a client that has the certificate of a pod of another node.
fn attack(world: &World, attacker: &Pod, name: &str, authorities: &[&str]) -> Process {
    let script = world.mesh.directory().join("hostile.py");
    fs::write(&script, include_str!("hostile.py")).unwrap();
    let [chain, key] = world.stolen_certificate(&world.victim);
    let target = world.server.ip().to_string();
    let mut args = vec![script.to_str().unwrap(), name, &target, &chain, &key];
    args.extend(authorities);
    let process = attacker.spawn("python3", &args).unwrap();
    eventually(PATIENCE, || process.logs().contains("up"));
    process
}

#[test]
fn http2_that_means_harm_harms_nobody_else() {
    let world = World::start();
    let attacker = world.mesh.pod("attacker").on("node-a").start().unwrap();
    world.assert_well("the beginning");
    let (memory, files) = (world.b.own_memory(), world.b.fd_count());
    let application = world.server.at_v4(PORT).to_string();
    let attacks = [
        "garbage",
        "nonsense",
        "endless-headers",
        "large-headers",
        "rapid-reset",
        "pings",
        "settings",
        "empty-data",
    ];
    for name in attacks {
        let process = attack(&world, &attacker, name, &[&application]);
        world.assert_well(&format!("{name} has begun"));
        let status = process.wait(4 * PATIENCE).unwrap();
        assert!(status.success() && process.logs().contains(" bytes"), "{name}: {}", process.logs());
        world.assert_well(name);
    }
    // All of it one after the other, and what an allocator keeps; a flood that is collected would be far more.
    let grown = world.b.own_memory().saturating_sub(memory);
    assert!(grown < 256 << 20, "{grown} bytes more");
    eventually(PATIENCE, || world.b.fd_count() <= files + 4);
}

#[test]
fn hostile_strings_stay_within_their_field_of_the_access_log() {
    let world = World::start();
    let attacker = world.mesh.pod("attacker").on("node-a").start().unwrap();
    let authorities = [
        "nobody:80",
        "x\" result=\"ok\":80",
        "{\"direction\":\"inbound\",\"result\":\"ok\"}",
        "a b:80",
        "line\nbreak:80",
        "\u{1b}[2Jescape:80",
        "%0a%0d:80",
        &"long".repeat(2000),
        "10.9.9.9:1",
        "[::ffff:10.9.9.9]:70000",
        ":",
        "@:0",
    ];
    let process = attack(&world, &attacker, "requests", &authorities);
    assert!(process.wait(2 * PATIENCE).unwrap().success());
    let log = eventually(PATIENCE, || {
        let log = world.b.access_log();
        log.iter()
            .any(|record| record.field("error").is_some_and(|error| error.contains("nobody:80")))
            .then_some(log)
    });
    assert!(log.iter().all(|record| !record.is_ok()), "none of it became a connection: {log:?}");
    // Whole lines alone: the last may be still under way.
    let raw = fs::read_to_string(world.mesh.directory().join("node-b.access.jsonl")).unwrap();
    let raw = &raw[..raw.rfind('\n').unwrap() + 1];
    for line in raw.lines() {
        let object: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        assert!(object.is_object(), "each line is one whole object: {line:?}");
    }
    assert!(raw.bytes().all(|byte| byte == b'\n' || !byte.is_ascii_control()));
    world.assert_well("hostile strings");
}

#[test]
fn held_connections_do_not_keep_others_from_the_admin_address() {
    let World { mesh, a, .. } = &World::start();
    let node = mesh.node("node-a");
    let admin: SocketAddr = "127.0.0.1:15021".parse().unwrap();
    let before = a.fd_count();
    let mut held: Vec<_> = (0..300)
        .map(|number| {
            let mut stream = node.connect(admin).unwrap();
            if number % 2 == 0 {
                stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: ").unwrap();
            }
            stream
        })
        .collect();
    // Sooner than those that are held end by themselves and make room, after ten seconds. More than once, since the machine may
    // be busy with something else.
    eventually(PATIENCE, || {
        let start = Instant::now();
        a.ready().unwrap();
        a.metrics().unwrap();
        let quick = start.elapsed() < Duration::from_secs(5);
        if !quick {
            held.extend((0..300).map(|_| node.connect(admin).unwrap()));
        }
        quick
    });
    assert!(a.fd_count() < before + 150, "what is held is bounded");
    let private = http::get_unix(a.socket(), "/healthz/live").unwrap();
    assert_eq!(private.status, 200);
    // Those that are held end by themselves.
    thread::scope(|scope| {
        for stream in &mut held {
            scope.spawn(|| {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                if let Err(error) = stream.read_to_end(&mut Vec::new()) {
                    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                }
            });
        }
    });
    a.ready().unwrap();
}
