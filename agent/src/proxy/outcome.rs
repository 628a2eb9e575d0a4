//! What became of one connection: dropped at its end, it writes the one log line and closes the one metric.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use time::OffsetDateTime;

use super::{
    access_log::{self, Entry, Peer},
    context::Context,
    copy::Meter,
    metrics::Reporter,
    traffic::{Ends, Series},
    verdicts,
};
use crate::mesh::{Decision, Denial, Identity, OrigDst, Reason, Service, Workload};

/// One connection's account, from accept to end.
pub(super) struct Outcome<'a> {
    context: &'a Context,
    reporter: Reporter,
    source: SocketAddr,
    started: Instant,
    source_workload: Option<Arc<Workload>>,
    source_identity: Option<Identity>,
    destination: Option<OrigDst>,
    endpoint: Option<SocketAddr>,
    destination_workload: Option<Arc<Workload>>,
    service: Option<Arc<Service>>,
    mutual_tls: bool,
    same_node: bool,
    /// How long it took, where the agent did not carry it.
    native: Option<Duration>,
    series: Option<Arc<Series>>,
    failure: Option<(Reason, String)>,
    policy: Option<String>,
    dry_run: Option<String>,
    /// From source to destination.
    pub(super) up: Arc<Meter>,
    /// From destination to source.
    pub(super) down: Arc<Meter>,
}

impl<'a> Outcome<'a> {
    /// Opens the account of a connection from a pod of this node.
    pub(super) fn outbound(context: &'a Context, source: SocketAddr, workload: Arc<Workload>) -> Self {
        let mut outcome = Self::new(context, Reporter::Source, source);
        outcome.source_workload = Some(workload);
        outcome
    }

    /// Opens the account of a connection to a pod of this node.
    pub(super) fn inbound(context: &'a Context, source: SocketAddr, workload: Arc<Workload>) -> Self {
        let mut outcome = Self::new(context, Reporter::Destination, source);
        outcome.destination_workload = Some(workload);
        outcome
    }

    /// Opens the account of a connection to a pod of this node that comes in plaintext. Who has the address that it comes
    /// from is a hint for people, which nobody has proved.
    pub(super) fn plaintext(context: &'a Context, source: SocketAddr, workload: Arc<Workload>) -> Self {
        let mut outcome = Self::inbound(context, source, workload);
        outcome.source_workload = context.workload_at(source.ip());
        outcome
    }

    fn new(context: &'a Context, reporter: Reporter, source: SocketAddr) -> Self {
        context.metrics.active().inc();
        Self {
            context,
            reporter,
            source: access_log::canonical(source),
            started: Instant::now(),
            source_workload: None,
            source_identity: None,
            destination: None,
            endpoint: None,
            destination_workload: None,
            service: None,
            mutual_tls: false,
            same_node: false,
            native: None,
            series: None,
            failure: None,
            policy: None,
            dry_run: None,
            up: Arc::default(),
            down: Arc::default(),
        }
    }

    /// Notes the address that was asked for.
    pub(super) fn asked_for(&mut self, destination: OrigDst) {
        self.destination = Some(destination);
    }

    /// Returns whether this is the address that was asked for.
    pub(super) fn is_asked_for(&self, address: SocketAddr) -> bool {
        self.destination.map(OrigDst::address) == Some(address)
    }

    /// Notes where an outbound connection goes.
    pub(super) fn routed_to(
        &mut self,
        endpoint: SocketAddr,
        workload: Option<Arc<Workload>>,
        service: Option<Arc<Service>>,
    ) {
        self.endpoint = Some(endpoint);
        self.destination_workload = workload;
        self.service = service;
    }

    /// Notes who an inbound connection comes from.
    pub(super) fn came_from(&mut self, identity: Identity, workload: Option<Arc<Workload>>) {
        self.source_identity = Some(identity);
        self.source_workload = workload;
        self.mutual_tls = true;
    }

    /// Notes that the agent carries the connection between two of its own pods, and that `other` is the account of the
    /// other end: what the one counts, the other has counted.
    pub(super) fn is_other_end_of(&mut self, other: &mut Self) {
        (self.up, self.down) = (Arc::clone(&other.up), Arc::clone(&other.down));
        (self.same_node, other.same_node) = (true, true);
    }

    /// Notes that the connection went past the agent by its permit, and how long it took.
    pub(super) fn was_native(&mut self, duration: Duration) {
        self.native = Some(duration);
    }

    /// Notes what the policies decided, and counts it.
    pub(super) fn decided(&mut self, decision: &Decision) {
        self.context.metrics.verdicts.count(decision);
        self.policy = verdicts::decider(&decision.verdict).map(ToString::to_string);
        self.dry_run = decision.dry_run.as_ref().map(|dry_run| verdicts::summary(&dry_run.verdict));
    }

    /// Notes that the policies refuse what they have permitted, and counts it.
    pub(super) fn revoked(&mut self, denial: &Denial) {
        self.context.metrics.verdicts.count_denial(denial);
        self.policy = denial.policy().map(ToString::to_string);
    }

    /// Notes the client's address as the application sees it.
    pub(super) fn client_shown(&mut self, client: SocketAddr) {
        self.source = client;
    }

    /// Counts the connection as opened, once both of its ends are connected.
    pub(super) fn opened(&mut self, mutual_tls: bool) {
        self.mutual_tls = mutual_tls;
        let series = self.context.metrics.traffic.open(&Ends {
            reporter: self.reporter,
            source: self.source_workload.as_deref(),
            destination: self.destination_workload.as_deref(),
            service: self.service.as_deref(),
            mutual_tls,
        });
        self.up.count_into(series.received.clone());
        self.down.count_into(series.sent.clone());
        self.series = Some(series);
    }

    /// Notes why the connection failed. The first reason stays.
    pub(super) fn failed(&mut self, reason: Reason, error: &dyn std::fmt::Display) {
        if self.failure.is_none() {
            self.failure = Some((reason, error.to_string()));
        }
    }

    fn entry(&mut self) -> Entry {
        let mut source_peer = Peer::of(self.source_workload.take());
        // What the destination's agent knows of a client that has proved nothing is who has its address.
        if self.source_identity.is_some() || self.reporter == Reporter::Destination {
            source_peer.identity = self.source_identity.take();
        }
        let (reason, error) = self.failure.take().unzip();
        Entry {
            time: OffsetDateTime::now_utc(),
            direction: match self.reporter {
                Reporter::Source => "outbound",
                Reporter::Destination => "inbound",
            },
            result: if reason.is_some() { "error" } else { "ok" },
            reason,
            error,
            policy: self.policy.take(),
            dry_run: self.dry_run.take(),
            security: if self.mutual_tls { "mutual_tls" } else { "none" },
            same_node: self.same_node,
            native: self.native.is_some(),
            source: self.source,
            source_peer,
            destination: self.destination.map(OrigDst::address),
            endpoint: self
                .endpoint
                .filter(|endpoint| Some(*endpoint) != self.destination.map(OrigDst::address)),
            service: self.service.take(),
            destination_peer: Peer::of(self.destination_workload.take()),
            bytes_sent: self.up.bytes(),
            bytes_received: self.down.bytes(),
            duration_ms: (self.native.unwrap_or_else(|| self.started.elapsed()).as_secs_f64() * 1e6).round()
                / 1e3,
        }
    }
}

impl Drop for Outcome<'_> {
    fn drop(&mut self) {
        self.context.metrics.active().dec();
        if let Some((reason, _)) = &self.failure {
            self.context.metrics.fail(self.reporter, *reason);
        }
        if let Some(series) = &self.series {
            series.closed.inc();
        }
        if self.context.access_log.enabled() {
            let entry = self.entry();
            self.context.access_log.write(entry);
        }
    }
}
