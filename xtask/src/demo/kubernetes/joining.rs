//! The shop joins the mesh by a label, and leaves it again; its pods run on.

use std::time::Instant;

use anyhow::{Result, ensure};
use lab::{AccessRecord, PATIENCE, try_eventually};

use super::{
    super::connections,
    shop::{SHOP, Shop},
    wire::{self, REQUESTS},
};
use crate::report::Report;

/// Puts the label on, and shows what is different then.
pub(super) fn show(report: &mut Report, shop: &Shop, marker: &str, outsiders: &str) -> Result<()> {
    report.heading("2. One label, and what runs is on mutual TLS");
    // From before the first tunnel, to see each from its first byte.
    let capture = shop.cluster().capture(shop.client_node())?;
    let start = Instant::now();
    shop.command(report, &["label", "namespace", SHOP, JOIN])?;
    shop.wait_enrolled(true)?;
    let took = start.elapsed().as_secs_f64();
    report.check(true, &format!("every pod of the shop says that it is in the mesh, after {took:.1} s"));

    shop.wait_tunnelled()?;
    let answers = wire::ask_with_marker(shop, marker)?;
    wire::ask_from_outside(shop, outsiders)?;
    wire::is_encrypted(report, &capture.stop()?, marker, outsiders);

    let client = shop.address("client")?.to_string();
    let replicas = |answer: &String| answer.split(' ').next().map(str::to_owned);
    let mut greeters: Vec<_> = answers.iter().filter_map(replicas).collect();
    greeters.sort();
    greeters.dedup();
    report.check(
        answers.iter().all(|answer| answer.ends_with(&format!(" greets {client}"))),
        &format!("nginx saw the client's own address, {client}, not a proxy's"),
    );
    report.check(greeters.len() == 2, "the service has spread the requests over both replicas, as before");
    identities(report, shop)
}

/// Who spoke to whom, by the certificates that the destinations' agents verified.
fn identities(report: &mut Report, shop: &Shop) -> Result<()> {
    let from_client = |record: &&AccessRecord| record.field("src.workload").as_deref() == Some("client");
    // An agent writes the line when the connection has ended.
    let records = try_eventually(PATIENCE, || {
        let records = shop.arrivals()?;
        let count = records.iter().filter(from_client).count();
        ensure!(count >= REQUESTS, "the agents tell of {count} connections");
        Ok(records)
    })?;
    report.line("");
    report
        .line("Who spoke to whom, by the agents' access logs (identities without spiffe://cluster.local/):");
    report.line("");
    connections::table(report, records.iter());
    report.line("");
    let secured = |record: &AccessRecord| record.field("security").as_deref() == Some("mutual_tls");
    report.check(
        records.iter().filter(from_client).all(|record| secured(record) && record.is_ok()),
        "each of the client's connections is mutual TLS, with an identity of its service account's",
    );
    Ok(())
}

/// Takes the label away, and shows that everything is as it was.
pub(super) fn take_back(report: &mut Report, shop: &Shop, marker: &str) -> Result<()> {
    report.heading("4. The label away, and everything is as it was");
    shop.command(report, &["label", "namespace", SHOP, LEAVE])?;
    shop.wait_enrolled(false)?;
    let capture = shop.cluster().capture(shop.client_node())?;
    wire::ask_with_marker(shop, marker)?;
    report.check(capture.stop()?.contains(marker), "plaintext between the nodes, as at the beginning");
    let answered =
        try_eventually(PATIENCE, || shop.complaint(super::enforcing::OUTSIDER).map(|said| said.is_none()));
    report
        .check(answered.is_ok(), "the pod outside is answered again: outside the mesh no policy is enforced");
    Ok(())
}

/// Puts the label on again, for whoever wants to explore.
pub(super) fn again(shop: &Shop) -> Result<()> {
    shop.kubectl(&["label", "namespace", SHOP, JOIN])?;
    shop.wait_enrolled(true)
}

const JOIN: &str = "culvert.dev/mesh=enabled";
const LEAVE: &str = "culvert.dev/mesh-";
