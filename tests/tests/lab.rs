//! The harness itself, without any agent: what a suite finds amiss later is then the agent's.

use std::{
    io::{BufRead, BufReader, ErrorKind, Write},
    net::IpAddr,
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use lab::{Mesh, PATIENCE, Pod, eventually, tcp};

const MARKER: &str = "the-marker-that-is-looked-for";

struct Pods {
    mesh: Mesh,
    client: Pod,
    neighbour: Pod,
    remote: Pod,
}

fn pods() -> Pods {
    let mesh = Mesh::new().unwrap();
    let client = mesh.pod("client").on("node-a").start().unwrap();
    let neighbour = mesh.pod("neighbour").on("node-a").start().unwrap();
    let remote = mesh.pod("remote").on("node-b").start().unwrap();
    Pods { mesh, client, neighbour, remote }
}

fn ping(from: &Pod, to: IpAddr, size: usize) -> bool {
    let mut ping = from.command("ping");
    ping.args(["-c2", "-i0.2", "-W10", "-M", "do", "-s", &size.to_string(), &to.to_string()]);
    ping.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
}

#[test]
fn pods_reach_each_other_on_and_across_nodes_over_both_families() {
    let Pods { client, neighbour, remote, .. } = &pods();
    for server in [neighbour, remote] {
        let echo = server.serve(8080, tcp::echo).unwrap();
        for (target, source) in [(server.at_v4(8080), client.ipv4()), (server.at_v6(8080), client.ipv6())] {
            tcp::exchange(client.connect(target).unwrap(), 3 << 20).unwrap();
            assert_eq!(echo.peers().last().unwrap().ip(), source, "to {target}");
        }
    }
}

#[test]
fn pods_on_a_bridge_reach_each_other_and_routed_pods() {
    let Pods { mesh, client, remote, .. } = &pods();
    let one = mesh.pod("one").on("node-a").bridged().start().unwrap();
    let two = mesh.pod("two").on("node-a").bridged().start().unwrap();
    for (from, to) in [(&one, &two), (&one, client), (client, &two), (&two, remote), (remote, &one)] {
        let _echo = to.serve(8080, tcp::echo).unwrap();
        for target in [to.at_v4(8080), to.at_v6(8080)] {
            tcp::exchange(from.connect(target).unwrap(), 1000).unwrap();
        }
    }
}

#[test]
fn a_third_node_is_reached_over_a_bridge() {
    let mesh = Mesh::builder().nodes(&["a", "b", "c"]).build().unwrap();
    let client = mesh.pod("client").on("a").ipv6().start().unwrap();
    for node in ["b", "c"] {
        let server = mesh.pod(&format!("on-{node}")).on(node).start().unwrap();
        let _echo = server.serve(8080, tcp::echo).unwrap();
        tcp::exchange(client.connect(server.at_v6(8080)).unwrap(), 1000).unwrap();
    }
}

#[test]
fn the_node_reaches_its_pods_as_a_kubelet_does() {
    let Pods { mesh, client, remote, .. } = &pods();
    let _who = client.serve(8080, tcp::who).unwrap();
    let node = mesh.node("node-a");
    let seen = tcp::ask_who(node.connect(client.at_v4(8080)).unwrap()).unwrap();
    assert_eq!(seen.ip(), IpAddr::from(node.ipv4()));
    let seen = tcp::ask_who(node.connect(client.at_v6(8080)).unwrap()).unwrap();
    assert!(seen.ip().is_ipv6());
    assert!(ping(remote, node.ipv4().into(), 56));
}

#[test]
fn packets_of_the_mtu_pass_and_no_larger_ones() {
    let Pods { mesh, client, remote, .. } = &pods();
    // 20 bytes of IPv4 or 40 of IPv6, and 8 of ICMP.
    for (address, largest) in [(remote.ipv4(), 1472), (remote.ipv6(), 1452)] {
        assert!(ping(client, address, largest), "{largest} to {address}");
        assert!(!ping(client, address, largest + 1), "{} to {address}", largest + 1);
    }
    let narrow = mesh.pod("narrow").on("node-b").mtu(1400).start().unwrap();
    assert!(ping(&narrow, client.ipv4(), 1372));
    assert!(!ping(&narrow, client.ipv4(), 1373));
}

#[test]
fn a_capture_of_the_wire_finds_a_marker_in_plaintext() {
    let Pods { mesh, client, neighbour, remote } = &pods();
    for (server, crosses) in [(remote, true), (neighbour, false)] {
        let _sink = server.serve(8080, tcp::echo).unwrap();
        let capture = mesh.capture_wire().unwrap();
        let mut stream = client.connect(server.at_v6(8080)).unwrap();
        // Two segments, with the marker across them.
        let (start, end) = MARKER.split_at(7);
        tcp::ping(&mut stream, start).unwrap();
        tcp::ping(&mut stream, end).unwrap();
        drop(stream);
        let captured = capture.stop().unwrap();
        assert_eq!(captured.contains(MARKER), crosses);
        assert_eq!(captured.flows_of_port(8080).count(), if crosses { 2 } else { 0 });
        assert!(captured.flows().iter().all(|flow| flow.tls().is_none()));
    }
}

#[test]
fn programs_run_inside_pods_and_end_with_the_mesh() {
    let Pods { mesh, client, remote, .. } = pods();
    let server = remote.spawn("python3", &["-m", "http.server", "80"]).unwrap();
    let url = format!("http://{}/", remote.at(80));
    eventually(PATIENCE, || client.sh(&format!("curl -sf {url} >/dev/null")));
    assert!(server.is_running() && server.fd_count() > 2 && server.rss() > 0 && server.threads() > 0);

    // One that nobody holds a handle of.
    client.sh("sleep 1000 >/dev/null 2>&1 &").unwrap();
    let path = client.netns().path().to_owned();
    let directory = mesh.directory().to_owned();
    drop(mesh);
    assert!(!server.is_running());
    assert!(!path.exists() && !directory.exists());
}

#[test]
fn a_pod_that_vanished_does_not_answer_and_its_address_can_be_taken() {
    let Pods { mesh, client, remote, .. } = &pods();
    let _echo = remote.serve(8080, tcp::echo).unwrap();
    client.connect(remote.at(8080)).unwrap();
    let (address, target) = (remote.manifest().addresses, remote.at(8080));
    remote.vanish().unwrap();
    assert!(client.connect(target).is_err());
    let heir = mesh.pod("heir").on("node-b").addresses(&address).start().unwrap();
    let _echo = heir.serve(8080, tcp::echo).unwrap();
    tcp::exchange(client.connect(target).unwrap(), 1000).unwrap();
}

#[test]
fn nobody_answers_for_a_service_without_an_agent() {
    let Pods { mesh, client, .. } = &pods();
    let service = mesh.service("web").select("app", "web").port(80, 8080).apply().unwrap();
    for target in [service.address(80), service.address_v6(80)] {
        let error = client.connect(target).unwrap_err();
        assert_ne!(error.kind(), ErrorKind::TimedOut, "refused, not lost");
    }
}

#[test]
fn endpoints_follow_the_pods() {
    let mesh = Mesh::new().unwrap();
    mesh.service("web").namespace("shop").select("app", "web").named_port("http", 80, "web").apply().unwrap();
    let pod = |name: &str, port| {
        let pod = mesh.pod(name).namespace("shop").label("app", "web").port("web", port);
        pod.ipv4().start().unwrap()
    };
    let (one, _two, other) = (pod("one", 8080), pod("two", 8080), pod("other", 9090));
    let slice = |number| {
        std::fs::read_to_string(mesh.manifests().join(format!("endpointslice-shop-web-{number}.yaml")))
    };
    assert!(slice(1).unwrap().contains("port: 8080"));
    assert!(slice(2).unwrap().contains("port: 9090"));

    one.set_ready(false).unwrap();
    let text = slice(1).unwrap();
    assert!(text.contains("ready: false") && text.contains("ready: true"), "{text}");

    other.delete().unwrap();
    assert!(slice(2).is_err());
    one.update(|pod| pod.phase = "Succeeded".to_owned()).unwrap();
    assert!(!slice(1).unwrap().contains(&one.ip().to_string()));
}

/// Runs the test of this name once more in a process of its own, which makes a mesh and waits for its end.
struct Victim {
    process: Child,
    mesh: String,
}

impl Victim {
    fn start(test: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", test])
            .env("LAB_TEST_VICTIM", "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mesh = lines
            .find_map(|line| Some(line.ok()?.split_once("made ")?.1.trim_end_matches('.').to_owned()))
            .expect("the victim makes a mesh");
        Self { process, mesh }
    }

    /// In the victim: what it does.
    fn be_one() {
        if std::env::var_os("LAB_TEST_VICTIM").is_none() {
            return;
        }
        let mesh = Mesh::new().unwrap();
        let pod = mesh.pod("victim").start().unwrap();
        pod.sh("sleep 1000 >/dev/null 2>&1 &").unwrap();
        println!("made {}.", mesh.name());
        std::io::stdout().flush().unwrap();
        loop {
            std::thread::park();
        }
    }

    fn namespaces(&self) -> usize {
        let entries = std::fs::read_dir("/run/netns").unwrap().flatten();
        let start = format!("{}-", self.mesh);
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&start)).count()
    }
}

#[test]
fn what_a_killed_process_left_is_removed_by_the_next() {
    Victim::be_one();
    let mut victim = Victim::start("what_a_killed_process_left_is_removed_by_the_next");
    assert_eq!(victim.namespaces(), 3);
    let _ = Mesh::remove_leftovers().unwrap();
    assert_eq!(victim.namespaces(), 3, "it lives");

    victim.process.kill().unwrap();
    victim.process.wait().unwrap();
    // Another process may be quicker.
    let _ = Mesh::remove_leftovers().unwrap();
    eventually(PATIENCE, || victim.namespaces() == 0);
    assert!(!std::env::temp_dir().join(&victim.mesh).exists());
}

#[test]
fn a_signal_removes_everything_before_the_process_ends() {
    Victim::be_one();
    let mut victim = Victim::start("a_signal_removes_everything_before_the_process_ends");
    assert_eq!(victim.namespaces(), 3);
    let pid = Pid::from_raw(victim.process.id().try_into().unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    assert_eq!(victim.process.wait().unwrap().signal(), Some(Signal::SIGINT as i32));
    assert_eq!(victim.namespaces(), 0);
    assert!(!std::env::temp_dir().join(&victim.mesh).exists());
}

#[test]
fn an_agent_is_started_killed_restarted_and_its_logs_are_kept() {
    let mesh = Mesh::new().unwrap();
    let script = mesh.directory().join("agent");
    let text =
        "#!/bin/sh\necho started with \"$@\" >&2\necho '{\"direction\":\"inbound\"}'\nexec sleep 1000\n";
    // By a process of its own: were the script open here, what another test starts meanwhile would have it open for writing for
    // a moment too, and the kernel runs no such program (execve(2), ETXTBSY).
    let source = mesh.directory().join("agent.source");
    std::fs::write(&source, text).unwrap();
    let installed = Command::new("install").args(["-m", "755"]).arg(&source).arg(&script).status().unwrap();
    assert!(installed.success());

    let agent = mesh.agent("node-b").binary(&script).ca_dir("/nowhere").arg("--more").start().unwrap();
    let lines = || agent.access_log().len();
    eventually(PATIENCE, || lines() == 1);
    let node = mesh.node("node-b").unique_name();
    assert!(
        agent.logs().contains(&format!("started with agent --node {node} --manifests")),
        "{}",
        agent.logs()
    );
    assert!(agent.ready().is_err(), "it serves nothing");

    agent.kill9();
    assert!(!agent.is_running());
    agent.restart().unwrap();
    eventually(PATIENCE, || lines() == 2);
    assert!(agent.is_running() && agent.logs().lines().count() == 2);
    assert!(!agent.terminate().unwrap().success());
}

#[test]
fn making_a_pod_is_quick_enough_for_hundreds() {
    let mesh = Mesh::new().unwrap();
    let took = (0..50).map(|number| {
        let start = Instant::now();
        mesh.pod(&format!("p{number}")).start().unwrap();
        start.elapsed()
    });
    let took: Vec<_> = took.collect();
    println!("{:?} a pod", took.iter().sum::<Duration>() / 50);
    // Some 10 ms each; the limit only notices a wait that does not belong here (duplicate address detection: 1 s), which the
    // quickest would have too.
    assert!(*took.iter().min().unwrap() < Duration::from_secs(1), "{took:?}");
}
