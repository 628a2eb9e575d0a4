//! What the server counts.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::refusal::Refusal;

/// The server's metrics. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<ResultLabel, Counter>,
    pub(super) connections: Gauge,
    pub(super) handshakes_failed: Counter,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ResultLabel {
    result: &'static str,
}

impl Metrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let requests = Family::default();
        // All at zero: a rate over a counter that is absent is no rate.
        for result in Refusal::REASONS.into_iter().chain([ISSUED]) {
            drop(Family::<ResultLabel, Counter>::get_or_create(&requests, &ResultLabel { result }));
        }
        let metrics = Self { requests, connections: Gauge::default(), handshakes_failed: Counter::default() };
        registry.register(
            "culvert_ca_requests",
            "Requests for certificates, by result: issued, or why not",
            metrics.requests.clone(),
        );
        registry.register("culvert_ca_connections", "Connections of callers", metrics.connections.clone());
        registry.register(
            "culvert_ca_handshakes_failed",
            "Connections that did not become TLS in time",
            metrics.handshakes_failed.clone(),
        );
        metrics
    }

    pub(super) fn issued(&self) {
        self.requests.get_or_create(&ResultLabel { result: ISSUED }).inc();
    }

    pub(super) fn refused(&self, refusal: &Refusal) {
        self.requests.get_or_create(&ResultLabel { result: refusal.reason() }).inc();
    }
}

const ISSUED: &str = "issued";
