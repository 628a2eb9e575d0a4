//! What crosses between the nodes: first without agents, as a control that the capture would find the marker, and then
//! with them.

use anyhow::Result;
use lab::Captured;

use super::{stage::Stage, traffic::Seen};
use crate::report::{Report, bytes, count};

/// The port of HBONE.
pub(super) const HBONE: u16 = 15008;

/// What the paths of requests begin with that are sent before any agent runs.
pub(super) const BEFORE: &str = "/before/";

/// What was found without the mesh.
pub(super) struct Control {
    found: bool,
}

/// Sends the marker before any agent runs, over the path that the mesh will take: it must be found.
pub(super) fn without_mesh(stage: &Stage, marker: &str) -> Result<Control> {
    let capture = stage.mesh.capture_wire()?;
    stage.client.sh(&format!("curl -sSf http://{}{BEFORE}{marker}", stage.web_address(0)))?;
    Ok(Control { found: capture.stop()?.contains(marker) })
}

/// Says what the capture with the mesh contains, beside the control.
pub(super) fn compare(report: &mut Report, control: &Control, seen: &Seen) {
    let captured = &seen.captured;
    report.heading("What crosses the wire between the nodes");
    let (tunnels, records, size) = tls_on_hbone(captured);
    report.line(&format!(
        "{} to port {HBONE}: {records} TLS records, {}",
        count(tunnels, "connection"),
        bytes(size as u64)
    ));
    report.check(
        tunnels > 0
            && captured.flows_of_port(HBONE).all(|flow| flow.payload().is_empty() || flow.tls().is_some()),
        "every byte of them is TLS",
    );
    let strays = captured.flows().iter().filter(|flow| {
        let pair = [flow.source, flow.destination];
        !pair.iter().any(|end| end.port() == HBONE) && !pair.iter().any(|end| end.ip() == seen.outsider)
    });
    report.check(strays.count() == 0, "no pod of the mesh sends anything else");
    report.check(!captured.contains(&seen.marker), "the marker that curl and redis-cli sent is not in it");
    report.check(control.found, "the same marker, sent before the agents ran, was found (the control)");
    report.check(
        captured.contains(&seen.outsider_marker),
        "what the pod outside the mesh sent meanwhile is in it, as plaintext (the other control)",
    );
}

/// Connections, their records of either direction, and bytes on the wire.
pub(super) fn tls_on_hbone(captured: &Captured) -> (usize, usize, usize) {
    let tunnels = captured.flows().iter().filter(|flow| flow.destination.port() == HBONE).count();
    captured.flows_of_port(HBONE).fold((tunnels, 0, 0), |(tunnels, records, size), flow| {
        let tls = flow.tls().unwrap_or_default();
        (tunnels, records + tls.handshake + tls.encrypted + tls.other, size + flow.wire_bytes)
    })
}
