//! Connections that go past the agent by its permit (`--native`): that they do, and whatever ends that.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

#[path = "../attacker/packets.rs"]
mod packets;

use lab::{Agent, PATIENCE, Pod, eventually, tcp};

use self::packets::syn;
use crate::world::{PORT, World, connect_from, open, policy, wait_refused};

const NATIVE: &str = "culvert_capture_native_total";
const CAPTURED: &str = "culvert_capture_connections_total";

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                      metadata: {name: strict, namespace: default}\nspec: {mtls: {mode: STRICT}}\n";

fn start() -> World {
    World::with(|_| vec!["--native".to_owned()])
}

fn count(agent: &Agent, name: &str) -> f64 {
    agent.metrics().unwrap().sum(name, &[])
}

/// Connects until a connection goes natively, and returns it. The first one never does.
#[track_caller]
fn open_natively(agent: &Agent, pod: &Pod, target: SocketAddr) -> TcpStream {
    eventually(PATIENCE, || {
        let before = [NATIVE, CAPTURED].map(|name| count(agent, name));
        let mut stream = pod.connect(target).map_err(|error| error.to_string())?;
        tcp::ping(&mut stream, "hello").map_err(|error| error.to_string())?;
        let now = [NATIVE, CAPTURED].map(|name| count(agent, name));
        if now == [before[0] + 1.0, before[1]] { Ok(stream) } else { Err(format!("{before:?} {now:?}")) }
    })
}

/// Connects some times, and asserts that it was never natively.
#[track_caller]
fn assert_never_native(agent: &Agent, pod: &Pod, target: SocketAddr) {
    for _ in 0..5 {
        open(pod, target);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(count(agent, NATIVE), 0.0);
    assert_eq!(count(agent, "culvert_capture_permits"), 0.0);
}

#[test]
fn what_was_carried_once_goes_past_the_agent_and_is_reported_like_it() {
    const ANSWER: usize = 3_000_000;
    let world = start();
    let World { client, server, agent, .. } = &world;
    let _echo = server.serve(PORT, tcp::echo).unwrap();
    let serving = server.serve(PORT + 1, |mut stream: TcpStream| {
        let mut question = Vec::new();
        let _ = stream.read_to_end(&mut question).and_then(|_| stream.write_all(&vec![7; ANSWER]));
    });
    let serving = serving.unwrap();
    for target in [server.at_v4(PORT + 1), server.at_v6(PORT + 1)] {
        let ask = || {
            let mut stream = client.connect(target).unwrap();
            let local = stream.local_addr().unwrap();
            assert_eq!(stream.peer_addr().unwrap(), target);
            stream.write_all(b"question").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            assert_eq!(answer.len(), ANSWER);
            local
        };
        let local = eventually(PATIENCE, || {
            let before = count(agent, NATIVE);
            let local = ask();
            (count(agent, NATIVE) > before).then_some(local)
        });
        assert!(serving.peers().contains(&local), "{:?} and not {local}", serving.peers());
        for line in world.lines(local) {
            assert!(line.is_ok(), "{line:?}");
            assert_eq!(line.field("native").as_deref(), Some("true"), "{line:?}");
            assert_eq!(line.field("security").as_deref(), Some("mutual_tls"));
            assert_eq!(line.source_identity(), Some(client.identity()));
            assert_eq!(line.destination_identity(), Some(server.identity()));
            assert_eq!(line.bytes_sent(), "question".len() as u64, "{line:?}");
            assert_eq!(line.bytes_received(), ANSWER as u64, "{line:?}");
            assert!(line.field("duration_ms").unwrap().parse::<f64>().unwrap() > 0.0, "{line:?}");
        }
    }
    for reporter in ["source", "destination"] {
        let labels = [("reporter", reporter), ("connection_security_policy", "mutual_tls")];
        let opened = agent.metrics().unwrap().sum("istio_tcp_connections_opened_total", &labels);
        assert!(opened >= 4.0, "{reporter}: {opened}");
    }
    eventually(PATIENCE, || count(agent, "culvert_connections_active") == 0.0);
    world.assert_no_tunnel();
}

#[test]
fn without_being_asked_for_nothing_goes_past_the_agent() {
    let world = World::start();
    let World { client, server, agent, .. } = &world;
    let _echo = server.serve(PORT, tcp::echo).unwrap();
    assert_never_native(agent, client, server.at(PORT));
}

#[test]
fn under_strict_the_permitted_pair_goes_natively_and_plaintext_is_refused() {
    let world = start();
    let World { client, server, agent, mesh, .. } = &world;
    let echo = server.serve(PORT, tcp::echo).unwrap();
    let outside = mesh.pod("outside").start().unwrap();
    open(&outside, server.at(PORT));
    mesh.apply("strict.yaml", STRICT).unwrap();
    eventually(PATIENCE, || outside.connect(server.at(PORT)).is_err());
    let mut stream = open_natively(agent, client, server.at(PORT));
    let accepted = echo.accepted();
    assert!(outside.connect(server.at(PORT)).is_err());
    assert_eq!(echo.accepted(), accepted);
    tcp::ping(&mut stream, "still here").unwrap();
    // A change of policy that permits it ends nothing, and what looks for plaintext leaves it alone.
    world.apply("open", "{rules: [{}]}");
    open_natively(agent, client, server.at(PORT));
    std::thread::sleep(Duration::from_secs(3));
    tcp::ping(&mut stream, "and still").unwrap();
}

#[test]
fn who_is_denied_gets_no_permit_and_others_do() {
    let world = start();
    let World { client, other, server, agent, .. } = &world;
    let _echo = server.serve(PORT, tcp::echo).unwrap();
    world.apply("one", &allow(client));
    for _ in 0..3 {
        wait_refused(other, server.at(PORT));
    }
    assert_eq!(count(agent, "culvert_capture_permits"), 0.0);
    open_natively(agent, client, server.at(PORT));
    wait_refused(other, server.at(PORT));
    assert_eq!(count(agent, "culvert_capture_permits"), 1.0);
}

fn allow(pod: &Pod) -> String {
    let principal = pod.identity().trim_start_matches("spiffe://").to_owned();
    format!("{{action: ALLOW, rules: [{{from: [{{source: {{principals: [{principal:?}]}}}}]}}]}}")
}

#[test]
fn what_policy_withdraws_is_cut_and_the_next_is_refused() {
    let world = start();
    let World { client, other, server, agent, .. } = &world;
    let echo = server.serve(PORT, tcp::echo).unwrap();
    let mut kept = open_natively(agent, other, server.at(PORT));
    let mut lost = open_natively(agent, client, server.at(PORT));
    let address = lost.local_addr().unwrap();
    world.apply("one", &allow(other));
    wait_reset_or_aborted(&mut lost);
    wait_refused(client, server.at(PORT));
    tcp::ping(&mut kept, "still here").unwrap();
    drop(kept);
    eventually(PATIENCE, || echo.open() == 0);
    let [source, destination] = world.lines(address);
    assert_eq!(destination.reason().as_deref(), Some("policy_revoked"), "{destination:?}");
    assert_eq!(source.reason().as_deref(), Some("reset"), "{source:?}");
    for line in [&source, &destination] {
        assert_eq!(line.field("native").as_deref(), Some("true"), "{line:?}");
        assert!(line.field("error").is_some_and(|error| error.contains("default/one")), "{line:?}");
        assert_eq!(line.bytes_sent(), "hello".len() as u64, "{line:?}");
    }
    let permits = || count(agent, "culvert_capture_permits");
    eventually(PATIENCE, || permits() <= 1.0);
}

/// `SOCK_DESTROY` says ECONNABORTED to the application.
#[track_caller]
fn wait_reset_or_aborted(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let error = tcp::read(stream, &mut [0; 16]).expect_err("it ended in good order");
    let kind = error.kind();
    let expected = [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::ConnectionAborted];
    assert!(expected.contains(&kind), "{error}");
}

#[test]
fn a_revoked_certificate_cuts_what_stands_on_it_and_the_next_needs_another() {
    let mut lists = None;
    let world = World::with(|mesh| {
        let file = mesh.directory().join("lists.pem");
        mesh.revoke(&file, &[]).unwrap();
        let args = vec!["--native".to_owned(), "--crl".to_owned(), file.display().to_string()];
        lists = Some(file);
        args
    });
    let World { client, other, server, agent, mesh, .. } = &world;
    let _echo = server.serve(PORT, tcp::echo).unwrap();
    let mut cut = open_natively(agent, client, server.at(PORT));
    let mut kept = open_natively(agent, other, server.at(PORT));
    let address = cut.local_addr().unwrap();
    let serial = agent.serial("client").unwrap();
    mesh.revoke(&lists.unwrap(), &[serial]).unwrap();
    wait_reset_or_aborted(&mut cut);
    for line in world.lines(address) {
        assert_eq!(line.reason().as_deref(), Some("bad_certificate"), "{line:?}");
    }
    tcp::ping(&mut kept, "the other goes on").unwrap();
    open_natively(agent, client, server.at(PORT));
}

#[test]
fn the_permits_of_a_killed_agent_lapse_and_the_next_agent_ends_what_it_did_not_permit() {
    let world = start();
    let World { client, server, agent, .. } = &world;
    let echo = server.serve(PORT, tcp::echo).unwrap();
    let mut stream = open_natively(agent, client, server.at(PORT));
    agent.kill9();
    eventually(PATIENCE, || client.connect(server.at(PORT)).is_err());
    tcp::ping(&mut stream, "nobody ends it").unwrap();
    agent.restart().unwrap();
    agent.wait_ready().unwrap();
    wait_reset_or_aborted(&mut stream);
    eventually(PATIENCE, || echo.open() == 0);
    open_natively(agent, client, server.at(PORT));
}

#[test]
fn an_agent_that_ends_waits_for_native_connections_and_then_ends_them() {
    let world = World::with(|_| ["--native", "--grace-period", "4s"].map(str::to_owned).to_vec());
    let World { client, other, server, agent, .. } = &world;
    let echo = server.serve(PORT, tcp::echo).unwrap();
    let mut stream = open_natively(agent, client, server.at(PORT));
    agent.begin_terminate();
    eventually(PATIENCE, || other.connect(server.at(PORT)).is_err());
    assert!(client.connect(server.at(PORT)).is_err(), "the permit outlives the drain");
    tcp::ping(&mut stream, "within the grace period").unwrap();
    agent.wait_end(PATIENCE).unwrap();
    wait_reset_or_aborted(&mut stream);
    eventually(PATIENCE, || echo.open() == 0);
}

#[test]
fn a_pod_that_leaves_takes_its_permits_along_and_keeps_its_connections() {
    let world = start();
    let World { client, server, agent, .. } = &world;
    let _echo = server.serve(PORT, tcp::echo).unwrap();
    let mut stream = open_natively(agent, client, server.at(PORT));
    server.unenroll().unwrap();
    eventually(PATIENCE, || count(agent, "culvert_capture_permits") == 0.0);
    tcp::ping(&mut stream, "still here").unwrap();
    // Plaintext, as to anybody outside the mesh.
    eventually(PATIENCE, || {
        let mut stream = client.connect(server.at(PORT)).map_err(|error| error.to_string())?;
        tcp::ping(&mut stream, "hello").map_err(|error| error.to_string())
    });
}

#[test]
fn the_end_of_a_pod_is_the_end_of_its_permits() {
    let world = start();
    let World { client, server, agent, .. } = &world;
    let _echo = server.serve(PORT, tcp::echo).unwrap();
    let mut stream = open_natively(agent, client, server.at(PORT));
    server.delete().unwrap();
    wait_reset_or_aborted(&mut stream);
    eventually(PATIENCE, || count(agent, "culvert_capture_permits") == 0.0);
}

/// A packet that a process with CAP_NET_RAW sends: an answer of ARP that nobody asked for.
const ARP: &str = "
import socket, sys
def mac(text): return bytes.fromhex(text.replace(':', ''))
own, victim, claimed, at = mac(sys.argv[1]), mac(sys.argv[2]), socket.inet_aton(sys.argv[3]), socket.inet_aton(sys.argv[4])
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind(('eth0', 0))
raw.send(victim + own + b'\\x08\\x06\\x00\\x01\\x08\\x00\\x06\\x04\\x00\\x02' + own + claimed + victim + at)
";

fn mac(pod: &Pod) -> String {
    let link = pod.sh("ip -o link show eth0").unwrap();
    link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap().to_owned()
}

/// Has `victim` send what is for `claimed` to `attacker`.
fn poison(attacker: &Pod, victim: &Pod, claimed: &Pod) {
    // Only what is known already is changed by an answer that was not asked for.
    let target = claimed.at_v4(9);
    victim.run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", target)).unwrap();
    let own = mac(attacker);
    eventually(PATIENCE, || {
        let args = [own.clone(), mac(victim), claimed.ipv4().to_string(), victim.ipv4().to_string()];
        let mut command = attacker.command("python3");
        assert!(command.args(["-c", ARP]).args(args).status().unwrap().success());
        let known = victim.sh(&format!("ip neigh show {}", claimed.ipv4())).unwrap();
        if known.contains(&own) { Ok(()) } else { Err(known) }
    });
}

#[test]
fn pods_on_a_bridge_never_go_past_the_agent_and_nobody_beside_them_reads_or_poses() {
    const MARKER: &str = "the-marker-that-is-looked-for";
    let mesh = lab::Mesh::builder().nodes(&["node-a"]).build().unwrap();
    let pod = |name: &str| mesh.pod(name).service_account(name);
    let client = pod("client").bridged().enrolled().start().unwrap();
    let server = pod("server").bridged().enrolled().start().unwrap();
    let routed = pod("routed").enrolled().start().unwrap();
    let attacker = pod("attacker").bridged().start().unwrap();
    let agent = mesh.agent("node-a").arg("--native").start().unwrap();
    agent.wait_ready().unwrap();
    let echo = server.serve(PORT, tcp::echo).unwrap();
    // The control: it is no accident that the two do not speak across the bridge.
    poison(&attacker, &client, &server);
    poison(&attacker, &server, &client);
    let capture = mesh.capture(attacker.netns(), "eth0").unwrap();
    for _ in 0..5 {
        let mut stream = client.connect(server.at_v4(PORT)).unwrap();
        tcp::ping(&mut stream, MARKER).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(!capture.stop().unwrap().contains(MARKER), "the attacker reads it");
    for (from, to) in [(&client, server.at(PORT)), (&routed, server.at(PORT)), (&client, server.at_v6(PORT))]
    {
        assert_never_native(&agent, from, to);
    }
    assert!(agent.logs().contains("shares a bridge"), "{}", agent.logs());
    // Who has taken the client's address is let in as plaintext is, and not as the client.
    mesh.apply("strict.yaml", STRICT).unwrap();
    eventually(PATIENCE, || attacker.connect(server.at_v4(PORT)).is_err());
    attacker.sh(&format!("ip addr add {}/32 dev eth0", client.ipv4())).unwrap();
    let accepted = echo.accepted();
    for _ in 0..3 {
        let before = agent.access_log().len();
        attacker.sh(&format!("ip route replace {} dev eth0 src {}", server.ipv4(), client.ipv4())).unwrap();
        assert!(attacker.connect(server.at_v4(PORT)).is_err());
        eventually(PATIENCE, || agent.access_log().len() > before);
    }
    assert_eq!(echo.accepted(), accepted);
}

#[test]
fn a_forged_syn_with_the_ends_of_a_permitted_handshake_makes_no_connection() {
    let world = start();
    let World { client, server, agent, mesh, .. } = &world;
    let echo = server.serve(PORT, tcp::echo).unwrap();
    let stranger = mesh.pod("stranger").start().unwrap();
    let target = server.at_v4(PORT);
    drop(open_natively(agent, client, target));
    eventually(PATIENCE, || echo.open() == 0);
    let accepted = echo.accepted();

    // Without an entry the kernel refuses it at once, though plaintext is permitted.
    let refused = || count(agent, "culvert_capture_refused_native_total");
    let before = refused();
    syn(&stranger, SocketAddr::new(client.ipv4(), 20_000), target);
    eventually(PATIENCE, || refused() > before);

    // With one: the client's own packets are held back, so that the entry stays.
    let node = server.node();
    let sh = |line: &str| {
        let done = node.command("sh").args(["-c", line]).output().unwrap();
        assert!(done.status.success(), "{line}: {done:?}");
        String::from_utf8(done.stdout).unwrap()
    };
    let link = sh(&format!("ip -o route get {}", client.ipv4()));
    let link = link.split_whitespace().skip_while(|word| *word != "dev").nth(1).unwrap().to_owned();
    sh(&format!("ip rule add iif {link} to {} blackhole", server.ipv4()));
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| client.connect(target));
        let sockets = |pod: &Pod, state: &str| {
            pod.sh(&format!("ss -tnH state {state} '( dport = :{PORT} or sport = :{PORT} )'")).unwrap()
        };
        let from: SocketAddr = eventually(PATIENCE, || {
            sockets(client, "syn-sent").split_whitespace().nth(2).and_then(|from| from.parse().ok())
        });
        let before = refused();
        syn(&stranger, from, target);
        // The address is IPv4-mapped there.
        let port = format!("{}]:{}", from.ip(), from.port());
        eventually(PATIENCE, || sockets(server, "syn-recv").contains(&port));
        assert_eq!(refused(), before, "it is let in, as the client's own is");
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(sockets(server, "established"), "");
        assert_eq!(echo.accepted(), accepted);
        // Whatever becomes of the client's own attempt: it is the client's.
        sh(&format!("ip rule del iif {link} to {} blackhole", server.ipv4()));
        drop(connecting.join().unwrap());
    });
    eventually(PATIENCE, || echo.open() == 0);
    assert!(echo.peers().iter().all(|peer| peer.ip() == client.ipv4()));
    open_natively(agent, client, target);
}

#[test]
fn what_the_kernel_let_through_by_no_permit_of_its_own_goes_through_the_agent() {
    let world = start();
    let World { client, server, service, agent, .. } = &world;
    let _echo = server.serve(PORT, tcp::echo).unwrap();
    let _hbone = server.serve(15008, tcp::echo).unwrap();
    drop(open_natively(agent, client, server.at_v4(PORT)));
    let native = count(agent, NATIVE);
    // A service, another address or port, the port of HBONE, a foreign source.
    open(client, service.address(80));
    open(client, service.address(80));
    for _ in 0..3 {
        open(client, server.at_v4(15008));
        std::thread::sleep(Duration::from_millis(100));
    }
    client.sh(&format!("ip addr add {}/32 dev lo", world.other.ipv4())).unwrap();
    let foreign = connect_from(client, world.other.ipv4(), server.at_v4(PORT))
        .and_then(|mut stream| tcp::ping(&mut stream, "hello"));
    assert!(foreign.is_err(), "an address that is not the pod's own");
    assert_eq!(count(agent, NATIVE), native);
    drop(open_natively(agent, client, server.at_v4(PORT)));
}

#[test]
fn a_handover_ends_nothing_and_the_predecessor_holds_its_own_to_policy() {
    let world = start();
    let World { client, other, server, mesh, agent, .. } = &world;
    let _echo = server.serve(PORT, tcp::echo).unwrap();
    let mut kept = open_natively(agent, client, server.at(PORT));
    let mut lost = open_natively(agent, other, server.at(PORT));
    let address = kept.local_addr().unwrap();
    let next = mesh.agent("node-a").args(["--take-over", "--native"]).start().unwrap();
    next.wait_ready().unwrap();
    // The predecessor's are taken back, in whose name the admin address answers at first, and then nobody's.
    eventually(PATIENCE, || {
        next.metrics().is_ok_and(|metrics| metrics.sum("culvert_capture_permits", &[]) == 0.0)
    });
    let mut third = open_natively(&next, client, server.at(PORT));
    for stream in [&mut kept, &mut lost] {
        tcp::ping(stream, "still here").unwrap();
    }
    mesh.apply("policies.yaml", &policy("one", &allow(client))).unwrap();
    wait_reset_or_aborted(&mut lost);
    tcp::ping(&mut kept, "permitted still").unwrap();
    tcp::ping(&mut third, "permitted still").unwrap();
    drop(kept);
    for direction in ["outbound", "inbound"] {
        let line = eventually(PATIENCE, || {
            let mut log = next.access_log().into_iter();
            log.find(|line| line.direction() == direction && line.source() == Some(address))
        });
        assert_eq!((line.is_ok(), line.field("native").as_deref()), (true, Some("true")), "{line:?}");
    }
    agent.terminate().unwrap();
    tcp::ping(&mut third, "the successor's own").unwrap();
}

#[test]
fn what_comes_to_be_on_a_bridge_is_ended() {
    let world = start();
    let World { client, other, server, agent, .. } = &world;
    let _echo = server.serve(PORT, tcp::echo).unwrap();
    let mut kept = open_natively(agent, other, server.at(PORT));
    let mut lost = open_natively(agent, client, server.at(PORT));
    let address = lost.local_addr().unwrap();
    let node = server.node();
    let line = format!(
        "link=$(ip -o route get {} | sed 's/.* dev \\([^ ]*\\).*/\\1/'); \
         ip link add br9 type bridge && ip link set br9 up && ip link set $link master br9",
        client.ipv4()
    );
    assert!(node.command("sh").args(["-c", &line]).status().unwrap().success());
    wait_reset_or_aborted(&mut lost);
    for line in world.lines(address) {
        assert_eq!(line.reason().as_deref(), Some("shared_segment"), "{line:?}");
    }
    eventually(PATIENCE, || count(agent, "culvert_capture_permits") == 1.0);
    tcp::ping(&mut kept, "still here").unwrap();
}

#[test]
fn a_renewed_certificate_brings_another_permit_and_what_stands_on_it_outlives_the_old_one() {
    let world = World::with(|_| ["--native", "--certificate-lifetime", "20s"].map(str::to_owned).to_vec());
    let World { client, server, agent, .. } = &world;
    let _echo = server.serve(PORT, tcp::echo).unwrap();
    let serials = || ["client", "server"].map(|name| agent.serial(name).unwrap());
    let before = serials();
    let mut old = open_natively(agent, client, server.at(PORT));
    eventually(PATIENCE, || serials().iter().zip(&before).all(|(now, before)| now != before));
    // As long as it may take to be noticed.
    std::thread::sleep(Duration::from_secs(6));
    let mut new = open_natively(agent, client, server.at(PORT));
    wait_reset_or_aborted(&mut old);
    tcp::ping(&mut new, "on the new ones").unwrap();
}
