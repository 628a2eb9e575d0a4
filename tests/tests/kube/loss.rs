//! An API server that is lost, and comes back.

use lab::{Agent, PATIENCE, eventually, tcp};
use nix::sys::signal::Signal;

use crate::world::{World, metric, readiness};

fn connected(agent: &Agent) -> f64 {
    metric(agent, "culvert_kube_watch_connected")
}

/// Kinds that are watched.
const KINDS: f64 = 7.0;

#[test]
fn a_lost_api_server_leaves_all_in_force_and_is_caught_up_with_without_a_flap() {
    let mut world = World::new();
    let (client, server) = (world.pod("client", "node-a"), world.pod("server", "node-b"));
    let agents = [world.ready_agent("node-a"), world.ready_agent("node-b")];
    world.wait_enrolled(&[&client, &server]);
    let _echo = server.serve(8080, tcp::echo).unwrap();
    let talks = || client.connect(server.at(8080)).is_ok_and(|stream| tcp::exchange(stream, 1024).is_ok());
    eventually(PATIENCE, talks);
    eventually(PATIENCE, || agents.iter().all(|agent| connected(agent) == KINDS));
    let mut standing = client.connect(server.at(8080)).unwrap();
    tcp::ping(&mut standing, "before").unwrap();

    world.server.stop();
    for agent in &agents {
        eventually(PATIENCE, || connected(agent) == 0.0);
        let status = eventually(PATIENCE, || {
            let (status, body) = readiness(agent);
            if body.contains("the watch of Pod is lost") { Ok(status) } else { Err(body) }
        });
        assert_eq!(status, 200);
    }
    assert!(talks());

    world.server.start().unwrap();
    let late = world.pod("late", "node-a");
    // It asks again after up to half a minute.
    for agent in &agents {
        eventually(3 * PATIENCE, || connected(agent) == KINDS);
    }
    world.wait_enrolled(&[&late]);
    tcp::ping(&mut standing, "after").unwrap();
    for agent in &agents {
        eventually(PATIENCE, || match readiness(agent) {
            (200, body) if !body.contains("is lost") => Ok(()),
            other => Err(format!("{other:?}")),
        });
        assert_no_flap(agent);
    }
}

/// Asserts that the agent never took anything for gone or changed that was as before.
fn assert_no_flap(agent: &Agent) {
    for flap in ["the pod leaves the mesh", "another network namespace", "another identity"] {
        assert!(!agent.logs().contains(flap), "{flap}: {}", agent.logs());
    }
}

/// HTTP 410: the version from which the agent wants to go on is compacted away.
#[test]
fn an_agent_that_would_go_on_from_a_forgotten_version_lists_anew_without_a_flap() {
    let mut world = World::new();
    let (client, server) = (world.pod("client", "node-a"), world.pod("server", "node-b"));
    world.write_pod("gone", ("another-node", "/run/netns/nowhere"), "10.9.9.9");
    let agents = [world.ready_agent("node-a"), world.ready_agent("node-b")];
    world.wait_enrolled(&[&client, &server]);
    let _echo = server.serve(8080, tcp::echo).unwrap();
    let talks = || client.connect(server.at(8080)).is_ok_and(|stream| tcp::exchange(stream, 1024).is_ok());
    eventually(PATIENCE, talks);
    eventually(PATIENCE, || agents.iter().all(|agent| connected(agent) == KINDS));
    let [frozen, _] = &agents;
    let lists = |agent: &Agent| {
        agent
            .metrics()
            .map_or(0.0, |metrics| metrics.sum("culvert_kube_watch_restarts_total", &[("kind", "Pod")]))
    };
    let before = lists(frozen);

    // It must not hear of what changes: its connection is cut first, and it is in no state to make another.
    frozen.signal(Signal::SIGSTOP);
    world.server.stop();
    world.server.start().unwrap();
    let delete = ["delete", "pod", "gone", "-n", "shop", "--force", "--grace-period=0"];
    world.server.kubectl(&delete, "").unwrap();
    for (name, address) in [("one", "10.9.9.1"), ("another", "10.9.9.2")] {
        world.write_pod(name, ("another-node", "/run/netns/nowhere"), address);
    }
    world.server.stop();
    world.server.compact().unwrap();
    world.server.start().unwrap();
    frozen.signal(Signal::SIGCONT);

    for agent in &agents {
        eventually(3 * PATIENCE, || metric(agent, "culvert_workloads") == 4.0);
        eventually(3 * PATIENCE, || connected(agent) == KINDS);
    }
    eventually(PATIENCE, || match frozen.logs() {
        logs if logs.contains("too old resource version") => Ok(()),
        logs => Err(logs),
    });
    eventually(PATIENCE, || lists(frozen) > before);
    // Its peers may have given its tunnels up meanwhile.
    eventually(PATIENCE, talks);
    agents.iter().for_each(assert_no_flap);
}

#[test]
fn pods_that_went_while_the_api_server_could_not_be_reached_go_by_the_new_list() {
    let mut world = World::new();
    world.write_pod("gone", ("another-node", "/run/netns/nowhere"), "10.9.9.9");
    let agent = world.ready_agent("node-a");
    eventually(PATIENCE, || metric(&agent, "culvert_workloads") == 1.0);
    world.server.stop();
    eventually(PATIENCE, || connected(&agent) == 0.0);
    world.server.start().unwrap();
    // Before the agent asks again, or after: it ends alike.
    world
        .server
        .kubectl(&["delete", "pod", "gone", "-n", "shop", "--force", "--grace-period=0"], "")
        .unwrap();
    eventually(3 * PATIENCE, || metric(&agent, "culvert_workloads") == 0.0);
}
