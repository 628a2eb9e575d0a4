//! What the kernel tells of the plaintext that it refuses.

use std::{collections::HashSet, net::TcpStream, thread, time::Duration};

use culvert::{
    capture::{Refusal, Refusals},
    mesh::PlaintextAction::{Inspect, Refuse},
};
use tokio::runtime::{Builder, Runtime};

use crate::{
    greeter::{at, rules, who},
    raw,
    world::{OUT4, POD4, POD6, World, addr, ip},
};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Reads as many refusals as there are.
fn read_all(runtime: &Runtime, refusals: &mut Refusals) -> Vec<Refusal> {
    let mut all = Vec::new();
    runtime.block_on(async {
        while let Ok(refusal) = tokio::time::timeout(Duration::from_millis(100), refusals.next()).await {
            all.push(refusal);
        }
    });
    all
}

#[test]
fn a_refusal_says_who_and_where() {
    let world = World::new();
    let pod = world.enroll_with(&rules(Inspect, &[(8000, Refuse)]));
    let runtime = runtime();
    let mut refusals = runtime.block_on(async { world.capture().refusals() }).expect("refusals");
    for (out, own) in [("10.77.0.1:40001", POD4), ("[fd77::1]:40002", POD6)] {
        // Also while it is waited for.
        let waiting = thread::scope(|scope| {
            let client = scope.spawn(|| {
                world.out.run(|| {
                    let socket = raw::tcp(addr(out));
                    raw::bind(&socket, addr(out)).expect("binding");
                    raw::connect(&socket, at(own, 8000)).expect_err("refused")
                })
            });
            let refusal = runtime.block_on(refusals.next());
            client.join().expect("the client");
            refusal
        });
        assert_eq!(waiting.netns, pod.netns().cookie());
        assert_eq!((waiting.source, waiting.destination), (addr(out), at(own, 8000)));
    }
    // What is refused for want of an agent is not by rule.
    pod.drain().expect("draining");
    assert_eq!(who(&world.out, at(POD4, 8001)), "nobody");
    assert_eq!(who(&world.out, at(POD4, 8000)), "nobody");
    let rest = read_all(&runtime, &mut refusals);
    assert_eq!(rest.iter().map(|refusal| refusal.destination.port()).collect::<Vec<_>>(), [8000]);
    assert_eq!(world.stats().refused_no_agent, 1);
    let second = runtime.block_on(async { world.capture().refusals().map(drop) });
    assert!(second.is_err(), "two readers");
}

#[test]
fn refusals_that_nobody_reads_are_bounded_and_counted() {
    let world = World::new();
    let _pod = world.enroll_with(&rules(Refuse, &[]));
    let attempts = agent_ebpf::REFUSALS_BYTES as usize / 56 + 200;
    world.out.run(|| {
        for _ in 0..attempts {
            TcpStream::connect(at(POD4, 8000)).expect_err("refused");
        }
    });
    let stats = world.stats();
    assert_eq!(stats.refused_plaintext, attempts as u64);
    assert!(stats.refusals_lost >= 100, "{stats:?}");
    let runtime = runtime();
    let mut refusals = runtime.block_on(async { world.capture().refusals() }).expect("refusals");
    let read = read_all(&runtime, &mut refusals);
    assert_eq!(read.len() as u64 + stats.refusals_lost, attempts as u64);
    assert!(read.iter().all(|refusal| refusal.source.ip() == ip(OUT4)));
    // It goes on.
    assert_eq!(who(&world.out, at(POD6, 8001)), "nobody");
    assert_eq!(runtime.block_on(refusals.next()).destination, at(POD6, 8001));
    let ports: HashSet<u16> = read.iter().map(|refusal| refusal.source.port()).collect();
    assert!(ports.len() > 1);
}
