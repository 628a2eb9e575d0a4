//! The metric of what is wrong with policies. It has one series for each kind of policy and severity, whatever the
//! manifests hold.

use std::{fmt::Error, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Registry,
};
use tokio::sync::watch;

use super::{Kind, Problem, Severity};

/// Counts what is listed about policies when somebody asks.
#[derive(Debug)]
pub(super) struct PolicyProblems(watch::Receiver<Arc<Vec<Problem>>>);

impl PolicyProblems {
    pub(super) fn register(registry: &mut Registry, problems: watch::Receiver<Arc<Vec<Problem>>>) {
        registry.register_collector(Box::new(Self(problems)));
    }
}

impl Collector for PolicyProblems {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let problems = Arc::clone(&self.0.borrow());
        let mut family = encoder.encode_descriptor(
            "culvert_policy_problems",
            "What is wrong with policies: errors are those that could not be read and fail closed",
            None,
            MetricType::Gauge,
        )?;
        for kind in [Kind::PeerAuthentication, Kind::AuthorizationPolicy] {
            for severity in [Severity::Error, Severity::Warning] {
                let count =
                    problems.iter().filter(|problem| problem.policy == Some((kind, severity))).count();
                let labels = [("kind", kind.as_str()), ("severity", severity.as_str())];
                let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
                gauge.encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
