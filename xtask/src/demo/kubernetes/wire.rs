//! What somebody reads who listens between the nodes.

use anyhow::{Result, ensure};
use lab::Captured;

use super::{
    super::wire::{HBONE, tls_on_hbone},
    shop::{LEGACY, SHOP, Shop},
};
use crate::report::{Report, bytes, count};

/// Requests with a marker: that none of them goes to the replica on the other node has a chance of one in a million.
pub(super) const REQUESTS: usize = 20;

/// Shows that everything can be read as long as nobody is in the mesh; the control for what comes after.
pub(super) fn before(report: &mut Report, shop: &Shop, marker: &str) -> Result<()> {
    report.heading("1. As it was: Culvert is installed, and nobody is in the mesh");
    report.line("Each node has an agent. It touches nothing that has not asked for it.");
    let capture = shop.cluster().capture(shop.client_node())?;
    ask_with_marker(shop, marker)?;
    let captured = capture.stop()?;
    report.check(
        captured.contains(marker),
        &format!("plaintext on the wire between the nodes: a marker in the client's {REQUESTS} requests is read there"),
    );
    report.check(tls_on_hbone(&captured).0 == 0, &format!("no connection to port {HBONE}"));
    Ok(())
}

/// Has the client send a marker, which must be answered each time.
pub(super) fn ask_with_marker(shop: &Shop, marker: &str) -> Result<Vec<String>> {
    let answers = shop.ask((SHOP, "client"), marker, REQUESTS)?;
    let unanswered = answers.iter().filter(|answer| answer.is_empty()).count();
    ensure!(unanswered == 0, "{unanswered} of {REQUESTS} requests of the client were not answered");
    Ok(answers)
}

/// Has the pod outside the mesh send a marker.
pub(super) fn ask_from_outside(shop: &Shop, marker: &str) -> Result<()> {
    shop.ask((LEGACY, "outsider"), marker, REQUESTS).map(drop)
}

/// Says whether what is on the wire is mutual TLS, and the marker not to be read.
pub(super) fn is_encrypted(report: &mut Report, captured: &Captured, marker: &str, outsiders: &str) {
    let (tunnels, records, size) = tls_on_hbone(captured);
    let (connections, size) = (count(tunnels, "connection"), bytes(size as u64));
    report.check(
        tunnels > 0
            && captured.flows_of_port(HBONE).all(|flow| flow.payload().is_empty() || flow.tls().is_some()),
        &format!(
            "mutual TLS between the nodes: {connections} to port {HBONE}, {records} TLS records, {size}, and \
             not a byte outside of one"
        ),
    );
    report
        .check(!captured.contains(marker), "the marker that the client sends now is not to be read any more");
    report.check(
        captured.contains(outsiders),
        "what the pod outside the mesh sends meanwhile is read, as before (the control)",
    );
}
