//! One pod takes all it can: the others still get in, and what is held without reason ends by itself.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
};

use lab::{Agent, PATIENCE, Pod, eventually, tcp};

use crate::world::{PORT, World, exchange};

/// What the agents may carry at once. Few, so that one pod can try to take them all.
const MAX: usize = 120;

fn world() -> World {
    World::start_with(&[&format!("--max-connections={MAX}")])
}

/// Opens connections and keeps those that answer.
fn hold(pod: &Pod, target: SocketAddr, tries: usize) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..tries {
        let Ok(mut stream) = pod.connect(target) else { continue };
        if tcp::ping(&mut stream, "held").is_ok() {
            held.push(stream);
        }
    }
    held
}

#[test]
fn a_pod_that_holds_all_the_connections_that_it_can_starves_no_other() {
    let world = world();
    let World { victim, server, echo, a, b, .. } = &world;
    let [greedy, quiet] = ["greedy", "quiet"].map(|name| world.member(name, "node-a"));
    let other = world.member("other", "node-b");
    let _echo = other.serve(PORT, tcp::echo).unwrap();

    let held = hold(&greedy, server.at(PORT), 2 * MAX);
    assert!((MAX / 4..=MAX / 2).contains(&held.len()), "it holds {} of {MAX}", held.len());
    eventually(PATIENCE, || echo.open() == held.len());
    let overload = |agent: &Agent| {
        agent.access_log().iter().filter(|r| r.reason().as_deref() == Some("overload")).count()
    };
    eventually(PATIENCE, || match [a, b].map(overload) {
        [at_a, at_b] if at_a + at_b >= MAX => Ok(()),
        overloads => Err(format!("{overloads:?}")),
    });
    for pod in [&quiet, victim] {
        for target in [server.at(PORT), other.at(PORT), server.at_v6(PORT)] {
            exchange(pod, target).unwrap_or_else(|error| panic!("{} to {target}: {error:#}", pod.name()));
        }
    }
    drop(held);
    eventually(PATIENCE, || hold(&greedy, server.at(PORT), 1).len() == 1);
}

#[test]
fn connections_that_say_nothing_are_bounded_end_by_themselves_and_starve_nobody() {
    let world = world();
    let World { mesh, server, b, .. } = &world;
    let outsider = mesh.pod("outsider").on("node-a").start().unwrap();
    let other = world.member("other", "node-b");
    let _echo = other.serve(PORT, tcp::echo).unwrap();
    world.assert_well("the beginning");
    exchange(&world.victim, other.at(PORT)).unwrap();
    let files = b.fd_count();

    let held: Vec<_> = (0..2 * MAX)
        .map(|number| {
            let mut stream = outsider.connect(server.at(15008)).unwrap();
            if number % 2 == 0 {
                // The beginning of a ClientHello.
                let _ = stream.write_all(b"\x16\x03\x01\x02\x00\x01");
            }
            stream
        })
        .collect();
    eventually(PATIENCE, || b.access_log().iter().any(|r| r.reason().as_deref() == Some("overload")));
    assert!(b.fd_count() < files + MAX, "{} more", b.fd_count() - files);
    // While they are held.
    world.assert_well("silent connections");
    exchange(&world.victim, other.at(PORT)).unwrap();

    thread::scope(|scope| {
        for mut stream in held {
            scope.spawn(move || {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                match stream.read_to_end(&mut Vec::new()) {
                    Ok(_) => {}
                    Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
                }
            });
        }
    });
    eventually(PATIENCE, || b.fd_count() <= files + 4);
    eventually(PATIENCE, || {
        let timeouts = b.access_log().iter().filter(|r| r.reason().as_deref() == Some("timeout")).count();
        if timeouts >= MAX / 4 { Ok(()) } else { Err(format!("{timeouts} were waited for in vain")) }
    });
    world.assert_well("the end of silent connections");
}
