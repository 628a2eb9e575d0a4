//! The metrics of the data path: what is carried ([`Traffic`]), what policy says of it, and the failures by reason.

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{traffic::Traffic, verdicts::Verdicts};
use crate::mesh::Reason;

/// The data path's metrics.
#[derive(Debug, Default)]
pub struct Metrics {
    pub(super) traffic: Traffic,
    failed: Family<FailureLabels, Counter>,
    active: Gauge,
    pub(super) log_dropped: Counter,
    pub(super) verdicts: Verdicts,
}

/// Who reports a connection.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Reporter {
    /// The source's agent.
    Source,
    /// The destination's agent.
    Destination,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct FailureLabels {
    reporter: Reporter,
    reason: ReasonLabel,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct ReasonLabel(Reason);

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let istio = registry.sub_registry_with_prefix("istio_tcp");
        istio.register_collector(Box::new(metrics.traffic.clone()));
        let own = registry.sub_registry_with_prefix("culvert");
        own.register(
            "connections_failed",
            "Connections that were refused or broke, by reason",
            metrics.failed.clone(),
        );
        own.register("connections_active", "Connections that the agent carries", metrics.active.clone());
        own.register(
            "access_log_dropped",
            "Access-log lines dropped because the log's reader was too slow",
            metrics.log_dropped.clone(),
        );
        metrics.verdicts.register(own);
        metrics
    }

    /// Counts a failure.
    pub(super) fn fail(&self, reporter: Reporter, reason: Reason) {
        self.failed.get_or_create(&FailureLabels { reporter, reason: ReasonLabel(reason) }).inc();
    }

    /// Returns the gauge of connections that are being carried.
    pub(super) fn active(&self) -> &Gauge {
        &self.active
    }
}

impl Reporter {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

impl EncodeLabelValue for Reporter {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.as_str(), encoder)
    }
}

impl EncodeLabelValue for ReasonLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.0.as_str(), encoder)
    }
}
