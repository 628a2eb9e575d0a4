//! What applications do with their sockets: whatever ports they listen on, whatever way they connect, they are carried
//! and see the right addresses; and nothing that a process in a pod does with a socket gains it anything.

#[expect(dead_code, reason = "the kernel's tests make more kinds of sockets")]
#[path = "datapath/raw.rs"]
mod raw;

use std::{
    fs,
    io::{ErrorKind, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::Output,
};

use lab::{Agent, Mesh, PATIENCE, Pod, Service, eventually, tcp};
use nix::{libc, sys::socket};

/// A client and a server on two nodes, and a neighbour of the server; all in the mesh.
struct World {
    mesh: Mesh,
    client: Pod,
    neighbour: Pod,
    server: Pod,
    a: Agent,
    b: Agent,
}

impl World {
    fn start() -> Self {
        let mesh = Mesh::new().unwrap();
        let pod = |name, node| mesh.pod(name).on(node).enrolled().label("app", name).service_account(name);
        let client = pod("client", "node-a").start().unwrap();
        let neighbour = pod("neighbour", "node-b").start().unwrap();
        let server = pod("server", "node-b").start().unwrap();
        let (a, b) = (mesh.agent("node-a").start().unwrap(), mesh.agent("node-b").start().unwrap());
        a.wait_ready().unwrap();
        b.wait_ready().unwrap();
        Self { mesh, client, neighbour, server, a, b }
    }

    fn service(&self, port: u16, target: u16) -> Service {
        let service = self.mesh.service("server").select("app", "server").port(port, target).apply().unwrap();
        let address = service.address(port).ip().to_string();
        for agent in [&self.a, &self.b] {
            eventually(PATIENCE, || destinations(agent).is_some_and(|all| all.contains(&address)));
        }
        service
    }
}

/// What an agent captures, as its dump has it.
fn destinations(agent: &Agent) -> Option<String> {
    let dump: serde_json::Value = serde_json::from_str(&agent.get_private("/config_dump").ok()?.body).ok()?;
    Some(dump.get("destinations")?.to_string())
}

fn counter(agent: &Agent, name: &str) -> u64 {
    agent.metrics().unwrap().sum(&format!("culvert_capture_{name}_total"), &[]) as u64
}

/// Checks a captured connection to an echo server: what each end sees, and that bytes pass.
fn check(agent: &Agent, mut stream: TcpStream, target: SocketAddr, client: IpAddr, server: &tcp::Server) {
    tcp::ping(&mut stream, "through the mesh").unwrap_or_else(|error| panic!("{target}: {error}"));
    assert_eq!(tcp::canonical(stream.peer_addr().unwrap()), target);
    assert_eq!(tcp::canonical(stream.local_addr().unwrap()).ip(), client, "to {target}");
    let seen = *server.peers().last().unwrap();
    assert_eq!(seen.ip(), client, "{target} sees {seen}");
    drop(stream);
    let record = eventually(PATIENCE, || {
        agent.access_log().into_iter().rfind(|record| {
            record.direction() == "outbound"
                && record.source().is_some_and(|source| source.port() == seen.port())
        })
    });
    assert!(record.is_ok() && record.field("security").as_deref() == Some("mutual_tls"), "{record:?}");
}

#[test]
fn an_application_may_listen_where_meshes_usually_do() {
    let World { mesh: _mesh, client, neighbour, server, a, b } = &World::start();
    for port in [15001, 15006, 15008, 15021, 80] {
        let echo = server.serve(port, tcp::echo).unwrap();
        for target in [server.at_v4(port), server.at_v6(port)] {
            for (pod, agent) in [(client, a), (neighbour, b)] {
                let source = if target.is_ipv4() { pod.ipv4() } else { pod.ipv6() };
                check(agent, pod.connect(target).unwrap(), target, source, &echo);
            }
        }
    }
    assert_eq!(counter(a, "connections"), 10);
}

/// The pod's own ports of connections that live: of accepted ones those that clients asked for, of the agent's own those
/// that the kernel chose.
fn ports_in_use(pod: &Pod) -> Vec<u16> {
    let mut ports = ["tcp", "tcp6"].map(|table| ports_in_state(pod, table, ESTABLISHED)).concat();
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[test]
fn an_application_may_begin_to_listen_on_a_port_that_the_mesh_uses() {
    let World { client, server, .. } = &World::start();
    let echo = server.serve(8080, tcp::echo).unwrap();
    let streams: Vec<_> = (0..300)
        .map(|number| {
            let target = if number % 2 == 0 { server.at_v4(8080) } else { server.at_v6(8080) };
            let mut stream = client.connect(target).unwrap();
            tcp::ping(&mut stream, "held").unwrap();
            stream
        })
        .collect();
    assert_eq!(echo.open(), 300);
    for pod in [client, server] {
        // The applications' own connections hold their ports, with or without the mesh.
        let own: Vec<_> =
            streams.iter().map(|stream| stream.local_addr().unwrap().port()).chain([8080]).collect();
        let ports: Vec<_> = ports_in_use(pod).into_iter().filter(|port| !own.contains(port)).collect();
        assert!(ports.len() > 100, "{}: {ports:?}", pod.name());
        for port in ports {
            let _server = pod.serve(port, tcp::echo).unwrap_or_else(|error| panic!("port {port}: {error:#}"));
        }
    }
}

#[test]
fn what_listens_on_loopback_is_reached_from_the_pod_alone() {
    let World { mesh, client, neighbour, server, .. } = &World::start();
    let outsider = mesh.pod("outsider").on("node-b").start().unwrap();
    for (at, address) in [("127.0.0.1:7000", server.ipv4()), ("[::1]:7001", server.ipv6())] {
        let at: SocketAddr = at.parse().unwrap();
        let echo = tcp::Server::start(server.netns().listen_at(at).unwrap(), tcp::echo).unwrap();
        let target = SocketAddr::new(address, at.port());
        for pod in [client, neighbour, &outsider, server] {
            let answer = pod.connect(target).and_then(|mut stream| tcp::ping(&mut stream, "hello"));
            let kind = answer.expect_err("it listens on loopback only").kind();
            let refused = [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset];
            assert!(refused.contains(&kind), "{} to {target}: {kind}", pod.name());
        }
        assert_eq!(echo.accepted(), 0);
        tcp::ping(&mut server.connect(at).unwrap(), "hello").unwrap();
    }
}

/// As `/proc/net/tcp` writes the states.
const ESTABLISHED: &str = "01";
const LISTEN: &str = "0A";

/// The local ports of the sockets inside a pod that are in a state.
fn ports_in_state(pod: &Pod, table: &str, state: &str) -> Vec<u16> {
    let text = pod.run(|| fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap());
    let port = |line: &str| {
        let local = line.split_whitespace().nth(1)?;
        u16::from_str_radix(local.rsplit(':').next()?, 16).ok()
    };
    text.lines().filter(|line| line.split_whitespace().nth(3) == Some(state)).filter_map(port).collect()
}

#[test]
fn connecting_straight_to_the_agents_listeners_gains_nothing() {
    let World { client, a, .. } = &World::start();
    let loopbacks = [
        ("tcp", IpAddr::from(Ipv4Addr::LOCALHOST), client.ipv4()),
        ("tcp6", Ipv6Addr::LOCALHOST.into(), client.ipv6()),
    ];
    for (table, loopback, own) in loopbacks {
        let ports = ports_in_state(client, table, LISTEN);
        assert_eq!(
            ports.len(),
            3,
            "the agent's listeners for captured connections, for HBONE and for plaintext"
        );
        for port in ports {
            let before = counter(a, "refused_direct");
            let error = client.connect((loopback, port).into()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            assert_eq!(counter(a, "refused_direct"), before + 1);
            // At the pod's own address nobody listens there.
            assert_eq!(client.connect((own, port).into()).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
        // Nor do the ports that captured connections are redirected to lead to it, nor that of HBONE.
        for port in [1, 80, 1023, 15008] {
            assert_eq!(client.connect((own, port).into()).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
    }
    assert!(a.access_log().is_empty(), "no connection reached the agent: {:?}", a.access_log());
}

#[test]
fn a_socket_mark_gains_nothing() {
    let World { client, server, a, .. } = &World::start();
    let echo = server.serve(8080, tcp::echo).unwrap();
    // Those that ztunnel and Istio's rules go by, and any.
    for mark in [0x539, 0x111, 1337, 1, u32::MAX] {
        let target = server.at(8080);
        let stream = client.run(|| {
            let socket = raw::tcp(target);
            socket::setsockopt(&socket, socket::sockopt::Mark, &mark).unwrap();
            raw::connect(&socket, target).unwrap();
            raw::stream(socket)
        });
        check(a, stream, target, client.ip(), &echo);
    }
    assert_eq!(counter(a, "connections"), 5);
}

/// Connects, forks, and lets the child connect the same socket again; prints the child's error and what comes back.
const FORK: &str = r"
import os, socket, sys
first, second = [(host, int(port)) for host, port in (arg.rsplit(':', 1) for arg in sys.argv[1:3])]
s = socket.socket()
s.connect(first)
if os.fork() == 0:
    try:
        s.connect(second)
        print('connected')
    except OSError as error:
        print(error.errno, flush=True)
    s.sendall(b'child ')
    os._exit(0)
os.wait()
s.sendall(b'parent')
back = b''
while len(back) < 12:
    back += s.recv(64)
print(back.decode(), s.getpeername()[0])
";

#[test]
fn a_fork_of_a_captured_socket_gains_nothing() {
    let World { mesh, client, neighbour, server, a, .. } = &World::start();
    let outsider = mesh.pod("outsider").on("node-b").start().unwrap();
    let echo = server.serve(8080, tcp::echo).unwrap();
    for other in [neighbour, &outsider] {
        let elsewhere = other.serve(8080, tcp::echo).unwrap();
        let (first, second) = (server.at(8080).to_string(), other.at(8080).to_string());
        let output = client.command("python3").args(["-c", FORK, &first, &second]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let expected = format!("{}\nchild parent {}\n", libc::EISCONN, server.ip());
        assert_eq!(said, expected, "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(elsewhere.accepted(), 0);
    }
    assert_eq!(echo.accepted(), 2);
    assert_eq!(counter(a, "connections"), 2, "each connection was captured once");
}

/// How a client may come to be connected.
type Connect = fn(SocketAddr) -> OwnedFd;

fn by_mptcp(target: SocketAddr) -> OwnedFd {
    let socket = raw::mptcp(target).expect("the kernel has MPTCP");
    raw::connect(&socket, target).unwrap();
    socket
}

fn by_fast_open_send(target: SocketAddr) -> OwnedFd {
    let socket = raw::tcp(target);
    assert_eq!(raw::send_fast_open(&socket, target, b"").unwrap(), 0);
    socket
}

fn by_fast_open_connect(target: SocketAddr) -> OwnedFd {
    let socket = raw::tcp(target);
    socket::setsockopt(&socket, socket::sockopt::TcpFastOpenConnect, &true).unwrap();
    raw::connect(&socket, target).unwrap();
    socket
}

fn after_bind(target: SocketAddr) -> OwnedFd {
    let socket = raw::tcp(target);
    let any: IpAddr =
        if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    raw::bind(&socket, (any, 0).into()).unwrap();
    raw::connect(&socket, target).unwrap();
    socket
}

fn listen(port: u16, protocol: libc::c_int, fast_open: bool) -> TcpListener {
    let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let socket = if protocol == libc::IPPROTO_MPTCP {
        raw::mptcp(at).expect("the kernel has MPTCP")
    } else {
        raw::tcp(at)
    };
    raw::set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).unwrap();
    raw::bind(&socket, at).unwrap();
    socket::listen(&socket, socket::Backlog::new(64).unwrap()).unwrap();
    if fast_open {
        raw::set_option(&socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 64).unwrap();
    }
    socket.into()
}

#[test]
fn every_way_to_connect_and_to_listen_is_carried_and_shows_the_right_addresses() {
    let World { client, server, a, .. } = &World::start();
    let servers = [
        (8080, libc::IPPROTO_TCP, false),
        (8081, libc::IPPROTO_TCP, true),
        (8082, libc::IPPROTO_MPTCP, false),
    ];
    let ways: [Connect; 4] = [by_mptcp, by_fast_open_send, by_fast_open_connect, after_bind];
    let mut connections = 0;
    for (port, protocol, fast_open) in servers {
        let echo = tcp::Server::start(server.run(|| listen(port, protocol, fast_open)), tcp::echo).unwrap();
        for target in [server.at_v4(port), server.at_v6(port)] {
            let source = if target.is_ipv4() { client.ipv4() } else { client.ipv6() };
            for way in ways {
                check(a, raw::stream(client.run(|| way(target))), target, source, &echo);
                connections += 1;
            }
            // Bytes that travel with the SYN are not lost.
            let stream = client.run(|| {
                let socket = raw::tcp(target);
                assert_eq!(raw::send_fast_open(&socket, target, b"early").unwrap(), 5);
                raw::stream(socket)
            });
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut back = [0; 5];
            (&stream).read_exact(&mut back).unwrap();
            assert_eq!(&back, b"early");
            check(a, stream, target, source, &echo);
            connections += 1;
        }
    }
    assert_eq!(counter(a, "connections"), connections);
}

#[test]
fn a_socket_bound_to_the_pods_address_and_a_port_keeps_both() {
    let World { client, server, a, .. } = &World::start();
    let echo = server.serve(8080, tcp::echo).unwrap();
    for (own, port, target) in
        [(client.ipv4(), 40_000, server.at_v4(8080)), (client.ipv6(), 500, server.at_v6(8080))]
    {
        let stream = client.run(|| {
            let socket = raw::tcp(target);
            raw::bind(&socket, (own, port).into()).unwrap();
            raw::connect(&socket, target).unwrap();
            raw::stream(socket)
        });
        assert_eq!(stream.local_addr().unwrap(), SocketAddr::new(own, port));
        check(a, stream, target, own, &echo);
        assert_eq!(echo.peers().last().unwrap().port(), port, "the server sees the client's own port");
    }
}

#[test]
fn a_socket_that_is_disconnected_and_used_again_is_carried_to_where_it_asks_now() {
    let World { mesh, client, neighbour, server, a, .. } = &World::start();
    let outsider = mesh.pod("outsider").on("node-b").start().unwrap();
    let pods = [server, &outsider, neighbour, &outsider, server];
    let servers = pods[..3].iter().map(|pod| pod.serve(8080, tcp::echo).unwrap()).collect::<Vec<_>>();
    let targets: Vec<_> = pods.iter().map(|pod| pod.at(8080)).collect();
    client.run(|| {
        let socket = raw::tcp(targets[0]);
        let mut stream = raw::stream(socket);
        for target in targets {
            raw::connect(&stream, target).unwrap();
            tcp::ping(&mut stream, &target.to_string()).unwrap();
            assert_eq!(stream.peer_addr().unwrap(), target);
            raw::disconnect(&stream).unwrap();
        }
    });
    assert_eq!(servers.iter().map(tcp::Server::accepted).collect::<Vec<_>>(), [2, 2, 1]);
    assert!(servers.iter().all(|server| server.peers().iter().all(|peer| peer.ip() == client.ip())));
    assert_eq!(counter(a, "connections"), 3, "those to pods of the mesh");
}

#[test]
fn a_pod_that_calls_its_own_service_reaches_itself() {
    let world = World::start();
    let service = world.service(80, 8080);
    let World { server, b, .. } = &world;
    let echo = server.serve(8080, tcp::echo).unwrap();
    for (target, own) in [(service.address(80), server.ipv4()), (service.address_v6(80), server.ipv6())] {
        check(b, server.connect(target).unwrap(), target, own, &echo);
        tcp::exchange(server.connect(target).unwrap(), 1 << 20).unwrap();
    }
}

fn run(pod: &Pod, program: &str, args: &[&str]) -> String {
    let Output { status, stdout, stderr } = pod.command(program).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{program} {args:?}: {status}: {text}{}", String::from_utf8_lossy(&stderr));
    text
}

#[test]
fn curl_and_nginx() {
    let world = World::start();
    let service = world.service(80, 8080);
    let World { mesh, client, server, a, .. } = &world;
    let directory = mesh.directory().join("nginx");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("body"), "a page\n".repeat(100_000)).unwrap();
    let prefix = directory.display();
    let configuration = format!(
        "daemon off; user root; pid {prefix}/pid; error_log stderr; events {{}} http {{ access_log off; \
         client_body_temp_path {prefix}; proxy_temp_path {prefix}; fastcgi_temp_path {prefix}; \
         uwsgi_temp_path {prefix}; scgi_temp_path {prefix}; \
         server {{ listen 8080; listen [::]:8080; location /who {{ return 200 \"$remote_addr\\n\"; }} \
         location / {{ root {prefix}; }} }} }}"
    );
    let file = directory.join("nginx.conf");
    fs::write(&file, configuration).unwrap();
    let nginx = server.spawn("nginx", &["-e", "stderr", "-c", file.to_str().unwrap()]).unwrap();
    for (address, own) in [(service.address(80), client.ipv4()), (service.address_v6(80), client.ipv6())] {
        let url = format!("http://{address}/who");
        let who = nginx.until(PATIENCE, || client.sh(&format!("curl -sSf '{url}'"))).unwrap();
        assert_eq!(who.trim(), own.to_string());
        // One connection for many requests.
        let page = format!("http://{address}/body");
        let pages = run(client, "curl", &["-sSf", &page, &page, &page]);
        assert_eq!(pages.len(), 3 * 700_000);
    }
    assert!(counter(a, "connections") >= 4);
}

#[test]
fn redis_cli_and_redis_server() {
    let world = World::start();
    let service = world.service(6379, 6379);
    let World { mesh, client, server, a, .. } = &world;
    let directory = mesh.directory().display().to_string();
    let args = [
        "--port",
        "6379",
        "--bind",
        "*",
        "-::*",
        "--protected-mode",
        "no",
        "--save",
        "",
        "--dir",
        &directory,
    ];
    let redis = server.spawn("redis-server", &args).unwrap();
    let host = service.address(6379).ip().to_string();
    redis.until(PATIENCE, || client.sh(&format!("redis-cli -h {host} ping | grep PONG"))).unwrap();
    assert_eq!(run(client, "redis-cli", &["-h", &host, "set", "key", "value"]).trim(), "OK");
    assert_eq!(run(client, "redis-cli", &["-h", &host, "get", "key"]).trim(), "value");
    let info = run(client, "redis-cli", &["-h", &host, "client", "info"]);
    assert!(info.contains(&format!(" addr={}:", client.ip())), "{info}");
    assert!(counter(a, "connections") >= 4);
}

#[test]
fn iperf3_both_ways() {
    let World { client, server, a, .. } = &World::start();
    let iperf = server.spawn("iperf3", &["-s", "-p", "5201"]).unwrap();
    for host in [server.ipv4().to_string(), server.ipv6().to_string()] {
        for direction in [&[][..], &["-R"], &["--bidir"]] {
            let args = [&["-c", &host, "-p", "5201", "-n", "64M", "-P", "4", "--json"], direction].concat();
            // One at a time: the server may not have begun, or not be done with the last.
            let output = iperf
                .until(PATIENCE, || {
                    let output = client.command("iperf3").args(&args).output().unwrap();
                    let text = String::from_utf8_lossy(&output.stdout).into_owned();
                    // It ends in peace, with an error in its report, where a call of its own was interrupted.
                    if output.status.success() && !text.contains("\"error\"") { Ok(text) } else { Err(text) }
                })
                .unwrap();
            let report: serde_json::Value = serde_json::from_str(&output).unwrap();
            let received = report["end"]["sum_received"]["bytes"].as_f64();
            let received = received.unwrap_or_else(|| panic!("{host} {direction:?}: {}", report["error"]));
            // iperf3 counts what had arrived when the sender had sent the last byte; the rest was underway.
            assert!(received >= 1e6, "{host} {direction:?}: {received} bytes");
        }
    }
    assert!(counter(a, "connections") >= 2 * 3 * 5);
}

#[test]
fn tls_of_the_applications_own() {
    let World { mesh, client, server, a, .. } = &World::start();
    let path = |name: &str| mesh.directory().join(name).display().to_string();
    let (key, certificate) = (path("app.key"), path("app.pem"));
    let make = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=app",
    ];
    run(server, "openssl", &[&make[..], &["-days", "1", "-keyout", &key, "-out", &certificate]].concat());
    let args = ["s_server", "-accept", "4433", "-key", &key, "-cert", &certificate, "-www", "-quiet"];
    let s_server = server.spawn("openssl", &args).unwrap();
    for target in [server.at_v4(4433), server.at_v6(4433)] {
        let line = format!(
            "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | openssl s_client -connect '{target}' -CAfile {certificate} \
             -verify_return_error -quiet -ign_eof 2>&1"
        );
        let page = s_server.until(PATIENCE, || client.sh(&line)).unwrap();
        assert!(page.contains("200 ok") && page.contains("TLSv1.3"), "{page}");
    }
    assert!(counter(a, "connections") >= 2);
}
