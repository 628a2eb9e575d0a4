//! The node's own connections to its pods: which they are, and what only looks like them.

use std::{
    fs,
    io::ErrorKind,
    net::TcpStream,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use culvert::mesh::PlaintextAction::{Inspect, Pass, Refuse};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{
    greeter::{Greeter, at, rules, who},
    net::Net,
    netlink, raw,
    world::{OUT4, POD4, POD6, World, addr, emulated, eventually, ip, line, listen},
};

#[test]
fn the_nodes_own_connections_pass_whatever_the_rules_are() {
    let world = World::with_agent_outside();
    let _application = Greeter::application(&world, &[80, 8000]);
    let pod = world.enroll_with(&rules(Refuse, &[]));
    let _agent = Greeter::agent(&pod);
    let mut expected = 0;
    for want in [rules(Refuse, &[]), rules(Inspect, &[(80, Refuse)])] {
        pod.set_plaintext(&want).expect("changing the rules");
        for own in [POD4, POD6, "::ffff:10.77.0.2"] {
            for port in [80, 8000] {
                assert_eq!(who(&world.out, at(own, port)), "application", "{own} {port}");
                expected += 1;
            }
        }
        assert_eq!(world.stats().node, expected);
    }
    // On a slow machine a SYN is sent twice, and the second may come when its connection has ended.
    if !emulated() {
        assert_eq!(world.stats().refused_plaintext, 0);
    }
    // Where they pass anyhow nobody asks.
    pod.set_plaintext(&rules(Pass, &[])).expect("changing the rules");
    assert_eq!(who(&world.out, at(POD4, 8000)), "application");
    assert_eq!(world.stats().node, expected);
    eventually("closed sockets leave nothing", || raw::is_empty(&world.pin("NODE")));
}

#[test]
fn an_entry_lives_as_long_as_its_socket() {
    let world = World::with_agent_outside();
    let _application = Greeter::application(&world, &[8000]);
    let _pod = world.enroll_with(&rules(Refuse, &[]));
    let client = world.out.run(|| TcpStream::connect(at(POD4, 8000)).expect("connecting"));
    assert_eq!(line(&client), "application");
    assert!(!raw::is_empty(&world.pin("NODE")));
    let from = client.local_addr().expect("getsockname");
    culvert::capture::reset_on_close(&client).expect("SO_LINGER");
    drop(client);
    eventually("a closed socket leaves nothing", || raw::is_empty(&world.pin("NODE")));
    // Neither does the port that it had open the way for a packet that no socket made.
    world.out.run(|| raw::forge_syn(from, at(POD4, 8000)));
    eventually("a forged SYN is refused", || world.stats().refused_plaintext == 1);
    // Nor does a refused connect leave anything.
    assert_eq!(who(&world.out, at(POD4, 8001)), "nobody");
    assert!(raw::is_empty(&world.pin("NODE")));
}

#[test]
fn the_nodes_address_is_not_the_node() {
    let world = World::with_agent_outside();
    let _application = Greeter::application(&world, &[8000]);
    let pod = world.enroll_with(&rules(Refuse, &[]));
    let _agent = Greeter::agent(&pod);
    // As what is translated to the node's address, and what somebody forges.
    for (number, port) in (1..=4).zip(50000..) {
        world.out.run(|| raw::forge_syn(at(OUT4, port), at(POD4, 8000)));
        eventually("a SYN without a socket is refused", || world.stats().refused_plaintext == number);
    }
    world.out.run(|| raw::forge_syn(addr("[fd77::1]:50000"), at(POD6, 8000)));
    eventually("a SYN without a socket is refused", || world.stats().refused_plaintext == 5);
    assert_eq!(world.stats().node, 0);
    // The control.
    assert_eq!(who(&world.out, at(POD4, 8000)), "application");
}

#[test]
fn what_the_node_forwards_is_not_its_own() {
    let world = World::with_agent_outside();
    let _application = Greeter::application(&world, &[8000]);
    let far = Net::new();
    far.join_as("eth1", &world.out, &[ip("10.79.0.2")], &[ip("10.79.0.1")]);
    far.run(|| netlink::default_route(ip("10.79.0.1")).expect("adding a default route"));
    world.out.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1")).expect("setting ip_forward");
    eventually("the way through the node works", || who(&far, at(POD4, 9)) == "nobody");
    let pod = world.enroll_with(&rules(Refuse, &[]));
    assert_eq!(who(&far, at(POD4, 8000)), "nobody");
    let refused = world.stats();
    assert!(refused.refused_plaintext >= 1 && refused.node == 0, "{refused:?}");
    assert_eq!(who(&world.out, at(POD4, 8000)), "application");
    pod.set_plaintext(&rules(Refuse, &[(8000, Pass)])).expect("changing the rules");
    assert_eq!(who(&far, at(POD4, 8000)), "application");
}

#[test]
fn another_namespace_is_not_the_node() {
    // The agent is elsewhere: what is outside is anybody.
    let world = World::new();
    let _application = Greeter::application(&world, &[8000]);
    let _pod = world.enroll_with(&rules(Refuse, &[]));
    assert_eq!(who(&world.out, at(POD4, 8000)), "nobody");
    assert_eq!(world.stats().node, 0);
    assert!(raw::is_empty(&world.pin("NODE")));
}

/// A cgroup of the suite's own.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(below: &Path, name: &str) -> Self {
        let path = below.join(name);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("making {}: {error}", path.display()));
        Self(path)
    }

    /// Returns the root of the hierarchy.
    fn root() -> PathBuf {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
        let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("cgroup2");
        mount.split(' ').nth(1).expect("a mount point").into()
    }

    /// A name that no other test takes, and that ends as told.
    fn name(end: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        format!("dp{}x{}{end}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            eprintln!("removing {}: {error}", self.0.display());
        }
    }
}

/// Pods with hostNetwork share the node's network and are not the node.
#[test]
fn a_process_of_a_pod_is_not_the_nodes_own() {
    let world = World::with_agent_outside();
    let _application = Greeter::application(&world, &[8000]);
    let pod = world.enroll_with(&rules(Refuse, &[]));
    // The kubelet may come after the agent.
    let root = Cgroup::root();
    let kubepods = Cgroup::new(&root, &Cgroup::name("-kubepods.slice"));
    let of_pod = Cgroup::new(&kubepods.0, "pod1");
    let container = Cgroup::new(&of_pod.0, "container");
    let service = Cgroup::new(&root, &Cgroup::name("-kubelet.service"));
    let deep = Cgroup::new(&service.0, "kubepods");
    world.capture().find_pod_cgroups().expect("looking for cgroups");
    let connect = |from: &Cgroup, own: &str| {
        let to = at(own, 8000);
        world.out.run(|| raw::connect_in_cgroup(&from.0, &raw::tcp(to), to))
    };
    for own in [POD4, POD6] {
        for from in [&kubepods, &of_pod, &container, &deep] {
            let error = connect(from, own).expect_err("a pod's process was taken for the node");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{}", from.0.display());
        }
        // The control: another cgroup.
        connect(&service, own).expect("the kubelet's own process was refused");
    }
    assert_eq!(world.stats().node, 2);
    // Where the rules let them, they get in.
    pod.set_plaintext(&rules(Pass, &[])).expect("changing the rules");
    connect(&container, POD4).expect("connecting");
    drop((container, of_pod, deep, kubepods));
    world.capture().find_pod_cgroups().expect("looking for cgroups");
}

/// Who connects counts, not who made the socket.
#[test]
fn a_socket_that_was_handed_on_is_of_whom_connects_it() {
    let world = World::with_agent_outside();
    let _application = Greeter::application(&world, &[8000]);
    let _pod = world.enroll_with(&rules(Refuse, &[]));
    let kubepods = Cgroup::new(&Cgroup::root(), &Cgroup::name("-kubepods.slice"));
    world.capture().find_pod_cgroups().expect("looking for cgroups");
    world.out.run(|| {
        let socket = raw::tcp(at(POD4, 8000));
        // Exempt once, by this process.
        raw::connect(&socket, at(POD4, 8000)).expect("connecting");
        raw::disconnect(&socket).expect("connecting to AF_UNSPEC");
        let error = raw::connect_in_cgroup(&kubepods.0, &socket, at(POD4, 8000))
            .expect_err("what the node did with the socket was taken for the pod's doing");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn beyond_their_bound_the_nodes_connections_are_anybodys() {
    if emulated() {
        return; // 16,384 sockets take an emulator minutes
    }
    let world = World::with_agent_outside();
    // A queue of one, so that nearly every SYN waits.
    world.pod.run(|| fs::write("/proc/sys/net/core/somaxconn", "1").expect("setting somaxconn"));
    let _server = world.pod.run(|| listen("10.77.0.2:8000"));
    let _pod = world.enroll_with(&rules(Refuse, &[]));
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
    setrlimit(Resource::RLIMIT_NOFILE, 20_000, hard.max(20_000)).expect("setrlimit");
    let connecting = || {
        let socket = raw::tcp(at(POD4, 8000));
        nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
            .expect("O_NONBLOCK");
        let _ = raw::connect(&socket, at(POD4, 8000));
        socket
    };
    let all = || (0..agent_ebpf::MAX_NODE_CONNECTIONS).map(|_| connecting()).collect::<Vec<_>>();
    let mut sockets = world.out.run(all);
    assert_eq!(world.stats().node_overload, 0);
    // On a machine that is slow enough the kernel has given up one of so many by now, and there is room for another.
    let error = loop {
        let attempt = || TcpStream::connect_timeout(&at(POD4, 8000), Duration::from_secs(3));
        let error = world.out.run(attempt).expect_err("beyond the bound");
        if error.kind() != ErrorKind::TimedOut
            || sockets.len() > agent_ebpf::MAX_NODE_CONNECTIONS as usize + 10
        {
            break error;
        }
        sockets.push(world.out.run(connecting));
    };
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let stats = world.stats();
    assert_eq!((stats.node_overload, stats.refused_plaintext), (1, 1));
    drop(sockets);
    eventually("closed sockets leave nothing", || raw::is_empty(&world.pin("NODE")));
}
