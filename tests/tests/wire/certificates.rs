//! A peer without the right certificate is refused, on either side, and the log says why.

use std::{io::Write, net::SocketAddr, path::Path, thread};

use lab::{AccessRecord, Agent, Credentials, Mesh, PATIENCE, Peer, Pod, Process, eventually, tcp};
use serde_json::json;

use crate::world::{PORT, World};

/// A peer that is to be refused.
struct Case {
    name: &'static str,
    credentials: Credentials,
    /// What the access log gives as the reason, and words that its error must hold.
    reason: &'static str,
    says: &'static str,
}

/// The pods that are not our agent's say that they are `identity`, wrongly in each of these.
fn wrong(mesh: &Mesh, identity: &str, usage: &'static str) -> Vec<Case> {
    let ca = mesh.ca().unwrap();
    let of = |ca: &Path, identity: &str| mesh.certificate(ca, identity);
    let other_root = mesh.make_ca("other-ca", "cluster.local").unwrap();
    let case = |name, credentials: anyhow::Result<Credentials>, reason, says| Case {
        name,
        credentials: credentials.unwrap(),
        reason,
        says,
    };
    vec![
        case(
            "another trust domain",
            of(&ca, "spiffe://elsewhere.example/ns/default/sa/peer").issue(),
            "identity_mismatch",
            "elsewhere.example",
        ),
        case(
            "no SPIFFE ID",
            of(&ca, "https://cluster.local/").issue(),
            "bad_certificate",
            "not a workload's",
        ),
        case(
            "two SPIFFE IDs",
            of(&ca, identity).name("URI:spiffe://cluster.local/ns/default/sa/other").issue(),
            "bad_certificate",
            "2 URIs",
        ),
        case(
            "another root",
            // It trusts our root: the refusal is then ours to say, and not the peer's.
            of(&other_root, identity).issue().map(|c| c.trusting(Some(ca.join("root.pem")))),
            "bad_certificate",
            "no root that is trusted here",
        ),
        case("expired", of(&ca, identity).expired().issue(), "bad_certificate", "expired at 2020-01-02"),
        case("not yet valid", of(&ca, identity).future().issue(), "bad_certificate", "not valid before 2099"),
        case(
            "another usage",
            of(&ca, identity).usage(usage).issue(),
            "bad_certificate",
            "extendedKeyUsage lacks",
        ),
    ]
}

/// Waits for the one record of a connection of `pod`.
fn record_of(agent: &Agent, is_it: impl Fn(&AccessRecord) -> bool) -> AccessRecord {
    eventually(PATIENCE, || agent.access_log().into_iter().find(|record| is_it(record)))
}

fn expect(record: &AccessRecord, name: &str, reason: &str, says: &str) {
    let error = record.field("error").unwrap_or_default();
    println!("{name}: {error}");
    assert_eq!(record.reason().as_deref(), Some(reason), "{name}: {record:?}");
    assert!(error.contains(says), "{name}: {error}");
    assert_eq!((record.bytes_sent(), record.bytes_received()), (0, 0), "{name}");
}

#[test]
fn our_server_refuses_clients_with_wrong_certificates() {
    let world = World::start();
    let World { server, b, mesh, .. } = &world;
    let _echo = server.serve(PORT, tcp::echo).unwrap();
    let identity = "spiffe://cluster.local/ns/default/sa/peer";
    let right = mesh.certificate(&mesh.ca().unwrap(), identity).issue().unwrap();
    let mut cases = wrong(mesh, identity, "serverAuth");
    cases.push(Case {
        name: "none",
        credentials: right.clone().anonymous(),
        reason: "bad_certificate",
        says: "presented no certificate",
    });
    let connect = json!([[":method", "CONNECT"], [":authority", server.at_v4(PORT).to_string()]]);
    for (number, Case { name, credentials, reason, says }) in cases.into_iter().enumerate() {
        let pod = mesh.pod(&format!("peer-{number}")).on("node-a").start().unwrap();
        let mut peer = Peer::client(&pod, server.ipv4(), &credentials).unwrap();
        // In TLS 1.3 a client is done before the server has looked at its certificate: it may ask, and is not heard. It
        // has ended where it cannot be told.
        let _ = peer.tell(&json!({"do": "open", "headers": connect}));
        let lost = eventually(PATIENCE, || [peer.events("lost"), peer.events("refused")].concat().pop());
        assert!(lost["error"].as_str().unwrap().contains("ALERT"), "{name}: {lost}");
        assert_eq!(peer.events("response").len(), 0, "{name}");
        expect(&record_of(b, |record| record.is_from(pod.ipv4())), name, reason, says);
    }
    // The control: the same client with the right certificate.
    let pod = mesh.pod("peer").on("node-a").start().unwrap();
    let mut peer = Peer::client(&pod, server.ipv4(), &right).unwrap();
    peer.tell(&json!({"do": "open", "headers": connect})).unwrap();
    let response = peer.wait("response", |_| true).unwrap();
    assert_eq!(response["status"], "200");
}

/// A pod that others take for a member of the mesh, served by whoever listens at its port 15008.
fn impostor(mesh: &Mesh, name: &str) -> Pod {
    let pod = mesh.pod(name).on("node-b").service_account("server");
    pod.annotation("ambient.istio.io/redirection", "enabled").start().unwrap()
}

/// Says something, and expects the connection to end with a reset and nothing else.
fn is_reset(client: &Pod, target: SocketAddr) {
    // The reset may be quicker than the question, and even than the return of `connect`; the error is told once only.
    let ending = client.connect(target).and_then(|mut stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"hello")?;
        tcp::read(&mut stream, &mut [0])
    });
    let error = ending.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn our_client_refuses_servers_with_wrong_certificates() {
    let mesh = Mesh::new().unwrap();
    let client = mesh.pod("client").on("node-a").enrolled().start().unwrap();
    let ca = mesh.ca().unwrap();
    let identity = "spiffe://cluster.local/ns/default/sa/server";
    let mut cases = wrong(&mesh, identity, "clientAuth");
    let neighbour = "spiffe://cluster.local/ns/default/sa/neighbour";
    cases.push(Case {
        name: "another service account",
        credentials: mesh.certificate(&ca, neighbour).issue().unwrap(),
        reason: "identity_mismatch",
        says: neighbour,
    });
    let pods: Vec<_> = (0..cases.len()).map(|number| impostor(&mesh, &format!("server-{number}"))).collect();
    let (silent, good, picky) =
        (impostor(&mesh, "no-tls"), impostor(&mesh, "server"), impostor(&mesh, "picky"));
    let agent = mesh.agent("node-a").start().unwrap();
    agent.wait_ready().unwrap();

    for (pod, Case { name, credentials, reason, says }) in pods.iter().zip(cases) {
        let target = pod.at_v4(PORT);
        let peer = Peer::server(pod, target.ip(), &credentials).unwrap();
        is_reset(&client, target);
        assert!(peer.events("request").is_empty(), "{name}");
        expect(&record_of(&agent, |record| record.destination() == Some(target)), name, reason, says);
    }

    // Without any certificate TLS 1.3 cannot begin: a server that has none speaks no TLS.
    let plain = silent.serve(15008, |mut stream| drop(stream.write_all(b"220 plaintext is spoken here\r\n")));
    let target = silent.at_v4(PORT);
    is_reset(&client, target);
    drop(plain);
    expect(&record_of(&agent, |record| record.destination() == Some(target)), "no TLS", "tls", "TLS");

    // The other way round: the server refuses our certificate, and says so only after our side of the handshake.
    let right = mesh.certificate(&ca, identity).issue().unwrap();
    let _picky = serve_picky(&picky, &right, &mesh.directory().join("other-ca/root.pem"));
    let target = picky.at_v4(PORT);
    is_reset(&client, target);
    let record = record_of(&agent, |record| record.destination() == Some(target));
    expect(
        &record,
        "refused by the server",
        "bad_certificate",
        "the peer refused our certificate: unknown_ca",
    );

    // The control: the same kind of server with the right certificate.
    let peer = Peer::server(&good, good.ipv4(), &right).unwrap();
    tcp::ping(&mut client.connect(good.at_v4(PORT)).unwrap(), "hello").unwrap();
    peer.wait("request", |_| true).unwrap();
}

/// A server that trusts other roots than ours: OpenSSL's own, since Python's closes without sending the alert.
fn serve_picky(pod: &Pod, credentials: &Credentials, roots: &Path) -> Process {
    let (chain, key) = credentials.certificate.as_ref().unwrap();
    let mut command = pod.command("openssl");
    command.args(["s_server", "-www", "-tls1_3", "-alpn", "h2", "-Verify", "1", "-verify_return_error"]);
    command.args(["-accept", &format!("{}:15008", pod.ipv4())]).arg("-CAfile").arg(roots);
    command.arg("-cert").arg(chain).arg("-cert_chain").arg(chain).arg("-key").arg(key);
    let server = pod.spawn_command(&mut command).unwrap();
    server.until(PATIENCE, || server.logs().contains("ACCEPT")).unwrap();
    server
}

#[test]
fn agents_of_two_roots_refuse_each_other_and_both_say_why() {
    let mesh = Mesh::new().unwrap();
    let client = mesh.pod("client").on("node-a").enrolled().start().unwrap();
    let server = mesh.pod("server").on("node-b").enrolled().start().unwrap();
    let neighbour = mesh.pod("neighbour").on("node-b").enrolled().start().unwrap();
    let _echo = server.serve(PORT, tcp::echo).unwrap();
    // Of the same trust domain.
    let other = mesh.make_ca("other-ca", "cluster.local").unwrap();
    let a = mesh.agent("node-a").start().unwrap();
    let b = mesh.agent("node-b").ca_dir(other).start().unwrap();
    a.wait_ready().unwrap();
    b.wait_ready().unwrap();

    let resets: Vec<_> = [server.at_v4(PORT), server.at_v6(PORT)].into();
    thread::scope(|scope| {
        for target in &resets {
            scope.spawn(|| is_reset(&client, *target));
        }
    });
    for (agent, from) in [(&a, "no root that is trusted here"), (&b, "the peer refused our certificate")] {
        let log = eventually(PATIENCE, || {
            let log = agent.access_log();
            (log.len() == resets.len()).then_some(log)
        });
        for record in log {
            expect(&record, agent.node(), "bad_certificate", from);
        }
    }
    // The control: within one root.
    tcp::ping(&mut neighbour.connect(server.at_v4(PORT)).unwrap(), "hello").unwrap();
}
