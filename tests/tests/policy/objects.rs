//! Policies as a user writes them, of the namespace `shop` unless they say otherwise.

use std::ops::RangeInclusive;

/// The namespace of the server and its policies.
pub(crate) const NAMESPACE: &str = "shop";

/// A policy object.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    kind: &'static str,
    namespace: &'static str,
    name: String,
    dry_run: bool,
    /// `spec`, as YAML in one line.
    spec: String,
}

impl Policy {
    fn new(kind: &'static str, name: &str, spec: String) -> Self {
        Self { kind, namespace: NAMESPACE, name: name.to_owned(), dry_run: false, spec }
    }

    /// Of another namespace.
    pub(crate) fn of(mut self, namespace: &'static str) -> Self {
        self.namespace = namespace;
        self
    }

    /// On trial.
    pub(crate) fn dry_run(mut self) -> Self {
        self.dry_run = true;
        self
    }

    /// `namespace/name`.
    pub(crate) fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    pub(crate) fn yaml(&self) -> String {
        let Self { kind, namespace, name, dry_run, spec } = self;
        let annotations =
            if *dry_run { ", annotations: {istio.io/dry-run: \"true\"}" } else { Default::default() };
        format!(
            "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}{annotations}}}\n\
             spec: {spec}\n"
        )
    }
}

/// The mode of every pod in the namespace.
pub(crate) fn mode(name: &str, mode: &str) -> Policy {
    Policy::new("PeerAuthentication", name, format!("{{mtls: {{mode: {mode}}}}}"))
}

/// The mode of the pods of `app: server`, another one at one port.
pub(crate) fn port_mode(name: &str, mode: &str, port: u16, at_port: &str) -> Policy {
    port_modes(name, mode, port..=port, at_port)
}

/// As [`port_mode`], another mode at several ports.
pub(crate) fn port_modes(name: &str, mode: &str, ports: RangeInclusive<u16>, at_port: &str) -> Policy {
    let ports: Vec<_> = ports.map(|port| format!("\"{port}\": {{mode: {at_port}}}")).collect();
    let spec = format!(
        "{{selector: {{matchLabels: {{app: server}}}}, mtls: {{mode: {mode}}}, portLevelMtls: {{{}}}}}",
        ports.join(", ")
    );
    Policy::new("PeerAuthentication", name, spec)
}

/// An ALLOW policy for the namespace; `rules` is YAML.
pub(crate) fn allow(name: &str, rules: &str) -> Policy {
    authorization(name, "ALLOW", rules)
}

/// A DENY policy for the namespace.
pub(crate) fn deny(name: &str, rules: &str) -> Policy {
    authorization(name, "DENY", rules)
}

/// An AuthorizationPolicy for the pods with a label of this value: `tier: VALUE`.
pub(crate) fn deny_tier(name: &str, tier: &str) -> Policy {
    let spec = format!("{{selector: {{matchLabels: {{tier: {tier}}}}}, action: DENY, rules: [{{}}]}}");
    Policy::new("AuthorizationPolicy", name, spec)
}

fn authorization(name: &str, action: &str, rules: &str) -> Policy {
    Policy::new("AuthorizationPolicy", name, format!("{{action: {action}, rules: {rules}}}"))
}

/// Rules with one source: `field: [values]`.
pub(crate) fn from(field: &str, values: &[&str]) -> String {
    format!("[{{from: [{{source: {{{field}: [{}]}}}}]}}]", quoted(values))
}

/// Rules with ports alone.
pub(crate) fn to_ports(ports: &[&str]) -> String {
    format!("[{{to: [{{operation: {{ports: [{}]}}}}]}}]", quoted(ports))
}

fn quoted(values: &[&str]) -> String {
    values.iter().map(|value| format!("\"{value}\"")).collect::<Vec<_>>().join(", ")
}
