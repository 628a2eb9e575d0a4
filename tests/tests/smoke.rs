//! The harness with real agents: the shortest way through a mesh, and an agent's life as the suites use it.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use lab::{Agent, Mesh, PATIENCE, Pod, Service, eventually, tcp};

struct World {
    agents: [Agent; 2],
    client: Pod,
    web: Pod,
    service: Service,
    mesh: Mesh,
}

fn world() -> World {
    let mesh = Mesh::new().unwrap();
    let client = mesh.pod("client").on("node-a").enrolled().service_account("front").start().unwrap();
    let web = mesh.pod("web").on("node-b").enrolled().label("app", "web").start().unwrap();
    let service = mesh.service("web").select("app", "web").port(80, 8080).apply().unwrap();
    let agents = ["node-a", "node-b"].map(|node| mesh.agent(node).start().unwrap());
    for agent in &agents {
        agent.wait_ready().unwrap();
    }
    World { agents, client, web, service, mesh }
}

#[test]
fn a_service_is_reached_over_both_families_and_both_agents_report_it() {
    let World { agents: [a, b], client, web, service, .. } = &world();
    let server = web.serve(8080, tcp::echo).unwrap();
    for (target, source) in [
        (service.address(80), client.ipv4()),
        (service.address_v6(80), client.ipv6()),
        (web.at(8080), client.ip()),
    ] {
        let stream = client.connect(target).unwrap();
        assert_eq!((stream.peer_addr().unwrap(), stream.local_addr().unwrap().ip()), (target, source));
        tcp::exchange(stream, 1 << 20).unwrap();
        assert_eq!(server.peers().last().unwrap().ip(), source);
    }
    for agent in [a, b] {
        eventually(PATIENCE, || agent.access_log().len() == 3);
        for line in agent.access_log() {
            assert!(line.is_ok(), "{line:?}");
            assert_eq!(line.source_identity(), Some(client.identity()));
            assert_eq!(line.destination_identity(), Some(web.identity()));
            assert_eq!((line.bytes_sent(), line.bytes_received()), (1 << 20, 1 << 20));
        }
    }
    let opened = a.metrics().unwrap().sum("istio_tcp_connections_opened_total", &[("reporter", "source")]);
    assert!((opened - 3.0).abs() < f64::EPSILON, "{opened}");
}

/// A client that says little and a server that says much, so that neither direction can be taken for the other; and one
/// connection that fails.
#[test]
fn both_agents_count_what_they_carried() {
    const ANSWER: usize = 100_000;
    let World { agents, client, web, .. } = &world();
    let _server = web.serve(8080, |mut stream: TcpStream| {
        let _ = stream.read_exact(&mut [0]).and_then(|()| stream.write_all(&[7; ANSWER]));
    });
    let mut stream = client.connect(web.at(8080)).unwrap();
    stream.write_all(b"?").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer.len(), ANSWER);
    drop(stream);
    let refused = client.connect(web.at(8081)).and_then(|mut stream| tcp::read(&mut stream, &mut [0]));
    assert!(refused.is_err(), "nobody listens there");

    for (agent, reporter, failure) in
        [(&agents[0], "source", "peer_unavailable"), (&agents[1], "destination", "dial_failed")]
    {
        eventually(PATIENCE, || agent.access_log().len() == 2);
        let log = agent.access_log();
        let carried = log.iter().find(|line| line.is_ok()).unwrap();
        assert_eq!((carried.bytes_sent(), carried.bytes_received()), (1, ANSWER as u64));
        // The last figure changes a moment after the line.
        eventually(PATIENCE, || {
            let metrics = agent.metrics().unwrap();
            let count = |name, labels: &[(&str, &str)]| metrics.sum(name, labels) as u64;
            let by = |name| count(name, &[("reporter", reporter)]);
            let now = [
                by("istio_tcp_connections_opened_total"),
                by("istio_tcp_connections_closed_total"),
                by("istio_tcp_received_bytes_total"),
                by("istio_tcp_sent_bytes_total"),
                count("culvert_connections_failed_total", &[("reporter", reporter), ("reason", failure)]),
                count("culvert_connections_active", &[]),
            ];
            if now == [1, 1, 1, ANSWER as u64, 1, 0] { Ok(()) } else { Err(format!("{reporter}: {now:?}")) }
        });
    }
}

#[test]
fn an_agent_that_was_killed_serves_again_after_its_restart() {
    let World { agents: [a, b], client, web, .. } = &world();
    let _server = web.serve(8080, tcp::echo).unwrap();
    let works = || tcp::exchange(client.connect(web.at(8080))?, 1000);
    works().unwrap();
    for agent in [a, b] {
        agent.kill9();
        assert!(works().is_err(), "without the agent of {}", agent.node());
        agent.restart().unwrap();
        agent.wait_ready().unwrap();
        eventually(PATIENCE, works);
    }
    assert!(a.fd_count() > 0 && a.rss() > 0 && a.threads() > 0);
    assert!(a.cli(&["status", "--socket", &a.socket().display().to_string()]).unwrap().status.success());
}

#[test]
fn nothing_of_the_agents_is_left_after_the_mesh() {
    let World { agents, mesh, .. } = world();
    let pins = |node: &str| std::path::Path::new("/sys/fs/bpf/culvert").join(mesh.node(node).unique_name());
    let pins = [pins("node-a"), pins("node-b")];
    assert!(pins.iter().all(|path| path.exists()));
    let [a, b] = agents;
    assert!(b.terminate().unwrap().success());
    let output = b.cleanup().unwrap();
    assert!(output.status.success() && !pins[1].exists(), "{output:?}");
    // One that still runs.
    let pid = a.pid();
    drop(mesh);
    assert!(!a.is_running() && !pins[0].exists(), "process {pid}");
}
