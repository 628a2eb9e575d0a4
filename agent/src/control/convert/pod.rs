//! Pod to Workload.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};

use super::{
    FieldPath, Invalid, Key, Labels, PodLabels, PodRecord, Settings, address,
    enrollment::{NamespaceLabels, ambient_label, mesh_label},
    is_tcp, port,
};
use crate::mesh::{Identity, NamedPort, NetnsRef, NotEnrolled, Workload};

/// Converts a pod; `None` where it has run to its end and so holds no address any more.
pub(super) fn convert(pod: &Pod, key: &Key, settings: &Settings) -> Result<Option<PodRecord>, Invalid> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return Ok(None);
    }
    let (no_spec, no_status) = (PodSpec::default(), PodStatus::default());
    let spec = pod.spec.as_ref().unwrap_or(&no_spec);
    let status = pod.status.as_ref().unwrap_or(&no_status);
    let labels = pod.metadata.labels.as_ref();

    let pod_labels = pod_labels(pod, spec, key, settings)?;
    let enrollment = pod_labels.enrollment(NamespaceLabels::default());
    let host_network = pod_labels.never == Some(NotEnrolled::HostNetwork);
    let (addresses, host_addresses) = match addresses(status)? {
        of_the_node if host_network => (Vec::new(), of_the_node),
        own => (own, Vec::new()),
    };
    let workload = workload_name(pod, key);
    let uid = pod.metadata.uid.as_deref().filter(|uid| !uid.is_empty());
    let workload = Workload {
        uid: uid.map_or_else(|| format!("{}/{}", key.namespace, key.name).into(), Into::into),
        kubelet_uid: kubelet_uid(pod),
        namespace: key.namespace.as_str().into(),
        name: key.name.as_str().into(),
        app: label(labels, &["app.kubernetes.io/name", "app"]).unwrap_or(workload).into(),
        version: label(labels, &["app.kubernetes.io/version", "version"]).unwrap_or("latest").into(),
        workload: workload.into(),
        labels: labels.cloned().unwrap_or_default().into(),
        node: spec.node_name.as_deref().unwrap_or_default().into(),
        addresses,
        host_addresses,
        identity: identity(spec, key, settings)?,
        enrollment,
        receives_hbone: pod_labels.receives_hbone(enrollment),
        marked: annotation(pod, ENROLLED).map(|value| value == "true"),
        netns: netns(pod)?,
        has_runtime_class: spec.runtime_class_name.as_ref().is_some_and(|name| !name.is_empty()),
        ports: named_ports(spec)?,
        terminating: pod.metadata.deletion_timestamp.is_some(),
    };
    Ok(Some(PodRecord { workload, labels: pod_labels }))
}

/// Reads what a pod itself says about its enrolment.
pub(super) fn pod_labels(
    pod: &Pod,
    spec: &PodSpec,
    key: &Key,
    settings: &Settings,
) -> Result<PodLabels, Invalid> {
    let labels = pod.metadata.labels.as_ref();
    let annotated = |name| annotation(pod, name).is_some();
    let is_agent = key.namespace == settings.root_namespace
        && label(labels, &["app.kubernetes.io/name"]) == Some("culvert");
    let never = if spec.host_network == Some(true) {
        Some(NotEnrolled::HostNetwork)
    } else if is_agent {
        Some(NotEnrolled::Agent)
    } else if annotated("sidecar.istio.io/status") || annotated("linkerd.io/proxy-version") {
        Some(NotEnrolled::Sidecar)
    } else {
        None
    };
    Ok(PodLabels {
        never,
        mesh: mesh_label(labels)?,
        ambient: ambient_label(labels),
        annotated: annotation(pod, ENROLLED) == Some("true")
            || annotation(pod, "ambient.istio.io/redirection") == Some("enabled"),
        readiness: settings.readiness,
    })
}

fn identity(spec: &PodSpec, key: &Key, settings: &Settings) -> Result<Identity, Invalid> {
    // `serviceAccount` is the older name of the same field.
    let account = spec.service_account_name.as_deref().or(spec.service_account.as_deref());
    let account = account.filter(|account| !account.is_empty()).unwrap_or("default");
    Identity::new(settings.trust_domain.clone(), &key.namespace, account).map_err(|error| {
        let path = match error {
            crate::mesh::IdentityError::Namespace(_) => FieldPath::of(&["metadata", "namespace"]),
            _ => FieldPath::of(&["spec", "serviceAccountName"]),
        };
        path.invalid(error.to_string())
    })
}

fn addresses(status: &PodStatus) -> Result<Vec<IpAddr>, Invalid> {
    let mut addresses = Vec::new();
    let path = || FieldPath::of(&["status", "podIP"]);
    if let Some(text) = status.pod_ip.as_deref().filter(|text| !text.is_empty()) {
        addresses.push(address(text, path)?);
    }
    for (index, pod_ip) in status.pod_ips.iter().flatten().enumerate() {
        let path = || FieldPath::of(&["status", "podIPs"]).index(index).key("ip");
        let address = address(&pod_ip.ip, path)?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

fn netns(pod: &Pod) -> Result<Option<NetnsRef>, Invalid> {
    let Some(text) = annotation(pod, NETNS) else { return Ok(None) };
    // `parse` alone would take "+1" too.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let pid = text.parse().ok().filter(|pid| digits && (1..=i32::MAX as u32).contains(pid));
    match pid {
        Some(pid) => Ok(Some(NetnsRef::Pid(pid))),
        None if text.starts_with('/') => Ok(Some(NetnsRef::Path(text.into()))),
        None => Err(FieldPath::of(&["metadata", "annotations", NETNS])
            .invalid(format!("{text:?} is neither an absolute path nor the id of a process"))),
    }
}

/// What the kubelet calls a static pod: a hash without dashes (its `applyDefaults`). With a dash it would be the uid of a pod
/// of the API server's, which is nobody's mirror.
fn kubelet_uid(pod: &Pod) -> Option<Arc<str>> {
    let hash = annotation(pod, MIRROR)?;
    let is_hash =
        (1..=MAX_HASH).contains(&hash.len()) && hash.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_hash.then(|| hash.into())
}

/// The named TCP ports of the containers that run beside each other: sidecars in Kubernetes' own sense among them.
fn named_ports(spec: &PodSpec) -> Result<Vec<NamedPort>, Invalid> {
    let containers = spec.containers.iter().enumerate().map(|entry| ("containers", entry));
    let sidecars = spec.init_containers.iter().flatten().enumerate();
    let sidecars = sidecars
        .filter(|(_, container)| container.restart_policy.as_deref() == Some("Always"))
        .map(|entry| ("initContainers", entry));
    let mut named: Vec<NamedPort> = Vec::new();
    for (list, (index, container)) in containers.chain(sidecars) {
        for (at, entry) in container.ports.iter().flatten().enumerate() {
            let path =
                || FieldPath::of(&["spec", list]).index(index).key("ports").index(at).key("containerPort");
            let port = port(entry.container_port, path)?;
            let Some(name) = entry.name.as_deref().filter(|_| is_tcp(entry.protocol.as_ref())) else {
                continue;
            };
            // The first of a name counts, as in Kubernetes' own `FindPort`.
            if !named.iter().any(|other| &*other.name == name) {
                named.push(NamedPort { name: name.into(), port });
            }
        }
    }
    Ok(named)
}

/// The name of what the user deployed: the controlling owner's, without what Kubernetes appended to it.
fn workload_name<'a>(pod: &'a Pod, key: &'a Key) -> &'a str {
    let owners = pod.metadata.owner_references.iter().flatten();
    let Some(owner) = owners.into_iter().find(|owner| owner.controller == Some(true)) else {
        return &key.name;
    };
    let stem = match owner.kind.as_str() {
        "ReplicaSet" => label(pod.metadata.labels.as_ref(), &["pod-template-hash"])
            .and_then(|hash| owner.name.strip_suffix(hash)?.strip_suffix('-')),
        // A CronJob names its jobs by the minute that they were due.
        "Job" => owner.name.rsplit_once('-').and_then(|(stem, minute)| {
            (minute.len() >= 8 && minute.bytes().all(|byte| byte.is_ascii_digit())).then_some(stem)
        }),
        _ => None,
    };
    stem.filter(|stem| !stem.is_empty()).unwrap_or(&owner.name)
}

fn label<'a>(labels: Option<&'a Labels>, names: &[&str]) -> Option<&'a str> {
    let labels = labels?;
    names.iter().find_map(|name| labels.get(*name)).map(String::as_str).filter(|value| !value.is_empty())
}

fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// The annotation by which a pod's agent says that it receives HBONE for the pod.
pub(in crate::control) const ENROLLED: &str = "culvert.dev/enrolled";
const NETNS: &str = "culvert.dev/netns";
/// By which the kubelet marks the API server's object of a static pod (`k8s.io/kubernetes/pkg/kubelet/types`).
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Longer than any hash that the kubelet makes, which is 32.
const MAX_HASH: usize = 64;
