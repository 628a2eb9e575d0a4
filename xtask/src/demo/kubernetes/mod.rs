//! `cargo xtask demo --cluster`: the mesh as somebody meets it who has a Kubernetes cluster and pods in it that run.
//!
//! A tour in four steps, each with the command that a person would type, and what can be seen then: on the wire between the
//! nodes, by the servers, by a client that asks all the while.
//!
//! ```text
//! cluster, chart, shop ──► plaintext ──► label: mutual TLS ──► policies: refusals ──► no label: plaintext ──► sums
//! ```

mod enforcing;
mod explore;
mod joining;
mod shop;
mod wire;

use std::time::Instant;

use anyhow::{Result, ensure};

use self::shop::Shop;
use super::marker;
use crate::report::Report;

/// Goes through all of it, as root. An error where something that is claimed does not hold.
pub(super) fn show(keep: bool) -> Result<()> {
    let start = Instant::now();
    let shop = Shop::open()?;
    let mut report = Report::new();
    report.title("Culvert in Kubernetes: two nodes, the chart, and a shop whose pods run already");
    shop.describe(&mut report)?;

    wire::before(&mut report, &shop, &marker())?;
    joining::show(&mut report, &shop, &marker(), &marker())?;
    enforcing::strict(&mut report, &shop)?;
    enforcing::by_identity(&mut report, &shop)?;
    enforcing::status(&mut report, &shop)?;
    joining::take_back(&mut report, &shop, &marker())?;
    shop.sum_up(&mut report)?;
    report.note(&format!("all of this took {:.0} s", start.elapsed().as_secs_f64()));

    if keep {
        joining::again(&shop)?;
        explore::commands(&mut report, &shop)?;
        lab::wait_for_interrupt()?;
        report.note("taking the cluster down");
    } else {
        explore::hint(&mut report);
    }
    let failed = report.failures();
    ensure!(failed == 0, "{failed} of the checks above failed");
    Ok(())
}
