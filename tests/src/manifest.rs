//! The Kubernetes objects that describe a mesh, and their YAML: what `kubectl apply` takes as well.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Write},
    net::IpAddr,
    path::PathBuf,
};

/// The label that opts a namespace or a pod in (`enabled`) or out (`disabled`).
pub const MESH_LABEL: &str = "culvert.dev/mesh";

/// A `Pod`. Change it with [`crate::Pod::update`].
#[derive(Clone, Debug)]
pub struct PodManifest {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`, beside that of the network namespace.
    pub annotations: BTreeMap<String, String>,
    /// The annotation `culvert.dev/netns`.
    pub netns: Option<PathBuf>,
    /// `spec.nodeName`, as the agent is called.
    pub node: String,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `spec.serviceAccountName`.
    pub service_account: String,
    /// The ports that the container names.
    pub ports: Vec<(String, u16)>,
    /// `status.podIPs`; the first is `status.podIP`.
    pub addresses: Vec<IpAddr>,
    /// `status.phase`.
    pub phase: String,
    /// The condition `Ready`.
    pub ready: bool,
}

impl PodManifest {
    /// Whether the pod still holds its addresses.
    pub fn is_alive(&self) -> bool {
        !matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }
}

impl Display for PodManifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut annotations = self.annotations.clone();
        if let Some(netns) = &self.netns {
            annotations.insert("culvert.dev/netns".to_owned(), netns.display().to_string());
        }
        head(f, "v1", "Pod", &self.name, &self.namespace)?;
        writeln!(f, "  uid: {}", quoted(&self.uid))?;
        map(f, "labels", &self.labels)?;
        map(f, "annotations", &annotations)?;
        writeln!(f, "spec:\n  nodeName: {}", quoted(&self.node))?;
        writeln!(f, "  serviceAccountName: {}", quoted(&self.service_account))?;
        if self.host_network {
            writeln!(f, "  hostNetwork: true")?;
        }
        writeln!(f, "  containers:\n    - name: app\n      image: lab")?;
        if !self.ports.is_empty() {
            writeln!(f, "      ports:")?;
        }
        for (name, port) in &self.ports {
            writeln!(f, "        - {{name: {}, containerPort: {port}, protocol: TCP}}", quoted(name))?;
        }
        writeln!(f, "status:\n  phase: {}", quoted(&self.phase))?;
        if let Some(first) = self.addresses.first() {
            writeln!(f, "  podIP: {}\n  podIPs:", quoted(first))?;
        }
        for address in &self.addresses {
            writeln!(f, "    - {{ip: {}}}", quoted(address))?;
        }
        let ready = if self.ready { "True" } else { "False" };
        writeln!(f, "  conditions:\n    - {{type: Ready, status: \"{ready}\"}}")
    }
}

/// A `Namespace`.
#[derive(Clone, Debug)]
pub struct NamespaceManifest {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
}

impl Display for NamespaceManifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {}", quoted(&self.name))?;
        map(f, "labels", &self.labels)
    }
}

/// A port of a `Service`.
#[derive(Clone, Debug)]
pub struct PortManifest {
    /// Its name; may be empty where it is the only one.
    pub name: String,
    /// What clients connect to.
    pub port: u16,
    /// `targetPort`.
    pub target: Target,
}

/// `targetPort`: a number or the name of a container's port.
#[derive(Clone, Debug)]
pub enum Target {
    /// A number.
    Number(u16),
    /// The name of a container's port.
    Name(String),
}

/// A `Service`.
#[derive(Clone, Debug, Default)]
pub struct ServiceManifest {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `spec.selector`.
    pub selector: BTreeMap<String, String>,
    /// `spec.clusterIPs`; empty for a headless service.
    pub addresses: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external: Vec<IpAddr>,
    /// `spec.ports`.
    pub ports: Vec<PortManifest>,
    /// More lines of `spec`, such as `sessionAffinity: ClientIP`.
    pub spec: BTreeMap<String, String>,
}

impl ServiceManifest {
    /// Whether the service selects a pod of its namespace with these labels.
    pub fn selects(&self, pod: &PodManifest) -> bool {
        pod.namespace == self.namespace
            && !self.selector.is_empty()
            && self.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
    }
}

impl Display for ServiceManifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        head(f, "v1", "Service", &self.name, &self.namespace)?;
        let first = self.addresses.first().map_or("None".to_owned(), ToString::to_string);
        writeln!(f, "spec:\n  clusterIP: {}\n  clusterIPs:", quoted(&first))?;
        if self.addresses.is_empty() {
            writeln!(f, "    - \"None\"")?;
        }
        for address in &self.addresses {
            writeln!(f, "    - {}", quoted(address))?;
        }
        if !self.external.is_empty() {
            let all: Vec<_> = self.external.iter().map(quoted).collect();
            writeln!(f, "  externalIPs: [{}]", all.join(", "))?;
        }
        for (key, value) in &self.spec {
            writeln!(f, "  {key}: {value}")?;
        }
        map(f, "selector", &self.selector)?;
        writeln!(f, "  ports:")?;
        for PortManifest { name, port, target } in &self.ports {
            let target = match target {
                Target::Number(number) => number.to_string(),
                Target::Name(name) => quoted(name),
            };
            let name = if name.is_empty() { String::new() } else { format!("name: {}, ", quoted(name)) };
            writeln!(f, "    - {{{name}port: {port}, targetPort: {target}, protocol: TCP}}")?;
        }
        Ok(())
    }
}

/// One endpoint of an [`EndpointSlice`].
#[derive(Clone, Debug)]
pub struct EndpointManifest {
    /// The pod's address.
    pub address: IpAddr,
    /// `conditions.ready`.
    pub ready: bool,
    /// `nodeName`.
    pub node: String,
    /// `targetRef.name`.
    pub pod: String,
}

/// An `EndpointSlice`: endpoints of one family that serve the same port numbers.
#[derive(Clone, Debug)]
pub struct EndpointSlice {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// The label `kubernetes.io/service-name`.
    pub service: String,
    /// The ports by the service's port name, with the pods' numbers.
    pub ports: Vec<(String, u16)>,
    /// The endpoints.
    pub endpoints: Vec<EndpointManifest>,
}

impl Display for EndpointSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        head(f, "discovery.k8s.io/v1", "EndpointSlice", &self.name, &self.namespace)?;
        writeln!(f, "  labels:\n    kubernetes.io/service-name: {}", quoted(&self.service))?;
        let v6 = self.endpoints.iter().any(|endpoint| endpoint.address.is_ipv6());
        writeln!(f, "addressType: {}\nports:", if v6 { "IPv6" } else { "IPv4" })?;
        for (name, port) in &self.ports {
            writeln!(f, "  - {{name: {}, port: {port}, protocol: TCP}}", quoted(name))?;
        }
        writeln!(f, "endpoints:")?;
        for EndpointManifest { address, ready, node, pod } in &self.endpoints {
            writeln!(f, "  - addresses: [{}]", quoted(address))?;
            writeln!(f, "    conditions: {{ready: {ready}, serving: {ready}, terminating: false}}")?;
            writeln!(f, "    nodeName: {}", quoted(node))?;
            let namespace = quoted(&self.namespace);
            writeln!(f, "    targetRef: {{kind: Pod, name: {}, namespace: {namespace}}}", quoted(pod))?;
        }
        Ok(())
    }
}

fn head(f: &mut fmt::Formatter<'_>, version: &str, kind: &str, name: &str, namespace: &str) -> fmt::Result {
    writeln!(f, "apiVersion: {version}\nkind: {kind}\nmetadata:")?;
    writeln!(f, "  name: {}\n  namespace: {}", quoted(name), quoted(namespace))
}

fn map(f: &mut fmt::Formatter<'_>, key: &str, entries: &BTreeMap<String, String>) -> fmt::Result {
    if entries.is_empty() {
        return Ok(());
    }
    writeln!(f, "  {key}:")?;
    for (key, value) in entries {
        writeln!(f, "    {}: {}", quoted(key), quoted(value))?;
    }
    Ok(())
}

/// A YAML scalar: plain where that is safe, else in double quotes, which take JSON's escapes.
fn quoted(value: impl Display) -> String {
    let value = value.to_string();
    let plain = value.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && value.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
            .contains(&value.to_ascii_lowercase().as_str());
    if plain {
        return value;
    }
    let mut text = String::from("\"");
    for c in value.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            c if c.is_control() => {
                // Writing to a string cannot fail.
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_that_yaml_would_read_as_something_else_are_quoted() {
        for (value, expected) in [
            ("web-0", "web-0"),
            ("true", "\"true\""),
            ("8080", "\"8080\""),
            ("a\"b", "\"a\\\"b\""),
            ("", "\"\""),
        ] {
            assert_eq!(quoted(value), expected);
        }
    }

    #[test]
    fn a_headless_service_says_none() {
        let service = ServiceManifest { name: "db".into(), namespace: "shop".into(), ..Default::default() };
        assert!(service.to_string().contains("clusterIP: None\n"), "{service}");
    }
}
