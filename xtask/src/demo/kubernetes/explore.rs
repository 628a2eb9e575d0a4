//! What to try by hand.

use anyhow::Result;

use super::shop::{AGENTS, CLUSTER, LEGACY, ROOT, SHOP, Shop};
use crate::report::Report;

/// Says that there is more.
pub(super) fn hint(report: &mut Report) {
    report.note(
        "the cluster is taken down again; `cargo xtask demo --cluster --keep` leaves it up, and prints commands to try",
    );
}

/// Commands for another terminal, ready to be pasted.
///
/// # Errors
/// Where the pods that they name are not there.
pub(super) fn commands(report: &mut Report, shop: &Shop) -> Result<()> {
    let node = shop.client_node().unique_name();
    let (agent, web) = (shop.pod_of_client_node(ROOT, AGENTS)?, shop.pod_of_client_node(SHOP, "app=web")?);
    let kubectl = |rest: &str| format!("cargo xtask cluster kubectl {rest}");
    report.heading(
        "It keeps running, and the shop is in the mesh again. Try, in another terminal, in the checkout:",
    );
    report.line(&format!("export CULVERT_CLUSTER={CLUSTER}"));
    for (what, command) in [
        (
            "the shop, and who of it is in the mesh",
            kubectl(&format!(
                "-n {SHOP} get pods -o custom-columns='NAME:.metadata.name,ENROLLED:.metadata.annotations.culvert\\.dev/enrolled'"
            )),
        ),
        (
            "ask the web server as the client, who may",
            kubectl(&format!("-n {SHOP} exec client -- curl -sS web.shop")),
        ),
        (
            "as a pod of the mesh that may not",
            kubectl(&format!("-n {SHOP} exec batch -- curl -sS -m 5 web.shop")),
        ),
        ("from outside the mesh", kubectl(&format!("-n {LEGACY} exec outsider -- curl -sS -m 5 web.shop"))),
        (
            "why not?",
            kubectl(&format!(
                "-n {ROOT} exec {agent} -- culvert policy explain --agent /run/culvert/{node}.sock --from {SHOP}/batch --to {SHOP}/{web}:8080"
            )),
        ),
        ("who connects to whom, live", kubectl(&format!("-n {ROOT} logs -f --tail=5 -l {AGENTS}"))),
        ("what an agent knows", kubectl(&format!("-n {ROOT} exec ds/culvert -- culvert status"))),
        ("what became of the policies", kubectl(&format!("-n {SHOP} describe authorizationpolicy"))),
        ("let everybody of the mesh in again", kubectl(&format!("-n {SHOP} delete authorizationpolicy web"))),
        (
            "more replicas, in the mesh from their first packet",
            kubectl(&format!("-n {SHOP} scale deployment/web --replicas=4")),
        ),
        (
            "the wire between the nodes",
            "cargo xtask cluster enter node-a tcpdump -A -n -i eth0 tcp port 15008 or tcp port 8080"
                .to_owned(),
        ),
        ("take the shop out of the mesh", kubectl(&format!("label namespace {SHOP} culvert.dev/mesh-"))),
        ("all of Culvert", "cargo xtask cluster helm -n culvert-system list".to_owned()),
    ] {
        report.line(&format!("# {what}"));
        report.line(&command);
    }
    report.note("Ctrl-C takes the cluster down and removes everything.");
    Ok(())
}
