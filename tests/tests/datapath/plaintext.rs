//! Plaintext from outside: passed, inspected or refused by port, and how that changes.

use std::{
    io::ErrorKind,
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use culvert::{
    capture::Error,
    mesh::{
        Plaintext,
        PlaintextAction::{Inspect, Pass, Refuse},
    },
};

use crate::{
    greeter::{Greeter, at, rules, who},
    netlink, raw,
    world::{OUT4, OUT6, POD4, POD6, World, blocking, echo, eventually, ip, line, listen},
};

#[test]
fn each_port_has_its_rule_in_both_families() {
    let world = World::new();
    // Below 1024 are the ports that captured connections use, in the pod.
    let ports = [80, 1023, 8001, 8002, 8003];
    let _application = Greeter::application(&world, &ports);
    let pod = world.enroll_with(&rules(Pass, &[(80, Refuse), (8001, Inspect), (8002, Refuse)]));
    let _agent = Greeter::agent(&pod);
    let check = |expected: [&str; 5]| {
        for own in [POD4, POD6] {
            for (port, expected) in ports.into_iter().zip(expected) {
                assert_eq!(who(&world.out, at(own, port)), expected, "{own} {port}");
            }
        }
    };
    check(["nobody", "application", "agent", "nobody", "application"]);
    let before = world.stats();
    assert_eq!((before.inspected, before.refused_plaintext), (2, 4));
    for (want, expected) in [
        (
            rules(Refuse, &[(80, Pass), (8001, Inspect)]),
            ["application", "nobody", "agent", "nobody", "nobody"],
        ),
        (
            rules(Inspect, &[(1023, Pass), (8001, Refuse)]),
            ["agent", "application", "nobody", "agent", "agent"],
        ),
        (rules(Inspect, &[]), ["agent"; 5]),
        (rules(Refuse, &[]), ["nobody"; 5]),
        (
            rules(Pass, &[(1023, Refuse)]),
            ["application", "nobody", "application", "application", "application"],
        ),
        (Plaintext::pass(), ["application"; 5]),
    ] {
        pod.set_plaintext(&want).expect("changing the rules");
        check(expected);
        assert_eq!(raw::is_empty(&world.pin("PLAINTEXT")), want.ports.is_empty(), "{want:?}");
    }
    let now = world.stats();
    assert_eq!(now.node, 0);
    // A rule that says what the others say is none.
    pod.set_plaintext(&rules(Pass, &[(80, Pass)])).expect("changing the rules");
    check(["application"; 5]);
    assert_eq!(world.stats().inspected, now.inspected);
    assert!(raw::is_empty(&world.pin("PLAINTEXT")));
}

#[test]
fn what_is_inspected_has_its_real_ends_and_closes_with_a_reset() {
    let world = World::new();
    let pod = world.enroll_with(&rules(Inspect, &[]));
    for (listener, (own, out)) in
        pod.plaintext_listeners().expect("listeners").iter().zip([(POD4, OUT4), (POD6, OUT6)])
    {
        blocking(listener);
        let mut client = world.out.run(|| TcpStream::connect(at(own, 8000)).expect("connecting"));
        let (accepted, from) = listener.accept().expect("accepting");
        assert_eq!(from, client.local_addr().expect("getsockname"));
        assert_eq!(from.ip(), ip(out));
        assert_eq!(accepted.local_addr().expect("getsockname"), at(own, 8000));
        // The application may come to listen on the port meanwhile.
        let _late = world.pod.run(|| listen(&at(own, 8000).to_string()));
        drop(accepted);
        assert_eq!(
            lab::tcp::read(&mut client, &mut [0]).expect_err("a cut read as an end").kind(),
            ErrorKind::ConnectionReset
        );
    }
}

#[test]
fn an_address_that_is_not_the_pods_is_guarded_too() {
    let world = World::new();
    let pod = world.enroll_with(&rules(Refuse, &[]));
    let _agent = Greeter::agent(&pod);
    let _application = Greeter::application(&world, &[15008, 8000]);
    world.pod.run(|| {
        let eth0 = nix::net::if_::if_nametoindex("eth0").expect("eth0");
        netlink::address(eth0, ip("10.77.0.3"), 24).expect("giving eth0 an address");
    });
    for port in [15008, 8000] {
        assert_eq!(who(&world.out, at("10.77.0.3", port)), "nobody", "{port}");
    }
    pod.set_plaintext(&rules(Inspect, &[(8000, Pass)])).expect("changing the rules");
    assert_eq!(who(&world.out, at("10.77.0.3", 15008)), "agent");
    assert_eq!(who(&world.out, at("10.77.0.3", 8000)), "application");
    assert_eq!(world.stats().hbone, 0);
}

#[test]
fn a_family_that_the_pod_was_not_enrolled_with_is_guarded_too() {
    let world = World::new();
    let want = rules(Inspect, &[(8000, Refuse)]);
    let pod = world.capture().enroll(world.pod.open(), &[ip(POD6)], &want).expect("enrolling");
    let _agent = Greeter::agent(&pod);
    let _application = Greeter::application(&world, &[8000, 8001]);
    assert_eq!(who(&world.out, at(POD4, 8000)), "nobody");
    assert_eq!(who(&world.out, at(POD4, 8001)), "agent");
}

#[test]
fn the_pods_own_traffic_is_let_alone() {
    let world = World::new();
    // The address of a second interface, which the agent does not know.
    world.pod.run(|| netlink::address(1, ip("10.80.0.3"), 24).expect("giving lo an address"));
    let _application = Greeter::application(&world, &[80, 8000]);
    let pod = world.enroll_with(&rules(Refuse, &[]));
    let check = || {
        for to in [POD4, POD6, "127.0.0.1", "::1", "10.80.0.3"] {
            for port in [80, 8000] {
                assert_eq!(who(&world.pod, at(to, port)), "application", "{to} {port}");
            }
        }
    };
    check();
    assert_eq!(world.stats().refused_plaintext, 0);
    // The control.
    assert_eq!(who(&world.out, at(POD4, 8000)), "nobody");
    pod.set_plaintext(&rules(Inspect, &[])).expect("changing the rules");
    check();
}

#[test]
fn a_change_leaves_what_is_established() {
    let world = World::new();
    let pod = world.enroll();
    let _agent = Greeter::agent(&pod);
    let _application = Greeter::application(&world, &[8000]);
    let open = || world.out.run(|| TcpStream::connect(at(POD4, 8000)).expect("connecting"));
    let mut passed = open();
    assert_eq!(line(&passed), "application");
    pod.set_plaintext(&rules(Inspect, &[])).expect("changing the rules");
    let mut inspected = open();
    assert_eq!(line(&inspected), "agent");
    pod.set_plaintext(&rules(Refuse, &[])).expect("changing the rules");
    echo(&mut passed);
    echo(&mut inspected);
    assert_eq!(who(&world.out, at(POD4, 8000)), "nobody");
}

/// Rules that differ in everything but one port. What meets a change may be handed to the agent, which asks the policies; it
/// never goes to the application unseen.
#[test]
fn no_change_opens_what_is_closed_before_and_after() {
    let world = World::new();
    let _application = Greeter::application(&world, &[8000, 9000]);
    let all = [
        rules(Refuse, &[]),
        rules(Pass, &[(8000, Refuse)]),
        rules(Refuse, &[(9000, Pass)]),
        rules(Inspect, &[(8000, Refuse), (9000, Pass)]),
        rules(Pass, &[(7000, Inspect), (8000, Refuse), (8001, Refuse)]),
    ];
    let pod = world.enroll_with(&all[0]);
    let _agent = Greeter::agent(&pod);
    let (stop, tried) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        assert_ne!(who(&world.out, at(POD4, 8000)), "application");
                        tried.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let mut changes = 0;
        // By many ways from each to each, until there were connections enough among them.
        while (tried.load(Ordering::Relaxed) < 1000 || changes < 1000)
            && !clients.iter().any(|client| client.is_finished())
        {
            let step = 1 + changes / all.len() % (all.len() - 1);
            pod.set_plaintext(&all[(changes * step) % all.len()]).expect("changing the rules");
            changes += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    // The control: the port is open where the rules say so.
    pod.set_plaintext(&rules(Refuse, &[(8000, Pass)])).expect("changing the rules");
    assert_eq!(who(&world.out, at(POD4, 8000)), "application");
}

#[test]
fn more_rules_than_there_is_room_for_make_the_agent_look_at_everything() {
    let world = World::new();
    let _application = Greeter::application(&world, &[8000]);
    let pod = world.enroll();
    let _agent = Greeter::agent(&pod);
    assert_eq!(who(&world.out, at(POD4, 8000)), "application");
    let ports: Vec<_> = (1..=300).map(|port| (port, Refuse)).collect();
    let error = pod.set_plaintext(&rules(Pass, &ports)).expect_err("300 ports");
    assert!(matches!(error, Error::TooManyPorts { ports: 300, .. }), "{error}");
    assert_eq!(who(&world.out, at(POD4, 8000)), "agent");
    assert!(raw::is_empty(&world.pin("PLAINTEXT")));
    let pod_again = |want: &Plaintext| pod.set_plaintext(want).expect("changing the rules");
    pod_again(&rules(Pass, &ports[..256]));
    assert_eq!(who(&world.out, at(POD4, 8000)), "application");
    assert_eq!(who(&world.out, at(POD4, 256)), "nobody");
    pod_again(&Plaintext::pass());
    assert!(raw::is_empty(&world.pin("PLAINTEXT")));
}

/// A pod that is enrolled with more than there is room for is enrolled all the same, and looked at.
#[test]
fn too_many_rules_do_not_keep_a_pod_out() {
    let world = World::new();
    let _application = Greeter::application(&world, &[8000]);
    let ports: Vec<_> = (1..=300).map(|port| (port, Refuse)).collect();
    let pod = world.enroll_with(&rules(Pass, &ports));
    let _agent = Greeter::agent(&pod);
    assert_eq!(who(&world.out, at(POD4, 8000)), "agent");
}

#[test]
fn without_an_agent_plaintext_goes_only_where_it_passed() {
    let mut world = World::new();
    let _application = Greeter::application(&world, &[8000, 8001, 8002]);
    let want = rules(Refuse, &[(8001, Inspect), (8002, Pass)]);
    let pod = world.enroll_with(&want);
    let greeter = Greeter::agent(&pod);
    let check = |world: &World, expected: [&str; 3]| {
        for own in [POD4, POD6] {
            for (port, expected) in (8000..).zip(expected) {
                assert_eq!(who(&world.out, at(own, port)), expected, "{own} {port}");
            }
        }
    };
    check(&world, ["nobody", "agent", "application"]);
    drop((greeter, pod));
    world.crash();
    check(&world, ["nobody", "nobody", "application"]);
    world.start();
    check(&world, ["nobody", "nobody", "application"]);
    let pod = world.enroll_with(&want);
    let greeter = Greeter::agent(&pod);
    check(&world, ["nobody", "agent", "application"]);
    drop((greeter, pod));
    world.crash();
    // Policy has changed while there was no agent.
    world.start();
    let pod = world.enroll_with(&rules(Pass, &[(8002, Refuse)]));
    check(&world, ["application", "application", "nobody"]);
    drop(pod);
}

/// A restart of the agent, by pins that are taken over, opens nothing for a moment.
#[test]
fn a_restart_leaves_no_gap() {
    let mut world = World::new();
    let application = Greeter::application(&world, &[8000, 8001]);
    let want = rules(Refuse, &[(8001, Pass)]);
    let mut pod = world.enroll_with(&want);
    let out = world.out.share();
    let (stop, tried) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let client = {
        let (stop, tried) = (Arc::clone(&stop), Arc::clone(&tried));
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(who(&out, at(POD4, 8000)), "nobody");
                assert_eq!(who(&out, at(POD4, 8001)), "application");
                tried.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    for _ in 0..3 {
        let before = tried.load(Ordering::Relaxed);
        drop(pod);
        world.crash();
        eventually("the client goes on", || {
            client.is_finished() || tried.load(Ordering::Relaxed) > before + 1
        });
        world.start();
        pod = world.enroll_with(&want);
    }
    stop.store(true, Ordering::Relaxed);
    client.join().expect("the client");
    drop((application, pod));
}

#[test]
fn unenrolment_leaves_no_rules() {
    let world = World::new();
    let _application = Greeter::application(&world, &[8000]);
    let pod = world.enroll_with(&rules(Inspect, &[(8000, Refuse)]));
    assert!(!raw::is_empty(&world.pin("PLAINTEXT")) && !raw::is_empty(&world.pin("LOCAL")));
    assert_eq!(who(&world.out, at(POD4, 8000)), "nobody");
    pod.unenroll().expect("un-enrolling");
    assert_eq!(who(&world.out, at(POD4, 8000)), "application");
    assert!(raw::is_empty(&world.pin("PLAINTEXT")) && raw::is_empty(&world.pin("LOCAL")));
    // What is left of it has no say over whoever has its place now.
    let _next = world.enroll_with(&rules(Refuse, &[]));
    pod.set_plaintext(&Plaintext::pass()).expect("nothing to change");
    assert_eq!(who(&world.out, at(POD4, 8000)), "nobody");
}

#[test]
fn a_direct_connect_to_the_plaintext_listener_is_refused() {
    let world = World::new();
    let pod = world.enroll_with(&rules(Inspect, &[]));
    for (number, listener) in pod.plaintext_listeners().expect("listeners").iter().enumerate() {
        let to = listener.local_addr().expect("getsockname");
        let error = world.pod.run(|| TcpStream::connect(to).expect_err("connected to the agent's listener"));
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(world.stats().refused_direct, number as u64 + 1);
    }
}
