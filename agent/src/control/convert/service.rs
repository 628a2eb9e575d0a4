//! Service to the mesh's Service, without its endpoints.

use std::net::IpAddr;

use k8s_openapi::{
    api::core::v1::{self, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{FieldPath, Invalid, Key, address, is_tcp, port};
use crate::mesh::{Affinity, Distribution, Service, ServicePort, TargetPort};

/// Converts a service; `None` for an ExternalName, which is a name and no address.
pub(super) fn convert(service: &v1::Service, key: &Key) -> Result<Option<Service>, Invalid> {
    let no_spec = ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&no_spec);
    if spec.type_.as_deref() == Some("ExternalName") {
        return Ok(None);
    }
    let (addresses, external_addresses) =
        if is_headless(spec) { Default::default() } else { (cluster(spec)?, external(service, spec)?) };
    Ok(Some(Service {
        namespace: key.namespace.as_str().into(),
        name: key.name.as_str().into(),
        addresses,
        external_addresses,
        ports: ports(spec)?,
        selector: spec.selector.clone().unwrap_or_default(),
        endpoints: Vec::new(),
        affinity: match spec.session_affinity.as_deref() {
            Some("ClientIP") => Affinity::ClientIp,
            _ => Affinity::None,
        },
        distribution: match spec.traffic_distribution.as_deref() {
            Some("PreferClose" | "PreferSameZone") => Distribution::PreferSameZone,
            Some("PreferSameNode") => Distribution::PreferSameNode,
            _ => Distribution::Any,
        },
        local_only: spec.internal_traffic_policy.as_deref() == Some("Local"),
        publish_not_ready: spec.publish_not_ready_addresses == Some(true),
    }))
}

fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
        || spec.cluster_ips.iter().flatten().any(|address| address == "None")
}

fn cluster(spec: &ServiceSpec) -> Result<Vec<IpAddr>, Invalid> {
    let mut addresses = Vec::new();
    let path = || FieldPath::of(&["spec", "clusterIP"]);
    push(&mut addresses, spec.cluster_ip.as_deref(), path)?;
    for (index, text) in spec.cluster_ips.iter().flatten().enumerate() {
        push(&mut addresses, Some(text), || FieldPath::of(&["spec", "clusterIPs"]).index(index))?;
    }
    Ok(addresses)
}

fn external(service: &v1::Service, spec: &ServiceSpec) -> Result<Vec<IpAddr>, Invalid> {
    let mut addresses = Vec::new();
    for (index, text) in spec.external_ips.iter().flatten().enumerate() {
        push(&mut addresses, Some(text), || FieldPath::of(&["spec", "externalIPs"]).index(index))?;
    }
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref());
    for (index, ingress) in ingress.into_iter().flatten().enumerate() {
        // `Proxy`: the balancer does more than forward, so nobody is to go round it.
        if ingress.ip_mode.as_deref() == Some("Proxy") {
            continue;
        }
        let path = || FieldPath::of(&["status", "loadBalancer", "ingress"]).index(index).key("ip");
        push(&mut addresses, ingress.ip.as_deref(), path)?;
    }
    Ok(addresses)
}

fn push(
    addresses: &mut Vec<IpAddr>,
    text: Option<&str>,
    path: impl FnOnce() -> FieldPath,
) -> Result<(), Invalid> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(()) };
    let address = address(text, path)?;
    if !addresses.contains(&address) {
        addresses.push(address);
    }
    Ok(())
}

fn ports(spec: &ServiceSpec) -> Result<Vec<ServicePort>, Invalid> {
    let mut ports = Vec::new();
    for (index, entry) in spec.ports.iter().flatten().enumerate() {
        if !is_tcp(entry.protocol.as_ref()) {
            continue;
        }
        let path = || FieldPath::of(&["spec", "ports"]).index(index);
        let number = port(entry.port, || path().key("port"))?;
        let target = match &entry.target_port {
            None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
            Some(IntOrString::Int(target)) => TargetPort::Number(port(*target, || path().key("targetPort"))?),
            Some(IntOrString::String(name)) => TargetPort::Name(name.as_str().into()),
        };
        ports.push(ServicePort {
            name: entry.name.as_deref().unwrap_or_default().into(),
            port: number,
            target,
        });
    }
    Ok(ports)
}
