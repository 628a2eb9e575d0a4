//! What to try by hand.

use lab::{Agent, Pod};

use super::stage::Stage;
use crate::report::Report;

/// Says that there is more.
pub(super) fn hint(report: &mut Report) {
    report.note("everything is removed again; `cargo xtask demo --keep` leaves it running to explore");
}

/// Commands for another terminal, ready to be pasted.
pub(super) fn commands(report: &mut Report, stage: &Stage, agents: &[Agent; 2]) {
    let enter = |pod: &Pod| format!("sudo nsenter --net={}", pod.netns().path().display());
    let culvert = lab::culvert().map_or_else(|_| "culvert".to_owned(), |path| path.display().to_string());
    let (client, outsider) = (enter(&stage.client), enter(&stage.outsider));
    let web = stage.web_service.address(80);
    let directory = stage.mesh.directory().display();
    let [a, b] = agents;
    let node_a = stage.mesh.node("node-a");
    let node = node_a.netns().path().display();

    report.heading("It keeps running. Try, in another terminal:");
    for (what, command) in [
        ("ask the web service through the mesh", format!("{client} curl -s http://{web}/")),
        ("a shell in the client's network", client),
        (
            "a pod outside the mesh, in plaintext",
            format!("{outsider} curl -s http://{}/", stage.web_address(0)),
        ),
        ("what an agent knows", format!("sudo {culvert} status --socket {}", a.socket().display())),
        ("who connects to whom, live", format!("sudo tail -f {directory}/node-*.access.jsonl")),
        ("the agents' own logs", format!("sudo tail -f {directory}/node-*.agent.log")),
        ("metrics", format!("sudo nsenter --net={node} curl -s http://127.0.0.1:15021/metrics")),
        (
            "the wire between the nodes",
            format!("sudo nsenter --net={node} tcpdump -A -n -i {}", node_a.wire()),
        ),
        (
            "the objects that describe the mesh",
            format!("ls {directory}/manifests   # edit one: it holds within a second"),
        ),
        (
            "kill the agent of node-b: new connections to its pods fail, and nothing crosses in plaintext",
            format!("sudo kill -9 {}", b.pid()),
        ),
    ] {
        report.line(&format!("# {what}"));
        report.line(&command);
    }
    report.note("Ctrl-C ends it and removes everything.");
}
