//! Real programs speak through the mesh, and the agents, the servers and the capture say what they saw.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lab::{AccessRecord, Agent, Captured, Pod, try_eventually};

use super::{
    connections,
    stage::{ECHO, Stage},
    wire::BEFORE,
};
use crate::report::Report;

/// Requests to the service with two replicas: that one of them gets none has a chance of one in half a million.
const REQUESTS: usize = 20;

/// What was seen while the programs spoke.
pub(super) struct Seen {
    pub(super) captured: Captured,
    pub(super) marker: String,
    pub(super) outsider_marker: String,
    pub(super) outsider: IpAddr,
    records: Vec<AccessRecord>,
    greetings: Vec<String>,
    redis_client: String,
}

/// Lets the programs speak, under a capture.
pub(super) fn send(stage: &Stage, agents: &[Agent; 2], marker: &str) -> Result<Seen> {
    let Stage { client, worker, outsider, web_service, redis_service, .. } = stage;
    let capture = stage.mesh.capture_wire()?;

    let web = web_service.address(80);
    let mut greetings = Vec::new();
    for _ in 0..REQUESTS {
        greetings.push(client.sh(&format!("curl -sSf -H 'X-Marker: {marker}' http://{web}/{marker}"))?);
    }
    set_and_get(client, redis_service.address_v6(6379).ip(), marker)?;
    // IPv6 only, on both sides.
    set_and_get(worker, stage.redis.ip(), marker)?;
    let redis_client = worker.sh(&format!("redis-cli -h {} CLIENT INFO", stage.redis.ip()))?;
    worker.sh(&format!("curl -sSf -g http://{}/{marker}", web_service.address_v6(80)))?;

    // A pod outside the mesh reaches the pods themselves, in plaintext; no policy here forbids it.
    let outsider_marker = format!("outsider-{marker}").replace("marker-", "");
    outsider.sh(&format!("curl -sSf http://{}/{outsider_marker}", stage.web_address(0)))?;

    let captured = capture.stop()?;
    let records = wait_for_records(agents)?;
    Ok(Seen {
        captured,
        marker: marker.to_owned(),
        outsider_marker,
        outsider: outsider.ip(),
        records,
        greetings,
        redis_client,
    })
}

fn set_and_get(pod: &Pod, redis: IpAddr, value: &str) -> Result<()> {
    let answer =
        pod.sh(&format!("redis-cli -h {redis} SET greeting {value} && redis-cli -h {redis} GET greeting"))?;
    ensure!(answer.contains(value), "redis answered {answer:?}");
    Ok(())
}

/// Agents report a connection when it ends, a moment after curl has.
fn wait_for_records(agents: &[Agent; 2]) -> Result<Vec<AccessRecord>> {
    // Those of the client, and of the worker three: SET, GET and one request.
    let expected = REQUESTS + 2 + 3;
    let outbound =
        |agent: &Agent| agent.access_log().iter().filter(|line| line.direction() == "outbound").count();
    try_eventually(Duration::from_secs(10), || outbound(&agents[0]) >= expected).with_context(|| {
        format!("the agent of node-a reports {} connections of {expected}", outbound(&agents[0]))
    })?;
    Ok(agents.iter().flat_map(Agent::access_log).filter(is_shown).collect())
}

/// The connections by which the costs are measured are no part of the show.
fn is_shown(record: &AccessRecord) -> bool {
    record.destination().is_none_or(|destination| destination.port() != ECHO)
}

/// One line for each pair, from the log of the agent that verified the client's certificate.
pub(super) fn who_spoke_to_whom(report: &mut Report, seen: &Seen) {
    report.heading("Who spoke to whom, as the destination's agent verified it");
    report.line("(from the access logs; identities without their beginning, spiffe://cluster.local/)\n");
    connections::table(report, seen.records.iter());
    let failed = seen.records.iter().filter(|record| !record.is_ok()).count();
    report.check(failed == 0, "no connection failed");
}

/// The servers' view of their clients.
pub(super) fn what_servers_saw(report: &mut Report, stage: &Stage, seen: &Seen) {
    report.heading("What the servers saw");
    let pods = [&stage.client, &stage.worker, &stage.outsider].map(|pod| (pod.ip().to_string(), pod.name()));
    for (replica, pod) in stage.web.iter().enumerate() {
        let log = stage.nginx_log(replica).unwrap_or_default();
        let mut counts = BTreeMap::<&str, usize>::new();
        for client in
            log.lines().filter(|line| !line.contains(BEFORE)).filter_map(|line| line.split(' ').next())
        {
            *counts.entry(client).or_default() += 1;
        }
        let named = |address: &str| pods.iter().find(|pod| pod.0 == address).map_or("unknown", |pod| &pod.1);
        let shown: Vec<_> =
            counts.iter().map(|(client, count)| format!("{client} ({}, {count}×)", named(client))).collect();
        report.line(&format!("nginx in {} logged {}", pod.name(), shown.join(", ")));
        let own = !counts.is_empty() && counts.keys().all(|client| named(client) != "unknown");
        report.check(own, "its clients are the pods' own addresses, not a proxy's");
    }
    let address =
        seen.redis_client.split(' ').find_map(|field| field.strip_prefix("addr=")).unwrap_or("nothing");
    report.line(&format!("redis named its client {address}"));
    report.check(address.starts_with(&format!("[{}]", stage.worker.ip())), "it is the worker's own address");
    let balanced =
        stage.web.iter().all(|pod| seen.greetings.iter().any(|line| line.starts_with(&pod.name())));
    report.check(balanced, "the service spread the requests over both replicas");
}
