//! The metrics of the data path: Istio's TCP metrics by their names and labels, and the failures by reason.
//!
//! Names and labels follow Istio's standard metrics ("TCP connection metrics"), so that its dashboards work as they are.

use std::{collections::HashSet, sync::Mutex};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::verdicts::Verdicts;
use crate::mesh::{Reason, Service, Workload};

/// The data path's metrics.
#[derive(Debug, Default)]
pub struct Metrics {
    opened: Family<Labels, Counter>,
    closed: Family<Labels, Counter>,
    sent: Family<Labels, Counter>,
    received: Family<Labels, Counter>,
    failed: Family<FailureLabels, Counter>,
    active: Gauge,
    pub(super) log_dropped: Counter,
    pub(super) verdicts: Verdicts,
    seen: Mutex<HashSet<Labels>>,
}

/// The counters of one set of labels.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) closed: Counter,
    /// From destination to source: Istio counts bytes "sent" as those of the response.
    pub(super) sent: Counter,
    /// From source to destination.
    pub(super) received: Counter,
}

/// Who reports a connection.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Reporter {
    /// The source's agent.
    Source,
    /// The destination's agent.
    Destination,
}

/// Istio's labels. What is not known is `unknown`, as Istio has it.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(super) struct Labels {
    reporter: Reporter,
    source_workload: Text,
    source_canonical_service: Text,
    source_canonical_revision: Text,
    source_workload_namespace: Text,
    source_principal: Text,
    source_app: Text,
    source_version: Text,
    destination_service: Text,
    destination_service_namespace: Text,
    destination_service_name: Text,
    destination_workload: Text,
    destination_canonical_service: Text,
    destination_canonical_revision: Text,
    destination_workload_namespace: Text,
    destination_principal: Text,
    destination_app: Text,
    destination_version: Text,
    request_protocol: &'static str,
    response_flags: &'static str,
    connection_security_policy: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct FailureLabels {
    reporter: Reporter,
    reason: ReasonLabel,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct ReasonLabel(Reason);

/// A label's value, shared with the workload that it came from.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Text {
    Known(std::sync::Arc<str>),
    Unknown,
    Overflow,
}

/// How many sets of labels each family holds; what comes beyond is counted under `overflow`. A thousand workloads that
/// each speak to ten others fit.
const MAX_SERIES: usize = 10_000;

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let istio = registry.sub_registry_with_prefix("istio_tcp");
        istio.register("connections_opened", "TCP connections opened", metrics.opened.clone());
        istio.register("connections_closed", "TCP connections closed", metrics.closed.clone());
        istio.register(
            "sent_bytes",
            "Bytes sent in responses, from destination to source",
            metrics.sent.clone(),
        );
        istio.register(
            "received_bytes",
            "Bytes received in requests, from source to destination",
            metrics.received.clone(),
        );
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

    /// Counts a connection as opened and returns the counters for the rest of its life.
    pub(super) fn open(&self, labels: Labels) -> Series {
        let labels = self.bounded(labels);
        self.opened.get_or_create_owned(&labels).inc();
        Series {
            closed: self.closed.get_or_create_owned(&labels),
            sent: self.sent.get_or_create_owned(&labels),
            received: self.received.get_or_create_owned(&labels),
        }
    }

    /// Counts a failure.
    pub(super) fn fail(&self, reporter: Reporter, reason: Reason) {
        self.failed.get_or_create(&FailureLabels { reporter, reason: ReasonLabel(reason) }).inc();
    }

    /// Returns the gauge of connections that are being carried.
    pub(super) fn active(&self) -> &Gauge {
        &self.active
    }

    fn bounded(&self, labels: Labels) -> Labels {
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if seen.contains(&labels) {
            return labels;
        }
        if seen.len() >= MAX_SERIES {
            return Labels::overflow(labels.reporter);
        }
        seen.insert(labels.clone());
        labels
    }
}

impl Labels {
    /// Builds the labels of a connection.
    pub(super) fn new(
        reporter: Reporter,
        source: Option<&Workload>,
        destination: Option<&Workload>,
        service: Option<&Service>,
        mutual_tls: bool,
    ) -> Self {
        let text = |workload: Option<&Workload>, field: fn(&Workload) -> &std::sync::Arc<str>| {
            workload.map_or(Text::Unknown, |workload| Text::Known(field(workload).clone()))
        };
        let principal = |workload: Option<&Workload>| match workload {
            Some(workload) if mutual_tls => Text::Known(workload.identity.to_string().into()),
            _ => Text::Unknown,
        };
        Self {
            reporter,
            source_workload: text(source, |w| &w.workload),
            source_canonical_service: text(source, |w| &w.app),
            source_canonical_revision: text(source, |w| &w.version),
            source_workload_namespace: text(source, |w| &w.namespace),
            source_principal: principal(source),
            source_app: text(source, |w| &w.app),
            source_version: text(source, |w| &w.version),
            destination_service: service.map_or(Text::Unknown, |s| Text::Known(s.hostname().into())),
            destination_service_namespace: service
                .map_or(Text::Unknown, |s| Text::Known(s.namespace.clone())),
            destination_service_name: service.map_or(Text::Unknown, |s| Text::Known(s.name.clone())),
            destination_workload: text(destination, |w| &w.workload),
            destination_canonical_service: text(destination, |w| &w.app),
            destination_canonical_revision: text(destination, |w| &w.version),
            destination_workload_namespace: text(destination, |w| &w.namespace),
            destination_principal: principal(destination),
            destination_app: text(destination, |w| &w.app),
            destination_version: text(destination, |w| &w.version),
            request_protocol: "tcp",
            response_flags: "-",
            connection_security_policy: if mutual_tls { "mutual_tls" } else { "none" },
        }
    }

    fn overflow(reporter: Reporter) -> Self {
        let text = || Text::Overflow;
        Self {
            reporter,
            source_workload: text(),
            source_canonical_service: text(),
            source_canonical_revision: text(),
            source_workload_namespace: text(),
            source_principal: text(),
            source_app: text(),
            source_version: text(),
            destination_service: text(),
            destination_service_namespace: text(),
            destination_service_name: text(),
            destination_workload: text(),
            destination_canonical_service: text(),
            destination_canonical_revision: text(),
            destination_workload_namespace: text(),
            destination_principal: text(),
            destination_app: text(),
            destination_version: text(),
            request_protocol: "tcp",
            response_flags: "-",
            connection_security_policy: "unknown",
        }
    }
}

impl EncodeLabelValue for Text {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let text = match self {
            Self::Known(text) => text,
            Self::Unknown => "unknown",
            Self::Overflow => "overflow",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

impl EncodeLabelValue for Reporter {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let text = match self {
            Self::Source => "source",
            Self::Destination => "destination",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

impl EncodeLabelValue for ReasonLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.0.as_str(), encoder)
    }
}
