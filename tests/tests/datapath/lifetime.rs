//! Enrolment, restarts, and that nothing stays behind.

use std::{
    collections::HashSet,
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
};

use culvert::{
    capture::{Capture, Error, NetNs},
    mesh::{NetnsRef, Plaintext},
};

use crate::{
    net::Net,
    raw::{self, BpfId},
    world::{BPFFS, MESH4, POD4, POD6, World, addr, echo, eventually, ip, line},
};

/// Returns the ids of everything that is pinned for a node.
fn pinned(world: &World) -> HashSet<BpfId> {
    layout(world).into_iter().flat_map(|path| raw::ids(&path)).collect()
}

fn layout(world: &World) -> Vec<PathBuf> {
    fs::read_dir(world.pin("")).expect("listing the pins").map(|entry| entry.expect("a pin").path()).collect()
}

fn talks(world: &World) {
    world.pod.run(|| assert_eq!(line(TcpStream::connect(addr(MESH4)).expect("connecting")), MESH4));
}

#[test]
fn pins_are_the_agents_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new();
    let directory = Path::new(BPFFS).join("culvert").join(&world.node);
    let mode = fs::metadata(&directory).expect("the directory").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_node_has_one_agent() {
    let world = World::new();
    let second = Capture::load(&world.config()).expect_err("a second agent of the node started");
    assert!(matches!(second, Error::Busy { .. }), "{second}");
    assert!(second.to_string().contains(&world.node), "{second}");
    let cleanup =
        Capture::cleanup(Some(&world.node), Path::new(BPFFS)).expect_err("cleaned up under an agent");
    assert!(matches!(cleanup, Error::Busy { .. }), "{cleanup}");
    let mut other = world.config();
    other.node.push_str("-other.example");
    drop(Capture::load(&other).expect("an agent of another node"));
    assert!(!Capture::cleanup(Some(&other.node), Path::new(BPFFS)).expect("cleaning up").is_empty());
}

#[test]
fn only_the_pods_namespace_is_enrolled() {
    let world = World::new();
    let enroll =
        |netns: NetNs, address: &str| world.capture().enroll(netns, &[ip(address)], &Plaintext::pass());
    let error = enroll(world.out.open(), POD4).expect_err("another namespace was enrolled");
    assert!(error.to_string().contains(POD4), "{error}");
    let own = NetNs::open(&NetnsRef::Pid(std::process::id())).expect("opening a namespace by a process");
    enroll(own, "127.0.0.1").expect_err("the node itself was enrolled");
    NetNs::open(&NetnsRef::Path("/proc/self/ns/mnt".into())).expect_err("a mount namespace was opened");
    NetNs::open(&NetnsRef::Path("/nowhere".into())).expect_err("nothing was opened");
    world
        .capture()
        .enroll(world.pod.open(), &[], &Plaintext::pass())
        .expect_err("a pod without addresses was enrolled");
    let pod = enroll(world.pod.open(), POD4).expect("enrolling");
    enroll(world.pod.open(), POD4).expect_err("a pod was enrolled twice");
    assert_eq!(pod.outbound_listeners().expect("listeners").len(), 1);
    assert_eq!(pod.netns().cookie(), world.pod.open().cookie());
    drop(pod);
    // A failed or dropped enrolment is not in the way of the next.
    enroll(world.pod.open(), POD4).expect("enrolling again").unenroll().expect("un-enrolling");
}

#[test]
fn a_family_that_the_pod_has_not_is_unreachable() {
    let world = World::new();
    let pod = world.capture().enroll(world.pod.open(), &[ip(POD4)], &Plaintext::pass()).expect("enrolling");
    let error = world
        .pod
        .run(|| TcpStream::connect(addr(crate::world::MESH6)).expect_err("an address out of nowhere"));
    assert_eq!(error.raw_os_error(), Some(nix::libc::ENETUNREACH));
    assert_eq!(world.stats().refused_unreachable, 1);
    pod.set_addresses(&[ip(POD4), ip(POD6)]).expect("setting addresses");
    // The control: with the address it gets as far as the listener, which this enrolment has not for the family.
    let error =
        world.pod.run(|| TcpStream::connect(addr(crate::world::MESH6)).expect_err("there is no listener"));
    assert_eq!(error.raw_os_error(), Some(nix::libc::ECONNREFUSED));
    assert_eq!(world.stats().refused_no_agent, 1);
}

#[test]
fn a_restarted_agent_takes_over() {
    let mut world = World::new();
    let agent = world.serve();
    talks(&world);
    let captured = world.stats().captured;
    let (before, slots) = (pinned(&world), world.stats().pods);
    let mut live = world.pod.run(|| TcpStream::connect(addr(MESH4)).expect("connecting"));
    assert_eq!(line(&live), MESH4);
    drop(agent.stop());
    world.crash();

    world.start();
    let agent = world.serve();
    talks(&world);
    echo(&mut live);
    assert_eq!(world.stats().captured, captured + 2, "the counters went on");
    assert_eq!(world.stats().pods, slots);
    let after = pinned(&world);
    let kept = |kind: fn(&BpfId) -> bool| {
        let ids = |of: &HashSet<BpfId>| of.iter().filter(|id| kind(id)).copied().collect::<HashSet<_>>();
        ids(&before) == ids(&after)
    };
    assert!(kept(|id| matches!(id, BpfId::Map(_))), "maps were made anew");
    assert!(kept(|id| matches!(id, BpfId::Link(_))), "links were made anew");
    let old: Vec<BpfId> = before.difference(&after).copied().collect();
    assert_eq!(old.len(), 6, "every program was replaced: {old:?}");
    eventually("the old programs are gone", || !old.iter().any(|id| raw::exists(*id)));
    drop(agent);
}

#[test]
fn pods_that_nobody_wants_any_more_are_forgotten() {
    let mut world = World::new();
    let pod = world.enroll();
    let cookie = pod.netns().cookie();
    drop(pod);
    world.crash();
    world.start();
    world.capture().forget_others(&HashSet::from([cookie])).expect("forgetting");
    assert_eq!(world.stats().pods, 1);
    let error = world.pod.run(|| TcpStream::connect(addr(MESH4)).expect_err("connected without an agent"));
    assert_eq!(error.raw_os_error(), Some(nix::libc::ECONNREFUSED));
    world.capture().forget_others(&HashSet::new()).expect("forgetting");
    assert_eq!(world.stats().pods, 0);
    // Not captured any more: nobody answers for the address, and nothing is refused on its way.
    let captured = world.stats().captured;
    world.pod.run(|| {
        let socket = raw::tcp(addr(MESH4));
        nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))
            .expect("O_NONBLOCK");
        let error = raw::connect(&socket, addr(MESH4)).expect_err("not at once");
        assert_eq!(error.raw_os_error(), Some(nix::libc::EINPROGRESS));
    });
    assert_eq!(world.stats().captured, captured);
}

#[test]
fn a_pod_that_has_gone_leaves_nothing() {
    let mut world = World::new();
    let gone = {
        let net = Net::new();
        let elsewhere = Net::new();
        net.join(&elsewhere, &[ip("10.78.0.2")], &[ip("10.78.0.1")]);
        let pod =
            world.capture().enroll(net.open(), &[ip("10.78.0.2")], &Plaintext::pass()).expect("enrolling");
        pod.netns().cookie()
    };
    assert_eq!(world.stats().pods, 1);
    world.crash();
    // The namespace goes with its last user; the kernel detaches its link.
    world.start();
    let link = layout(&world)
        .into_iter()
        .find(|path| path.ends_with(format!("pod-{gone}")))
        .expect("the link's pin");
    let ids = raw::ids(&link);
    world.capture().forget_others(&HashSet::new()).expect("forgetting");
    assert_eq!(world.stats().pods, 0);
    eventually("link and program are gone", || !ids.iter().any(|id| raw::exists(*id)));
}

#[test]
fn unenrolment_takes_the_pods_programs_and_maps_away() {
    let world = World::new();
    let before = pinned(&world);
    let agent = world.serve();
    talks(&world);
    let pod: Vec<BpfId> = pinned(&world).difference(&before).copied().collect();
    assert_eq!(pod.len(), 3, "a link, a program and a map: {pod:?}");
    assert!(pod.iter().all(|id| raw::exists(*id)));
    agent.stop().unenroll().expect("un-enrolling");
    assert_eq!(pinned(&world), before);
    eventually("link and program are gone", || !pod.iter().any(|id| raw::exists(*id)));
    assert_eq!(world.stats().pods, 0);
    let _again = world.serve();
    talks(&world);
}

/// Else a connection whose SYN the old program's map knows would be refused by the new one.
#[test]
fn a_pods_new_program_has_the_handshakes_of_the_old_one() {
    let mut world = World::new();
    let handshakes = |world: &World| {
        let pin = layout(world).into_iter().find(|path| path.to_string_lossy().contains("/handshakes-"));
        raw::ids(&pin.expect("the pod's map"))
    };
    let agent = world.serve();
    let before = handshakes(&world);
    drop(agent);
    world.crash();
    world.start();
    let _agent = world.serve();
    talks(&world);
    assert_eq!(handshakes(&world), before);
}

#[test]
fn cleanup_leaves_nothing() {
    let mut world = World::new();
    let agent = world.serve();
    talks(&world);
    let ids = pinned(&world);
    // The maps and that of the pod, and five links of the node and one of the pod, each with its program.
    assert_eq!(ids.len(), agent_ebpf::maps::ALL.len() + 1 + 2 * 6, "{ids:?}");
    assert!(ids.iter().all(|id| raw::exists(*id)));
    drop(agent);
    world.crash();
    // What agents of other layouts left goes too.
    let old = Path::new(BPFFS).join("culvert").join(&world.node).join("layout-0");
    fs::create_dir(&old).expect("making a directory");
    let removed = Capture::cleanup(Some(&world.node), Path::new(BPFFS)).expect("cleaning up");
    assert!(removed.len() >= agent_ebpf::maps::ALL.len() + 6, "{removed:?}");
    eventually("nothing of the agent exists", || !ids.iter().any(|id| raw::exists(*id)));
    assert!(!old.exists());
    assert!(!Path::new("/run/culvert").join(format!("{}.lock", world.node)).exists());
    assert!(Capture::cleanup(Some(&world.node), Path::new(BPFFS)).expect("cleaning up again").is_empty());
}

#[test]
fn pins_of_another_layout_go_once_the_pods_are_enrolled() {
    let world = World::new();
    let old = Path::new(BPFFS).join("culvert").join(&world.node).join("layout-0");
    fs::create_dir(&old).expect("making a directory");
    let _agent = world.serve();
    world.capture().forget_others(&HashSet::from([world.pod.open().cookie()])).expect("forgetting");
    assert!(!old.exists());
    talks(&world);
}
