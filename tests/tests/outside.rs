//! What the mesh leaves alone: destinations outside it, a pod's traffic with itself, UDP and ICMP, and the node's own
//! way to its pods. Each check has its control: the same kind of connection into the mesh, which the agents count and
//! which fails while none runs.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    sync::mpsc,
    thread,
};

use lab::{Agent, Mesh, Node, PATIENCE, Pod, eventually, http, tcp};

/// Everything that an agent counts of connections, in the kernel and in itself.
fn counters(agent: &Agent) -> BTreeMap<String, u64> {
    let names =
        ["culvert_capture_", "istio_tcp_connections_", "culvert_connections_failed", "culvert_hbone_"];
    // How many addresses are known is no count of connections.
    let samples = agent.metrics().unwrap();
    let counted = samples.samples().iter().filter(|sample| {
        names.iter().any(|name| sample.name.starts_with(name))
            && sample.name != "culvert_capture_destinations"
    });
    counted.fold(BTreeMap::new(), |mut all, sample| {
        *all.entry(sample.name.clone()).or_default() += sample.value as u64;
        all
    })
}

fn start_agents(mesh: &Mesh) -> [Agent; 2] {
    let agents = ["node-a", "node-b"].map(|node| mesh.agent(node).start().unwrap());
    for agent in &agents {
        agent.wait_ready().unwrap();
    }
    agents
}

/// A destination that the mesh does not know how to reach better than the kernel does.
struct Outside {
    target: SocketAddr,
    /// What the server is to see as its client.
    client: IpAddr,
    server: tcp::Server,
}

impl Outside {
    fn new(target: SocketAddr, client: IpAddr, listener: TcpListener) -> Self {
        Self { target, client, server: tcp::Server::start(listener, tcp::echo).unwrap() }
    }

    /// Connects plainly: both ends see each other as they are.
    fn open(&self, pod: &Pod) -> TcpStream {
        let mut stream = pod.connect(self.target).unwrap_or_else(|error| panic!("{}: {error}", self.target));
        tcp::ping(&mut stream, "plain").unwrap_or_else(|error| panic!("{}: {error}", self.target));
        assert_eq!(stream.peer_addr().unwrap(), self.target);
        assert_eq!(stream.local_addr().unwrap().ip(), self.client, "to {}", self.target);
        assert!(self.server.peers().contains(&stream.local_addr().unwrap()), "to {}", self.target);
        stream
    }
}

/// A client in the mesh, what it speaks to outside, and a pod in the mesh for control.
struct World {
    mesh: Mesh,
    client: Pod,
    remote: Pod,
    outside: Vec<Outside>,
    inside: Pod,
    _echo: tcp::Server,
}

impl World {
    fn new() -> Self {
        let mesh = Mesh::new().unwrap();
        let client = mesh.pod("client").on("node-a").enrolled().start().unwrap();
        let neighbour = mesh.pod("neighbour").on("node-a").start().unwrap();
        let remote = mesh.pod("remote").on("node-b").opted_out().start().unwrap();
        let inside = mesh.pod("inside").on("node-b").enrolled().start().unwrap();
        let (v4, v6) = (client.ipv4(), client.ipv6());
        let mut outside = Vec::new();
        for pod in [&neighbour, &remote] {
            outside.push(Outside::new(pod.at_v4(8080), v4, pod.listen(8080).unwrap()));
            outside.push(Outside::new(pod.at_v6(8081), v6, pod.listen(8081).unwrap()));
        }
        // Nobody knows the other node's own address.
        let node = mesh.node("node-b");
        outside.push(Outside::new((node.ipv4(), 9000).into(), v4, node.listen(9000).unwrap()));
        outside.push(Outside::new((node.ipv6(), 9001).into(), v6, node.listen(9001).unwrap()));
        // The pod itself: ports in and out of the range that captured connections use.
        let own = [
            ("127.0.0.1:80", "127.0.0.1"),
            ("127.0.0.1:8080", "127.0.0.1"),
            ("[::1]:81", "::1"),
            ("[::1]:8081", "::1"),
        ];
        let own = own.map(|(target, client)| (target.parse().unwrap(), client.parse().unwrap()));
        let by_address =
            [(v4, 82), (v4, 8082), (v6, 83), (v6, 8083)].map(|(ip, port)| (SocketAddr::new(ip, port), ip));
        for (target, from) in own.into_iter().chain(by_address) {
            outside.push(Outside::new(target, from, client.netns().listen_at(target).unwrap()));
        }
        outside.extend(api_server(&mesh, &client));
        let echo = inside.serve(8080, tcp::echo).unwrap();
        Self { mesh, client, remote, outside, inside, _echo: echo }
    }

    fn open_all(&self) -> Vec<TcpStream> {
        self.outside.iter().map(|outside| outside.open(&self.client)).collect()
    }

    fn check_datagrams(&self) {
        for (address, local) in [(self.remote.ipv4(), "0.0.0.0:0"), (self.remote.ipv6(), "[::]:0")] {
            let bind = || UdpSocket::bind((address, 5353)).unwrap();
            datagram(&self.remote.run(bind), &self.client.run(|| UdpSocket::bind(local).unwrap()));
            self.client.sh(&format!("ping -c1 -W10 {address}")).unwrap();
        }
        // The address is in the mesh: only TCP goes through it.
        let inside = self.inside.ipv4();
        let bind = || UdpSocket::bind((inside, 8080)).unwrap();
        datagram(&self.inside.run(bind), &self.client.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()));
        self.client.sh(&format!("ping -c1 -W10 {inside}")).unwrap();
    }

    fn control(&self) -> io::Result<()> {
        tcp::ping(&mut self.client.connect(self.inside.at(8080))?, "control")
    }
}

/// `kubernetes.default`: a service whose only endpoint is the API server, on its node's network. What kube-proxy does
/// is done by giving the node the service's address.
fn api_server(mesh: &Mesh, client: &Pod) -> Vec<Outside> {
    let service = mesh.service("kubernetes").only_port(443, 6443).apply().unwrap();
    let node = mesh.node("node-a");
    let mut outside = Vec::new();
    for (family, target, endpoint, source) in [
        ("IPv4", service.address(443), IpAddr::from(node.ipv4()), client.ipv4()),
        ("IPv6", service.address_v6(443), node.ipv6().into(), client.ipv6()),
    ] {
        let name = format!("kubernetes-{}", family.to_lowercase());
        let slice = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  namespace: default\n  \
             labels: {{kubernetes.io/service-name: kubernetes}}\naddressType: {family}\nports:\n  \
             - {{port: 6443, protocol: TCP}}\nendpoints:\n  - addresses: [\"{endpoint}\"]\n    conditions: {{ready: true}}\n"
        );
        mesh.apply(&format!("{name}.yaml"), &slice).unwrap();
        let mut ip = node.command("ip");
        assert!(ip.args(["addr", "add", &target.ip().to_string(), "dev", "lo"]).status().unwrap().success());
        outside.push(Outside::new(target, source, node.netns().listen_at(target).unwrap()));
    }
    outside
}

/// One datagram there and one back.
fn datagram(server: &UdpSocket, client: &UdpSocket) {
    let mut buffer = [0; 16];
    for socket in [server, client] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    client.send_to(b"ask", server.local_addr().unwrap()).unwrap();
    let (length, from) = receive(server, &mut buffer);
    server.send_to(&buffer[..length], from).unwrap();
    assert_eq!(receive(client, &mut buffer).0, 3);
}

/// Goes on where a signal came in between, as [`tcp::read`] does.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> (usize, SocketAddr) {
    loop {
        match socket.recv_from(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            received => return received.unwrap(),
        }
    }
}

fn all_live(streams: &mut [TcpStream], line: &str) {
    for stream in streams {
        let peer = stream.peer_addr();
        tcp::ping(stream, line).unwrap_or_else(|error| panic!("{line}: {peer:?}: {error}"));
    }
}

#[test]
fn what_is_outside_is_not_counted_and_goes_on_while_no_agent_runs() {
    let world = World::new();
    let agents = start_agents(&world.mesh);
    let count = || [counters(&agents[0]), counters(&agents[1])];
    let before = count();
    assert!(before[0].len() > 5, "there is something to count: {:?}", before[0]);
    let mut live = world.open_all();
    world.check_datagrams();
    assert_eq!(count(), before);
    world.control().unwrap();
    let after = count();
    assert_ne!(after[0], before[0], "a connection into the mesh is counted");
    assert_ne!(after[1], before[1], "a connection into the mesh is counted");

    for agent in &agents {
        agent.kill9();
    }
    all_live(&mut live, "agents killed");
    let mut newer = world.open_all();
    world.check_datagrams();
    let refused = world.client.connect(world.inside.at(8080)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "a connection into the mesh fails");

    for agent in &agents {
        agent.restart().unwrap();
        agent.wait_ready().unwrap();
    }
    all_live(&mut live, "agents restarted");
    world.control().unwrap();
    for agent in &agents {
        assert!(agent.terminate().unwrap().success());
    }
    drop(world.open_all());
    for agent in &agents {
        let output = agent.cleanup().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    all_live(&mut live, "after cleanup");
    all_live(&mut newer, "after cleanup");
    world.control().unwrap();
}

#[test]
fn connections_from_before_enrolment_live_through_enrolment_agent_death_and_cleanup() {
    let mesh = Mesh::new().unwrap();
    let client = mesh.pod("client").on("node-a").start().unwrap();
    let server = mesh.pod("server").on("node-b").enrolled().start().unwrap();
    let echo = server.serve(8080, tcp::echo).unwrap();
    let [agent, other] = start_agents(&mesh);
    let open = |target| {
        let mut stream = client.connect(target).unwrap();
        tcp::ping(&mut stream, "first").unwrap();
        stream
    };
    let captured = || agent.metrics().unwrap().sum("culvert_capture_connections_total", &[]) as u64;
    let mut live = vec![open(server.at_v4(8080)), open(server.at_v6(8080))];
    assert_eq!(captured(), 0);
    assert!(echo.peers().contains(&live[0].local_addr().unwrap()), "in plaintext, as itself");

    client.enroll().unwrap();
    eventually(PATIENCE, || {
        let mut stream = client.connect(server.at(8080))?;
        tcp::ping(&mut stream, "captured?")?;
        if captured() > 0 { Ok(()) } else { Err(io::Error::other("nothing is captured yet")) }
    });
    all_live(&mut live, "the client is enrolled");
    agent.kill9();
    other.kill9();
    assert!(client.connect(server.at(8080)).is_err(), "new ones are the mesh's");
    all_live(&mut live, "the agents are dead");
    for agent in [&agent, &other] {
        assert!(agent.cleanup().unwrap().status.success());
    }
    all_live(&mut live, "after cleanup");
    drop(open(server.at(8080)));
}

/// A kubelet's probes: TCP, and HTTP to its answer.
fn probe(node: &Node, target: SocketAddr) -> io::Result<()> {
    drop(node.connect(target)?);
    let stream = node.connect(target)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let answer = http::get(stream, "/healthz").map_err(|error| io::Error::other(format!("{error:#}")))?;
    if answer.status == 200 { Ok(()) } else { Err(io::Error::other(format!("it answers {}", answer.status))) }
}

/// Answers one HTTP request with 200.
fn healthy(mut stream: TcpStream) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match tcp::read(&mut stream, &mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return,
        }
    }
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
}

#[test]
fn the_node_probes_its_pods_whatever_the_agent_does() {
    let mesh = Mesh::new().unwrap();
    let pod = mesh.pod("probed").on("node-a").enrolled().start().unwrap();
    let bridged = mesh.pod("bridged").on("node-a").bridged().enrolled().start().unwrap();
    let ports = [80, 8080, 15001, 15006, 15008, 15021];
    let servers: Vec<_> = [&pod, &bridged]
        .iter()
        .flat_map(|pod| ports.map(|port| (port, pod.serve(port, healthy).unwrap())))
        .collect();
    let node = mesh.node("node-a");
    let targets = |port| [&pod, &bridged].map(|pod| [pod.at_v4(port), pod.at_v6(port)]).concat();
    let check = |state: &str| {
        for target in ports.iter().filter(|port| **port != 15008).flat_map(|port| targets(*port)) {
            probe(node, target).unwrap_or_else(|error| panic!("{state}: {target}: {error}"));
        }
    };
    check("before any agent");
    let agent = mesh.agent("node-a").start().unwrap();
    agent.wait_ready().unwrap();
    check("enrolled");

    // Port 15008 of an enrolled pod is the agent's to everybody outside the pod: a probe of TCP finds it open, one of
    // HTTP gets no answer, and what the application has there is the mesh's to reach.
    let answered = |servers: &[(u16, tcp::Server)]| {
        servers.iter().filter(|(port, _)| *port == 15008).map(|(_, server)| server.accepted()).sum::<usize>()
    };
    let before = answered(&servers);
    for target in targets(15008) {
        drop(node.connect(target).unwrap());
        probe(node, target).unwrap_err();
    }
    assert_eq!(answered(&servers), before);

    agent.kill9();
    check("the agent was killed");
    for target in targets(15008) {
        assert_eq!(node.connect(target).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    agent.restart().unwrap();
    while agent.ready().is_err() {
        check("the agent restarts");
    }
    check("the agent was restarted");
    agent.begin_terminate();
    check("the agent drains");
    assert!(agent.wait_end(PATIENCE).unwrap().success());
    check("the agent has ended");
    assert!(agent.cleanup().unwrap().status.success());
    check("after cleanup");
    for target in targets(15008) {
        probe(node, target).unwrap();
    }
}

#[test]
fn a_pod_outside_the_mesh_reaches_an_enrolled_one_in_plaintext() {
    let mesh = Mesh::new().unwrap();
    let server = mesh.pod("server").on("node-b").enrolled().start().unwrap();
    let member = mesh.pod("member").on("node-a").enrolled().start().unwrap();
    let remote = mesh.pod("remote").on("node-a").start().unwrap();
    let neighbour = mesh.pod("neighbour").on("node-b").start().unwrap();
    let echo = server.serve(8080, tcp::echo).unwrap();
    let [_other, agent] = start_agents(&mesh);
    let before = counters(&agent);
    let marker = "a-marker-in-plaintext";
    let capture = mesh.capture_wire().unwrap();
    for pod in [&remote, &neighbour] {
        for target in [server.at_v4(8080), server.at_v6(8080)] {
            let mut stream = pod.connect(target).unwrap();
            tcp::ping(&mut stream, marker).unwrap();
            assert_eq!(*echo.peers().last().unwrap(), stream.local_addr().unwrap());
        }
    }
    assert!(capture.stop().unwrap().contains(marker));
    assert_eq!(counters(&agent), before);

    let capture = mesh.capture_wire().unwrap();
    tcp::ping(&mut member.connect(server.at(8080)).unwrap(), marker).unwrap();
    assert!(!capture.stop().unwrap().contains(marker));
    assert_ne!(counters(&agent), before, "a member's connection is counted");
}

/// A service is in the mesh as a whole once one of its endpoints is; the agent reaches the others in plaintext, and
/// keeps the same promises there.
#[test]
fn an_endpoint_outside_the_mesh_is_reached_through_a_service_in_plaintext() {
    const LAST_WORDS: usize = 4 << 20;
    let mesh = Mesh::new().unwrap();
    let client = mesh.pod("client").on("node-a").enrolled().start().unwrap();
    let pod = |name: &str| mesh.pod(name).on("node-b").label("app", "mixed").port(name, 8080);
    let _inside = pod("inside").enrolled().start().unwrap();
    let outsider = pod("outsider").opted_out().start().unwrap();
    let silent = pod("silent").opted_out().start().unwrap();
    let service = mesh.service("mixed").select("app", "mixed").named_port("in", 80, "inside");
    let service = service.named_port("out", 81, "outsider").named_port("gone", 82, "silent").apply().unwrap();
    let [agent, _other] = start_agents(&mesh);

    // Ends its direction first, and still hears the client's last words to their end.
    let (heard, words) = mpsc::sync_channel(16);
    let server = outsider
        .serve(8080, move |mut stream: TcpStream| {
            stream.write_all(b"!").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut words = Vec::new();
            let ending = stream.read_to_end(&mut words).map_err(|error| error.kind());
            heard.send((words.len(), ending.map(drop))).unwrap();
        })
        .unwrap();
    let open = |target| {
        let mut stream = client.connect(target).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "!");
        stream
    };
    for (target, source) in [(service.address(81), client.ipv4()), (service.address_v6(81), client.ipv6())] {
        let mut stream = open(target);
        stream.write_all(&vec![7; LAST_WORDS]).unwrap();
        drop(stream);
        assert_eq!(words.recv_timeout(PATIENCE).unwrap(), (LAST_WORDS, Ok(())));
        assert_eq!(server.peers().last().unwrap().ip(), source);
        let record = eventually(PATIENCE, || {
            agent.access_log().into_iter().find(|record| record.destination() == Some(target))
        });
        assert!(record.is_ok() && record.field("security").as_deref() == Some("none"), "{record:?}");
    }

    // One that does not answer is given up.
    let mut ip = mesh.node("node-b").command("ip");
    let blackhole = ["route", "replace", "blackhole", &format!("{}/32", silent.ipv4())];
    assert!(ip.args(blackhole).status().unwrap().success());
    let target = service.address(82);
    let ending = client.connect(target).and_then(|mut stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        tcp::read(&mut stream, &mut [0])
    });
    assert_eq!(ending.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let record = eventually(PATIENCE, || {
        agent.access_log().into_iter().find(|record| record.destination() == Some(target))
    });
    assert_eq!(record.reason().as_deref(), Some("timeout"), "{record:?}");

    // One whose client's agent dies is told.
    let cut = open(service.address(81));
    agent.kill9();
    assert_eq!(words.recv_timeout(PATIENCE).unwrap(), (0, Err(ErrorKind::ConnectionReset)));
    drop(cut);
}

fn copy_manifests(from: &Path, to: &Path, wanted: impl Fn(&str) -> bool) {
    for file in fs::read_dir(from).unwrap().flatten() {
        let name = file.file_name().into_string().unwrap();
        if wanted(&name) {
            let hidden = to.parent().unwrap().join(format!("{name}.copy"));
            fs::copy(file.path(), &hidden).unwrap();
            fs::rename(hidden, to.join(name)).unwrap();
        }
    }
}

fn remove_manifests(directory: &Path, unwanted: impl Fn(&str) -> bool) {
    for file in fs::read_dir(directory).unwrap().flatten() {
        if unwanted(file.file_name().to_str().unwrap()) {
            fs::remove_file(file.path()).unwrap();
        }
    }
}

#[test]
fn an_unknown_address_in_a_pod_range_is_held_until_it_is_known_and_else_refused() {
    let mesh = Mesh::new().unwrap();
    let client = mesh.pod("client").on("node-a").enrolled().start().unwrap();
    let late = mesh.pod("late").on("node-b").enrolled().start().unwrap();
    let echo = late.serve(8080, tcp::echo).unwrap();
    let node = mesh.node("node-b");
    let outside = Outside::new((node.ipv4(), 9000).into(), client.ipv4(), node.listen(9000).unwrap());

    // The first node's agent does not hear of the pod yet.
    let manifests = mesh.directory().join("partial");
    fs::create_dir(&manifests).unwrap();
    copy_manifests(mesh.manifests(), &manifests, |name| !name.contains("late"));
    let agent = mesh.agent("node-a").manifests(&manifests).arg("--pod-range=10.2.0.0/16,fd00:2::/32");
    let agents = [agent.start().unwrap(), mesh.agent("node-b").start().unwrap()];
    for agent in &agents {
        agent.wait_ready().unwrap();
    }
    let before = counters(&agents[0]);
    drop(outside.open(&client));
    assert_eq!(counters(&agents[0]), before, "an unknown address outside the ranges passes");

    for (target, unknown) in [(late.at_v4(8080), "10.2.77.77:80"), (late.at_v6(8080), "[fd00:2::77]:80")] {
        for target in [target, unknown.parse().unwrap()] {
            // The reset may be quicker than the return of `connect`.
            let ending = client.connect(target).and_then(|mut stream| {
                stream.set_read_timeout(Some(PATIENCE))?;
                tcp::read(&mut stream, &mut [0])
            });
            assert_eq!(ending.unwrap_err().kind(), ErrorKind::ConnectionReset, "{target}");
            let record = eventually(PATIENCE, || {
                agents[0].access_log().into_iter().find(|record| record.destination() == Some(target))
            });
            assert_eq!(record.reason().as_deref(), Some("unknown_destination"), "{record:?}");
        }
    }
    assert_eq!(echo.accepted(), 0, "nothing reached the pod in plaintext");

    // Held for two seconds: where the machine stands still for as long, the agent hears of the pod too late.
    let held = eventually(3 * PATIENCE, || {
        remove_manifests(&manifests, |name| name.contains("late"));
        eventually(PATIENCE, || !agents[0].get_private("/config_dump").unwrap().body.contains("\"late\""));
        let accepted = echo.accepted();
        thread::scope(|scope| {
            let held = scope.spawn(|| -> io::Result<_> {
                let mut stream = client.connect(late.at(8080))?;
                tcp::ping(&mut stream, "held").map(|()| stream.peer_addr().unwrap())
            });
            let active = || agents[0].metrics().unwrap().sum("culvert_connections_active", &[]);
            eventually(PATIENCE, || held.is_finished() || active() > 0.0);
            assert_eq!(echo.accepted(), accepted, "before the agent knows the pod");
            copy_manifests(mesh.manifests(), &manifests, |name| name.contains("late"));
            held.join().unwrap()
        })
    });
    assert_eq!(held, late.at(8080));
    assert_eq!(echo.peers().last().unwrap().ip(), client.ip());
}
