//! Workloads (pods that live), services, and the endpoints that connect the two.

use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf, sync::Arc};

use super::Identity;

/// A pod that runs, as the mesh sees it. Succeeded and Failed pods are none: they hold no address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Workload {
    /// `metadata.uid`; where the object has none (a manifest), `<namespace>/<name>`.
    pub uid: Arc<str>,
    /// What the node's kubelet calls the pod where that is another uid: of a static pod, which the API server has a mirror of
    /// with a uid of its own (annotation `kubernetes.io/config.mirror`). Whoever creates a pod can claim any, so it proves
    /// nothing by itself.
    pub kubelet_uid: Option<Arc<str>>,
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// The pod's name.
    pub name: Arc<str>,
    /// The name of what owns the pod, without the hash that a ReplicaSet adds (`web` of `web-7d4f9c-x2x8k`); the
    /// pod's own name where nothing does. Istio's label `source_workload`.
    pub workload: Arc<str>,
    /// The label `app.kubernetes.io/name`, else `app`, else [`Self::workload`]. Istio's `canonical_service`.
    pub app: Arc<str>,
    /// The label `app.kubernetes.io/version`, else `version`, else `latest`. Istio's `canonical_revision`.
    pub version: Arc<str>,
    /// The pod's labels, by which policies select it.
    pub labels: Arc<Labels>,
    /// The node that the pod runs on; empty where it is not scheduled.
    pub node: Arc<str>,
    /// The pod's addresses, canonical (IPv4-mapped IPv6 is IPv4), without repetition. Empty for `hostNetwork` pods:
    /// they never claim the node's address.
    pub addresses: Vec<IpAddr>,
    /// The node's addresses, for a `hostNetwork` pod: it sends from them, like everything else there.
    pub host_addresses: Vec<IpAddr>,
    /// Who the pod is.
    pub identity: Identity,
    /// Whether the pod is to be in the mesh.
    pub enrollment: Enrollment,
    /// Whether the pod's agent is ready to receive HBONE for it: its status says so.
    pub receives_hbone: bool,
    /// The annotation `culvert.dev/enrolled` that its agent writes: whether it is `"true"`; none where there is none.
    pub marked: Option<bool>,
    /// Where the pod's network namespace is (annotation `culvert.dev/netns`).
    pub netns: Option<NetnsRef>,
    /// Whether the pod names a runtime class (`spec.runtimeClassName`), which may be one that runs virtual machines.
    pub has_runtime_class: bool,
    /// The TCP ports that its containers name, for a service's named `targetPort`.
    pub ports: Vec<NamedPort>,
    /// Whether the pod is being deleted (`metadata.deletionTimestamp`). It keeps its addresses while it has them, but
    /// yields them to a pod that is not: an address is only given out again when the old pod's sandbox is gone, whereas
    /// the object of a pod on a lost node stays.
    pub terminating: bool,
}

/// Labels of an object, or those that a selector wants.
pub type Labels = BTreeMap<String, String>;

/// A container port with a name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NamedPort {
    /// `ports[].name`.
    pub name: Arc<str>,
    /// `ports[].containerPort`.
    pub port: u16,
}

/// Whether a pod is to be in the mesh, and why not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Enrollment {
    /// The pod's label or its namespace's opts it in.
    Enrolled,
    /// The pod stays outside.
    Not(NotEnrolled),
}

/// Why a pod is outside the mesh.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NotEnrolled {
    /// Neither the pod nor its namespace has the label `culvert.dev/mesh: enabled`.
    NoLabel,
    /// The pod's own label `culvert.dev/mesh: disabled`.
    OptedOut,
    /// The pod uses its node's network. This reason goes before all others.
    HostNetwork,
    /// The pod is Culvert's own.
    Agent,
    /// Another mesh's sidecar runs in the pod.
    Sidecar,
    /// Istio's ambient mesh has the pod.
    IstioAmbient,
}

impl fmt::Display for NotEnrolled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoLabel => "neither it nor its namespace has the label culvert.dev/mesh: enabled",
            Self::OptedOut => "its label culvert.dev/mesh: disabled opts out",
            Self::HostNetwork => "it uses its node's network",
            Self::Agent => "it is Culvert's own agent",
            Self::Sidecar => "another mesh's sidecar runs in it",
            Self::IstioAmbient => "Istio's ambient mesh has it",
        })
    }
}

/// Where a pod's network namespace is.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum NetnsRef {
    /// A file that the namespace is mounted on, such as `/run/netns/pod`.
    Path(PathBuf),
    /// A process in the namespace.
    Pid(u32),
}

impl fmt::Display for NetnsRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Pid(pid) => write!(f, "process {pid}"),
        }
    }
}

impl Workload {
    /// Makes an enrolled pod of which nothing is known but what policies select by.
    pub fn unknown(namespace: Arc<str>, labels: Arc<Labels>, identity: Identity) -> Self {
        Self {
            uid: Arc::default(),
            kubelet_uid: None,
            namespace,
            name: Arc::default(),
            workload: Arc::default(),
            app: Arc::default(),
            version: Arc::default(),
            labels,
            node: Arc::default(),
            addresses: Vec::new(),
            host_addresses: Vec::new(),
            identity,
            enrollment: Enrollment::Enrolled,
            receives_hbone: true,
            marked: None,
            netns: None,
            has_runtime_class: false,
            ports: Vec::new(),
            terminating: false,
        }
    }

    /// Returns the uid in the name of the pod's cgroup.
    pub fn uid_on_node(&self) -> &Arc<str> {
        self.kubelet_uid.as_ref().unwrap_or(&self.uid)
    }

    /// Returns whether the pod uses its node's network, and so has no address of its own.
    pub fn is_host_network(&self) -> bool {
        self.enrollment == Enrollment::Not(NotEnrolled::HostNetwork)
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A Kubernetes service with the endpoints behind it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Service {
    /// The service's namespace.
    pub namespace: Arc<str>,
    /// The service's name.
    pub name: Arc<str>,
    /// Cluster addresses, canonical. Empty for a headless service: its clients connect to the pods themselves.
    pub addresses: Vec<IpAddr>,
    /// External and load-balancer addresses, canonical. They may be somebody else's too (k3s gives its load balancers
    /// the nodes' own addresses), so only the service's own ports there are the service.
    pub external_addresses: Vec<IpAddr>,
    /// Its TCP ports.
    pub ports: Vec<ServicePort>,
    /// `spec.selector`: the labels of the pods behind it; empty where somebody else writes its endpoints.
    pub selector: Labels,
    /// What stands behind it, ready or not.
    pub endpoints: Vec<Endpoint>,
    /// `sessionAffinity`.
    pub affinity: Affinity,
    /// `trafficDistribution`.
    pub distribution: Distribution,
    /// `internalTrafficPolicy: Local`: endpoints of the source's node only.
    pub local_only: bool,
    /// `publishNotReadyAddresses`: endpoints count as ready whatever their condition.
    pub publish_not_ready: bool,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A TCP port of a service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServicePort {
    /// Its name; empty where the service has one port without a name.
    pub name: Arc<str>,
    /// The port that clients connect to.
    pub port: u16,
    /// Where it leads.
    pub target: TargetPort,
}

/// `targetPort`, for where the endpoint itself does not say the number.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TargetPort {
    /// A number.
    Number(u16),
    /// The name of a container's port, which may be another number in each pod.
    Name(Arc<str>),
}

/// One address behind a service, from an EndpointSlice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// The address, canonical.
    pub address: IpAddr,
    /// `conditions.ready`, where absent true (as Kubernetes' API says).
    pub ready: bool,
    /// `nodeName`; where absent, the node of the pod that has the address counts.
    pub node: Option<Arc<str>>,
    /// The pod that it stands for (`targetRef`). An endpoint whose address is no longer that pod's leads nowhere: the
    /// address may have passed to another pod before the slice was updated.
    pub pod: Option<PodName>,
    /// What the EndpointSlice says about the service's ports, shared by its endpoints. Where it says nothing at all,
    /// the service's own `targetPort`s count; otherwise a port that is not here is not served by this endpoint.
    pub ports: Arc<[EndpointPort]>,
}

/// The name of a pod.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct PodName {
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// The pod's name in it.
    pub name: Arc<str>,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A TCP port of an EndpointSlice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EndpointPort {
    /// The service port's name; empty where the service has one port without a name.
    pub name: Arc<str>,
    /// Its number at the endpoints; absent, the service's `targetPort` counts.
    pub port: Option<u16>,
}

/// `sessionAffinity`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Affinity {
    /// Any endpoint for each connection.
    #[default]
    None,
    /// One endpoint for each client address, as long as the endpoint is ready.
    ClientIp,
}

/// `trafficDistribution`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Distribution {
    /// All ready endpoints alike.
    #[default]
    Any,
    /// Ready endpoints in the zone of the source's node first (`PreferClose`, `PreferSameZone`); on the source's node where
    /// no node's zone is known.
    PreferSameZone,
    /// Ready endpoints on the source's node first (`PreferSameNode`).
    PreferSameNode,
}
