//! Forged sources, borrowed addresses, nested namespaces.

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use lab::{Node, PATIENCE, Pod, eventually, tcp};
use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket},
};

use crate::{
    packets::syn,
    world::{PORT, World, addresses, counter, exchange},
};

/// Connects from an address that the caller chooses.
fn connect_from(pod: &Pod, source: SocketAddr, target: SocketAddr) -> io::Result<TcpStream> {
    pod.run(|| {
        let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(source))?;
        connect(socket.as_raw_fd(), &SockaddrStorage::from(target))?;
        Ok(socket.into())
    })
}

#[test]
fn forged_sources_are_neither_the_pod_itself_nor_another_pod() {
    let world = World::start();
    let World { mesh, victim, server, echo, b, .. } = &world;
    let member = world.member("member", "node-b");
    let outsider = mesh.pod("outsider").on("node-b").start().unwrap();
    // Where captured connections arrive, where tunnels do, and where neither does.
    let ports = [80, 1000, 15008, PORT, 9090];
    let servers: Vec<_> =
        [80, 1000, 15008].map(|port| (port, server.serve(port, tcp::echo).unwrap())).into_iter().collect();
    // The control of the log: a connection that is one is in it.
    exchange(victim, server.at(80)).unwrap();
    eventually(PATIENCE, || b.access_log().len() == 1);
    let accepted = || servers.iter().map(|(_, server)| server.accepted()).sum::<usize>() + echo.accepted();

    let (before, log) = (accepted(), b.access_log().len());
    let refused = counter(b, "refused_unknown");
    let capture = mesh.capture(server.netns(), "eth0").unwrap();
    let mut forged = Vec::new();
    for attacker in [&member, &outsider] {
        for (own, others) in [
            (server.ipv4(), [victim.ipv4(), Ipv4Addr::LOCALHOST.into()]),
            (server.ipv6(), [victim.ipv6(), Ipv6Addr::LOCALHOST.into()]),
        ] {
            for source in [own].into_iter().chain(others) {
                for port in ports {
                    let from = SocketAddr::new(source, 20_000 + forged.len() as u16);
                    syn(attacker, from, SocketAddr::new(own, port));
                    forged.push(from);
                }
            }
        }
    }
    let captured = capture.stop().unwrap();
    // The control: those that a node forwards have arrived, the pod's own addresses among them. No node forwards a
    // packet from loopback.
    let arrived = |from: &SocketAddr| captured.flows().iter().any(|flow| flow.source == *from);
    for from in forged.iter().filter(|from| !from.ip().is_loopback()) {
        assert!(arrived(from), "{from} has not arrived");
    }
    // The pod's own IPv6 address, from outside.
    eventually(PATIENCE, || counter(b, "refused_unknown") > refused);
    assert_eq!(accepted(), before, "no connection came of a forged source");
    // The same packets with a source to which the answers find their way do become connections.
    exchange(&outsider, server.at(PORT)).unwrap();
    assert_eq!(accepted(), before + 1);
    assert_eq!(b.access_log().len(), log, "no agent took a forged connection for one: {:?}", b.access_log());
}

/// Makes a node send what is for `address` to `holder` instead: what poisoning its table of neighbours does.
fn poison(node: &Node, address: IpAddr, holder: &Pod) {
    let link = holder.sh("ip -o link show eth0").unwrap();
    let mac = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap();
    let args = ["neigh", "replace", &address.to_string(), "lladdr", mac, "dev", "cni0"];
    assert!(node.command("ip").args(args).status().unwrap().success());
}

#[test]
fn an_address_taken_from_another_pod_brings_no_identity() {
    let world = World::start();
    let World { mesh, victim, server, echo, a, b } = &world;
    let pod = |name| mesh.pod(name).on("node-a").bridged().service_account("attacker");
    let member = world.enrol(pod("member"));
    let outsider = pod("outsider").start().unwrap();
    let identity = victim.identity();
    let of_victim =
        || b.access_log().into_iter().filter(|r| r.source_identity().as_ref() == Some(&identity)).count();
    exchange(victim, server.at(PORT)).unwrap();
    eventually(PATIENCE, || of_victim() == 1);

    for (attacker, name) in [(&member, "a member"), (&outsider, "an outsider")] {
        for (address, length) in [(victim.ipv4(), 32), (victim.ipv6(), 128)] {
            let nodad = if address.is_ipv6() { " nodad" } else { "" };
            attacker.sh(&format!("ip addr add {address}/{length} dev eth0{nodad}")).unwrap();
            poison(mesh.node("node-a"), address, attacker);
            let before = (echo.accepted(), b.access_log().len());
            let target = if address.is_ipv4() { server.at_v4(PORT) } else { server.at_v6(PORT) };
            let mut stream = connect_from(attacker, (address, 0).into(), target).unwrap();
            tcp::ping(&mut stream, "as somebody else").unwrap_or_else(|error| panic!("{name}: {error}"));
            drop(stream);
            // It can have the address, as without the mesh, and not the identity.
            assert_eq!(echo.peers().last().unwrap().ip(), address);
            assert_eq!(echo.accepted(), before.0 + 1);
            if std::ptr::eq(attacker, &raw const member) {
                let record = eventually(PATIENCE, || b.access_log().get(before.1).cloned());
                assert_eq!(record.source_identity(), Some(member.identity()), "{record:?}");
                assert_eq!(record.field("src.workload"), None, "{record:?}");
            } else {
                assert_eq!(b.access_log().len(), before.1, "in plaintext, past every agent");
            }
        }
    }
    assert_eq!(of_victim(), 1, "what the victim itself did");
    assert!(
        !a.access_log()
            .iter()
            .any(|r| r.source_identity().as_ref() == Some(&identity) && r.is_from(member.ip()))
    );
}

/// A network namespace inside a pod, routed through it: what a process with CAP_NET_ADMIN in its pod can make. The nodes
/// send its addresses to the pod, as they would with a CNI that lets a pod have them.
struct Nested {
    name: String,
    addresses: [IpAddr; 2],
}

impl Nested {
    fn inside(world: &World, pod: &Pod) -> Self {
        let name = format!("{}-nested", world.mesh.name());
        let addresses = ["10.200.0.2".parse().unwrap(), "fd00:200::2".parse().unwrap()];
        let lines = format!(
            "ip netns add {name} && ip link add inner type veth peer name eth0 netns {name} && \
             ip addr add 10.200.0.1/24 dev inner && ip addr add fd00:200::1/64 dev inner nodad && ip link set inner up && \
             ip -n {name} addr add 10.200.0.2/24 dev eth0 && ip -n {name} addr add fd00:200::2/64 dev eth0 nodad && \
             ip -n {name} link set lo up && ip -n {name} link set eth0 up && \
             ip -n {name} route add default via 10.200.0.1 && ip -n {name} route add default via fd00:200::1"
        );
        pod.sh(&lines).unwrap();
        pod.run(|| {
            for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                fs::write(format!("/proc/sys/net/{key}"), "1").unwrap();
            }
        });
        // Forwarding takes the default route of IPv6 away where a router had announced it; here it is static.
        let (first, second) = (world.mesh.node("node-a"), world.mesh.node("node-b"));
        let hops = [
            (first, "10.200.0.0/24", pod.ipv4()),
            (first, "fd00:200::/64", pod.ipv6()),
            (second, "10.200.0.0/24", first.ipv4().into()),
            (second, "fd00:200::/64", first.ipv6().into()),
        ];
        for (node, range, hop) in hops {
            let args = ["route", "add", range, "via", &hop.to_string()];
            assert!(node.command("ip").args(args).status().unwrap().success());
        }
        let nested = Self { name, addresses };
        // The links drop packets until the kernel has noticed that they are up.
        eventually(PATIENCE, || nested.connect(world.server.at(PORT)));
        nested
    }

    fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let netns = File::open(format!("/run/netns/{}", self.name)).unwrap();
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
                f()
            });
            inside.join().unwrap()
        })
    }

    fn connect(&self, target: SocketAddr) -> io::Result<TcpStream> {
        self.run(|| TcpStream::connect_timeout(&target, PATIENCE))
    }
}

#[test]
fn a_nested_namespace_has_no_part_in_the_pods_identity() {
    let world = World::start();
    let attacker = world.member("attacker", "node-a");
    let World { server, echo, a, b, .. } = &world;
    let nested = Nested::inside(&world, &attacker);
    let before = (counter(a, "connections"), a.access_log().len(), b.access_log().len());
    for (address, target) in nested.addresses.into_iter().zip([server.at_v4(PORT), server.at_v6(PORT)]) {
        let mut stream = nested.connect(target).unwrap();
        tcp::ping(&mut stream, "from within").unwrap();
        assert_eq!(*echo.peers().last().unwrap(), stream.local_addr().unwrap(), "in plaintext");
        assert_eq!(stream.local_addr().unwrap().ip(), address);
    }
    let after = (counter(a, "connections"), a.access_log().len(), b.access_log().len());
    assert_eq!(after, before, "no agent had a part in it");

    // Towards the pod around it, a nested namespace is an outsider: where captured connections arrive nobody listens.
    let refused = counter(a, "refused_unknown");
    for own in addresses(&attacker) {
        for port in 1..=1023 {
            let error = nested.connect((own, port).into()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{own} {port}");
        }
    }
    assert_eq!(counter(a, "refused_unknown"), refused, "as packets from outside, by the kernel itself");
    assert_eq!(a.access_log().len(), before.1);

    exchange(&attacker, server.at(PORT)).unwrap();
    assert_eq!(counter(a, "connections"), before.0 + 1, "the pod itself is captured");
}

#[test]
fn nobody_else_comes_in_by_the_entries_of_a_pods_connections() {
    let world = World::start();
    let World { mesh, victim, server, a, .. } = &world;
    let neighbour = mesh.pod("neighbour").on("node-a").bridged().start().unwrap();
    let member = world.enrol(mesh.pod("member").on("node-a").bridged());
    let done = AtomicBool::new(false);
    let connected = thread::scope(|scope| {
        // Entries come and go all the while.
        let busy = scope.spawn(|| {
            let mut connected = 0;
            while !done.load(Ordering::Relaxed) {
                exchange(victim, server.at(PORT)).unwrap();
                connected += 1;
            }
            connected
        });
        for own in addresses(victim) {
            for port in 1..=1023 {
                let target = SocketAddr::new(own, port);
                let error = neighbour.connect(target).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{target}");
                // As if it were the victim itself.
                syn(&neighbour, (own, 30_000 + port).into(), target);
                syn(&member, (own, 40_000 + port).into(), target);
            }
        }
        done.store(true, Ordering::Relaxed);
        busy.join().unwrap()
    });
    assert!(connected > 0);
    let outbound = || a.access_log().into_iter().filter(|record| record.direction() == "outbound");
    eventually(PATIENCE, || outbound().count() == connected);
    assert!(
        outbound().all(|record| record.is_ok() && addresses(victim).iter().any(|own| record.is_from(*own)))
    );
}
