//! Kubernetes objects to the mesh's terms. What cannot be converted is refused with the field's path; nothing here
//! panics, whatever the object holds.

mod endpoints;
mod enrollment;
mod pod;
mod policy;
mod service;

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::Value;

use super::{FieldPath, Invalid};
use crate::mesh::{self, Enrollment, TrustDomain};

pub use policy::{PolicyNotice, Severity, Topic};

pub(super) use endpoints::Slice;
pub(super) use enrollment::{NamespaceLabels, PodLabels};
pub(super) use pod::ENROLLED;

/// What conversion needs to know besides the object.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The trust domain of every workload.
    pub trust_domain: TrustDomain,
    /// The namespace of the mesh's own agents, usually `culvert-system`.
    pub root_namespace: String,
    /// How a pod shows that its agent is ready to receive HBONE for it.
    pub readiness: Readiness,
}

/// How a pod shows that its agent is ready to receive HBONE for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Readiness {
    /// By an annotation that its agent sets in the API server: `culvert.dev/enrolled: "true"`, or Istio's
    /// `ambient.istio.io/redirection: enabled`.
    Annotation,
    /// By such an annotation, or by being opted in: with a manifest directory there is nobody to set one.
    Enrollment,
}

/// The kinds of objects that make up a mesh.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// `v1` Namespace.
    Namespace,
    /// `v1` Node.
    Node,
    /// `v1` Pod.
    Pod,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `security.istio.io/v1` PeerAuthentication.
    PeerAuthentication,
    /// `security.istio.io/v1` AuthorizationPolicy.
    AuthorizationPolicy,
}

/// What an object is called.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for a Namespace and a Node.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A Kubernetes object as it came.
#[derive(Clone, Debug)]
pub enum Object {
    /// `v1` Namespace.
    Namespace(Box<Namespace>),
    /// `v1` Node.
    Node(Box<Node>),
    /// `v1` Pod.
    Pod(Box<Pod>),
    /// `v1` Service.
    Service(Box<Service>),
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice(Box<EndpointSlice>),
    /// `security.istio.io/v1` PeerAuthentication, whatever it holds: none is ever left out.
    PeerAuthentication(Box<Value>),
    /// `security.istio.io/v1` AuthorizationPolicy, whatever it holds: none is ever left out.
    AuthorizationPolicy(Box<Value>),
}

/// A valid object, in the mesh's terms: what the [`Index`](super::Index) takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub(super) key: Key,
    pub(super) content: Content,
    pub(super) notices: Vec<PolicyNotice>,
}

/// What an object says. `None` where it exists and means nothing to the mesh.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    Namespace(NamespaceLabels),
    /// The node's zone.
    Node(Option<Arc<str>>),
    Pod(Option<Box<PodRecord>>),
    Service(Option<Box<mesh::Service>>),
    Slice(Option<Slice>),
    PeerAuthentication(Arc<mesh::PeerAuthentication>),
    AuthorizationPolicy(Option<Arc<mesh::AuthorizationPolicy>>),
}

/// A pod that lives, complete but for what its namespace says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PodRecord {
    /// As if the namespace had no labels.
    pub(super) workload: mesh::Workload,
    pub(super) labels: PodLabels,
}

impl Record {
    /// Converts an object.
    ///
    /// # Errors
    /// Where one of its fields cannot mean what Kubernetes says that it means. Nothing of the object counts then. A
    /// policy that has a name is always a record: see [`Self::notices`].
    pub fn new(object: &Object, settings: &Settings) -> Result<Self, Invalid> {
        let key = object.key()?;
        let mut notices = Vec::new();
        let content = match object {
            Object::Namespace(namespace) => {
                let labels = namespace.metadata.labels.as_ref();
                Content::Namespace(NamespaceLabels::read(labels)?)
            }
            Object::Node(node) => {
                let zone = node.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE));
                Content::Node(zone.filter(|zone| !zone.is_empty()).map(|zone| zone.as_str().into()))
            }
            Object::Pod(pod) => Content::Pod(pod::convert(pod, &key, settings)?.map(Box::new)),
            Object::Service(service) => Content::Service(service::convert(service, &key)?.map(Box::new)),
            Object::EndpointSlice(slice) => Content::Slice(endpoints::convert(slice, &key)?),
            Object::PeerAuthentication(object) => {
                let (policy, said) = policy::authentication(object, &key);
                notices = said;
                Content::PeerAuthentication(Arc::new(policy))
            }
            Object::AuthorizationPolicy(object) => {
                let (policy, said) = policy::authorization(object, &key);
                notices = said;
                Content::AuthorizationPolicy(policy.map(Arc::new))
            }
        };
        Ok(Self { key, content, notices })
    }

    /// A namespace whose label enrols its pods.
    pub(super) fn enrolled_namespace(key: Key) -> Self {
        Self { key, content: Content::Namespace(NamespaceLabels::enrolled()), notices: Vec::new() }
    }

    /// Returns what people must know about it, where it is a policy.
    pub fn notices(&self) -> &[PolicyNotice] {
        &self.notices
    }

    /// Returns what the object is called.
    pub fn key(&self) -> &Key {
        &self.key
    }
}

/// Returns whether a pod is to be in the mesh, by its own object and its namespace's, for whoever cannot wait for the
/// snapshot.
///
/// # Errors
/// Where the pod has no name, or a label of either cannot mean anything.
pub fn enrollment_of(pod: &Pod, namespace: &Namespace, settings: &Settings) -> Result<Enrollment, Invalid> {
    let key = Key::new(Kind::Pod, &pod.metadata)?;
    let namespace = NamespaceLabels::read(namespace.metadata.labels.as_ref())?;
    let spec = pod.spec.clone().unwrap_or_default();
    Ok(pod::pod_labels(pod, &spec, &key, settings)?.enrollment(namespace))
}

impl Object {
    /// Returns what the object is called. Without a namespace it is in `default`, as `kubectl apply` has it.
    ///
    /// # Errors
    /// Where it has no name.
    pub fn key(&self) -> Result<Key, Invalid> {
        let (kind, metadata) = match self {
            Self::Namespace(object) => (Kind::Namespace, &object.metadata),
            Self::Node(object) => (Kind::Node, &object.metadata),
            Self::Pod(object) => (Kind::Pod, &object.metadata),
            Self::Service(object) => (Kind::Service, &object.metadata),
            Self::EndpointSlice(object) => (Kind::EndpointSlice, &object.metadata),
            Self::PeerAuthentication(object) => return Key::of(Kind::PeerAuthentication, object),
            Self::AuthorizationPolicy(object) => return Key::of(Kind::AuthorizationPolicy, object),
        };
        Key::new(kind, metadata)
    }
}

impl Key {
    pub(super) fn new(kind: Kind, metadata: &ObjectMeta) -> Result<Self, Invalid> {
        let path = FieldPath::of(&["metadata", "name"]);
        let name = metadata.name.clone().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| path.invalid("a name is needed"))?;
        let namespace = match kind {
            Kind::Namespace | Kind::Node => String::new(),
            _ => metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        };
        Ok(Self { kind, namespace, name })
    }

    /// Returns what an object is called, also where the rest of it is not valid.
    pub(super) fn of(kind: Kind, object: &Value) -> Result<Self, Invalid> {
        let metadata = object.get("metadata").unwrap_or(&Value::Null);
        let field = |name| metadata.get(name).and_then(Value::as_str).map(str::to_owned);
        Self::new(
            kind,
            &ObjectMeta { name: field("name"), namespace: field("namespace"), ..ObjectMeta::default() },
        )
    }
}

impl Kind {
    /// Returns the kind as Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            kind @ (Kind::Namespace | Kind::Node) => {
                write!(f, "{} {}", kind.as_str(), self.name.escape_debug())
            }
            kind => {
                let (namespace, name) = (self.namespace.escape_debug(), self.name.escape_debug());
                write!(f, "{} {namespace}/{name}", kind.as_str())
            }
        }
    }
}

/// The label of a node's zone, such as `eu-central-1a`.
const ZONE: &str = "topology.kubernetes.io/zone";

type Labels = BTreeMap<String, String>;

/// Reads an address that a pod or a service can have.
fn address(text: &str, path: impl FnOnce() -> FieldPath) -> Result<IpAddr, Invalid> {
    let Ok(address) = text.parse::<IpAddr>() else {
        return Err(path().invalid(format!("{text:?} is not an IP address")));
    };
    let address = address.to_canonical();
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err(path().invalid(format!("{text} cannot be the address of a pod or service")));
    }
    Ok(address)
}

/// Reads a port number.
fn port(number: i32, path: impl FnOnce() -> FieldPath) -> Result<u16, Invalid> {
    let port = u16::try_from(number).ok().filter(|port| *port != 0);
    port.ok_or_else(|| path().invalid(format!("{number} is not a port: 1 to 65535")))
}

/// Whether a port's `protocol` is TCP, which is what it is where it is absent.
fn is_tcp(protocol: Option<&String>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}

#[cfg(test)]
mod tests;
