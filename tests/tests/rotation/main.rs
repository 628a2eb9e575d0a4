//! Certificates, their issuers and their roots are replaced under traffic that never stops: not one connection fails.
//!
//! [`runbook`] is docs/root-rotation.md step by step, on two nodes that have a copy each of the authority's directory,
//! as on a fleet: what is copied to one is not yet on the other.

mod fleet;
mod runbook;
mod traffic;

use lab::{PATIENCE, eventually};

use fleet::{Directories, Fleet};
use traffic::Traffic;

/// How often each certificate is replaced under load.
const RENEWALS: f64 = 4.0;

#[test]
fn certificates_of_twenty_seconds_are_renewed_under_load_without_a_failed_connection() {
    let fleet = Fleet::new(Directories::Shared, "20s");
    let before = fleet.certificates();
    let traffic = Traffic::start(&fleet);
    let identities: f64 = fleet.agents.each_ref().map(|agent| issued(agent, "issued")).iter().sum();
    // Twenty seconds are renewed after ten; a machine that is busy may take longer, and nothing is measured here.
    eventually(PATIENCE * 10, || {
        fleet.agents.iter().map(|agent| issued(agent, "issued")).sum::<f64>() >= identities * (1.0 + RENEWALS)
    });
    traffic.assert_moving();
    let tally = traffic.stop();
    println!("{tally}");
    tally.assert_flawless(&fleet);
    for agent in &fleet.agents {
        assert_eq!((issued(agent, "failed"), issued(agent, "rejected")), (0.0, 0.0), "{}", agent.node());
    }
    for (before, after) in before.iter().zip(fleet.certificates()) {
        assert_eq!(before.identity, after.identity);
        assert_ne!(before.serial, after.serial, "{} was renewed", after.identity);
    }
}

fn issued(agent: &lab::Agent, result: &str) -> f64 {
    agent.metrics().unwrap().sum("culvert_certificate_requests_total", &[("result", result)])
}
