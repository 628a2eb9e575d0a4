//! Pods and policies that only the API server knows.

use lab::{PATIENCE, eventually, tcp};
use serde_json::json;

use crate::world::{World, metric};

#[test]
fn pods_of_the_api_server_talk_by_mutual_tls_and_a_policy_there_takes_effect() {
    let world = World::new();
    let (client, server) = (world.pod("client", "node-a"), world.pod("server", "node-b"));
    let (_a, b) = (world.ready_agent("node-a"), world.ready_agent("node-b"));
    world.wait_enrolled(&[&client, &server]);
    let _echo = server.serve(8080, tcp::echo).unwrap();
    let tunnelled = || {
        let before = metric(&b, "istio_tcp_connections_opened_total");
        let Ok(stream) = client.connect(server.at(8080)) else { return false };
        tcp::exchange(stream, 1 << 16).is_ok() && metric(&b, "istio_tcp_connections_opened_total") > before
    };
    // The client's agent may not have heard yet that the server is in the mesh.
    eventually(PATIENCE, tunnelled);

    world.apply(&json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "nobody", "namespace": "shop"}, "spec": {}}));
    let talks = || client.connect(server.at(8080)).is_ok_and(|stream| tcp::exchange(stream, 1024).is_ok());
    eventually(PATIENCE, || !talks());
    world.server.kubectl(&["delete", "authorizationpolicy", "nobody", "-n", "shop"], "").unwrap();
    eventually(PATIENCE, talks);
}

#[test]
fn a_pod_that_opts_out_in_the_api_server_leaves_the_mesh() {
    let world = World::new();
    let pod = world.pod("web", "node-a");
    let agent = world.ready_agent("node-a");
    world.wait_enrolled(&[&pod]);
    let name = pod.manifest().name;
    world.label(&name, "culvert.dev/mesh=disabled");
    eventually(PATIENCE, || world.enrolled(&name).is_empty());
    eventually(PATIENCE, || agent.logs().contains("the pod leaves the mesh"));
    world.label(&name, "culvert.dev/mesh-");
    eventually(PATIENCE, || world.enrolled(&name) == "true");
    world.server.kubectl(&["delete", "pod", &name, "-n", "shop", "--force", "--grace-period=0"], "").unwrap();
    eventually(PATIENCE, || metric(&agent, "culvert_workloads") == 0.0);
}
