//! What an open connection stands on: certificates that are revoked, or expire, take it with them, on both sides, and
//! the log says why. Real agents; OpenSSL makes the revocation lists.

use std::{
    fs,
    io::{ErrorKind, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::mpsc,
};

use lab::{AccessRecord, Agent, Mesh, PATIENCE, Pod, eventually, tcp};
use serde_json::Value;

const PORT: u16 = 8080;

fn lists(mesh: &Mesh, name: &str) -> PathBuf {
    let file = mesh.directory().join(name);
    mesh.revoke(&file, &[]).unwrap();
    file
}

/// An echo that tells how each of its connections ended.
fn serve(server: &Pod) -> (tcp::Server, mpsc::Receiver<(SocketAddr, Option<ErrorKind>)>) {
    let (sender, ended) = mpsc::sync_channel(64);
    let server = server.serve(PORT, move |mut stream: TcpStream| {
        let (peer, mut buffer) = (tcp::canonical(stream.peer_addr().unwrap()), [0; 1024]);
        let end = loop {
            match tcp::read(&mut stream, &mut buffer) {
                Ok(0) => break None,
                // A reset is told once: to whoever asks first.
                Ok(length) => {
                    if let Err(error) = stream.write_all(&buffer[..length]) {
                        break Some(error.kind());
                    }
                }
                Err(error) => break Some(error.kind()),
            }
        };
        let _ = sender.send((peer, end));
    });
    (server.unwrap(), ended)
}

fn open(client: &Pod, target: SocketAddr) -> TcpStream {
    let mut stream = client.connect(target).unwrap();
    tcp::ping(&mut stream, "hello").unwrap();
    stream
}

/// Waits until a connection is reset.
fn reset(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let error = tcp::read(stream, &mut [0]).expect_err("the connection ended well");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// Opens a connection that is to be reset, without an answer.
fn refused(client: &Pod, target: SocketAddr) {
    // The reset may be quicker than the return of `connect`.
    let ending = client.connect(target).and_then(|mut stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        tcp::read(&mut stream, &mut [0])
    });
    assert_eq!(ending.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

fn record(agent: &Agent, client: &Pod, says: &str) -> AccessRecord {
    eventually(PATIENCE, || {
        let records = agent.access_log().into_iter().filter(|record| record.is_from(client.ipv4()));
        let errors: Vec<_> = records.clone().filter_map(|record| record.field("error")).collect();
        let mut found =
            records.filter(|record| record.field("error").is_some_and(|error| error.contains(says)));
        found.next().ok_or_else(|| format!("nothing says {says:?}: {errors:?}"))
    })
}

#[test]
fn revoked_certificates_end_open_connections_and_open_no_others() {
    let mesh = Mesh::new().unwrap();
    let pod =
        |name: &str, node: &str| mesh.pod(name).on(node).service_account(name).enrolled().start().unwrap();
    let (client, control, server) =
        (pod("client", "node-a"), pod("control", "node-a"), pod("server", "node-b"));
    let (at_a, at_b) = (lists(&mesh, "a-lists.pem"), lists(&mesh, "b-lists.pem"));
    let a = mesh.agent("node-a").arg("--crl").arg(&at_a).start().unwrap();
    let b = mesh.agent("node-b").arg("--crl").arg(&at_b).start().unwrap();
    a.wait_ready().unwrap();
    b.wait_ready().unwrap();
    let (_echo, ended) = serve(&server);
    let target = server.at_v4(PORT);
    let (mut cut, mut kept) = (open(&client, target), open(&control, target));

    // The server's side finds the client's certificate revoked.
    let revoked = a.serial("client").unwrap();
    mesh.revoke(&at_b, std::slice::from_ref(&revoked)).unwrap();
    reset(&mut cut);
    let (peer, end) = ended.recv_timeout(PATIENCE).unwrap();
    assert_eq!((peer.ip(), end), (client.ipv4(), Some(ErrorKind::ConnectionReset)));
    let lost = record(&b, &client, "that it was made with was revoked");
    assert_eq!(lost.reason().as_deref(), Some("bad_certificate"));
    for word in ["a tunnel from a peer ends", "default/server", "sa/client"] {
        eventually(PATIENCE, || b.logs().contains(word));
    }

    refused(&client, target);
    let error = record(&b, &client, "the peer's certificate was revoked");
    assert_eq!((error.reason().as_deref(), error.bytes_sent()), (Some("bad_certificate"), 0));
    record(&a, &client, "certificate_revoked");
    assert_eq!(b.metrics().unwrap().sum("culvert_crl_revoked", &[]), 1.0);
    let revocations = [("side", "server"), ("reason", "revoked")];
    eventually(PATIENCE, || b.metrics().unwrap().sum("culvert_handshakes_total", &revocations) >= 1.0);
    tcp::ping(&mut kept, "the control goes on").unwrap();

    // The remedy: its own agent learns of it too, and has it replaced.
    mesh.revoke(&at_a, std::slice::from_ref(&revoked)).unwrap();
    eventually(PATIENCE, || a.serial("client").unwrap() != revoked);
    open(&client, target);
    tcp::ping(&mut kept, "and on").unwrap();

    // The client's side finds the server's certificate revoked.
    let server_serial = b.serial("server").unwrap();
    mesh.revoke(&at_a, std::slice::from_ref(&server_serial)).unwrap();
    reset(&mut kept);
    record(&a, &control, "that it was made with was revoked");
    for word in ["a connection to a peer ends", &server_serial] {
        eventually(PATIENCE, || a.logs().contains(word));
    }
    refused(&control, target);
    record(&a, &control, "the peer's certificate was revoked");

    // A list that cannot be read is loud, and the one before stays.
    fs::write(&at_a, "no list").unwrap();
    eventually(PATIENCE, || a.metrics().unwrap().sum("culvert_crl_failures_total", &[]) >= 1.0);
    eventually(PATIENCE, || a.logs().contains("the new content cannot be used"));
    refused(&control, target);
}

#[test]
fn no_connection_outlives_its_certificate_and_the_next_has_a_renewed_one() {
    let mesh = Mesh::new().unwrap();
    let pod =
        |name: &str, node: &str| mesh.pod(name).on(node).service_account(name).enrolled().start().unwrap();
    let (client, server) = (pod("client", "node-a"), pod("server", "node-b"));
    let agents = ["node-a", "node-b"].map(|node| mesh.agent(node).arg("--certificate-lifetime").arg("20s"));
    let [a, b] = agents.map(|agent| agent.start().unwrap());
    a.wait_ready().unwrap();
    b.wait_ready().unwrap();
    let (_echo, ended) = serve(&server);
    let target = server.at_v4(PORT);

    let expiries = || {
        [a.certificate("client").unwrap(), b.certificate("server").unwrap()].map(|c| c["notAfter"].clone())
    };
    // Renewed while the connection was opened, either may be what it has.
    let before = expiries();
    let mut stream = open(&client, target);
    let expiries = [before, expiries()].concat();
    let client_end = stream.local_addr().unwrap();
    while tcp::ping(&mut stream, "a transfer that takes its time").is_ok() {}
    let end = eventually(PATIENCE, || ended.try_iter().find(|(peer, _)| *peer == client_end));
    assert_eq!(end.1, Some(ErrorKind::ConnectionReset));
    let says: Vec<_> =
        expiries.iter().filter_map(Value::as_str).map(|at| format!("expired at {at}")).collect();
    eventually(PATIENCE, || {
        let records = a.access_log().into_iter().chain(b.access_log());
        let mut errors = records.filter_map(|record| record.field("error"));
        errors.any(|error| says.iter().any(|says| error.contains(says)))
    });
    open(&client, target);
    for agent in [&a, &b] {
        let metrics = agent.metrics().unwrap();
        let renewed = [("kind", "renewal"), ("result", "issued")];
        assert!(metrics.sum("culvert_certificate_requests_total", &renewed) >= 1.0);
    }
}

#[test]
fn agent_leaves_no_core_dump() {
    let mesh = Mesh::builder().nodes(&["node-a"]).build().unwrap();
    let agent = mesh.agent("node-a").start().unwrap();
    agent.wait_ready().unwrap();
    let limits = fs::read_to_string(format!("/proc/{}/limits", agent.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
}
