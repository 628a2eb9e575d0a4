//! The `baggage` header of a CONNECT request (W3C Baggage), by which agents tell each other who their workloads are,
//! for logs and metrics only: it proves nothing.

use crate::mesh::Workload;

/// Describes a workload, as ztunnel does.
pub(super) fn encode(workload: &Workload) -> String {
    let mut text = String::new();
    let members = [
        ("k8s.namespace.name", &workload.namespace),
        ("k8s.deployment.name", &workload.workload),
        ("service.name", &workload.app),
        ("service.version", &workload.version),
    ];
    for (key, value) in members {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(key);
        text.push('=');
        // Names and label values of Kubernetes hold letters, digits, '.', '-' and '_' only: nothing to escape.
        text.extend(value.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')));
    }
    text
}
