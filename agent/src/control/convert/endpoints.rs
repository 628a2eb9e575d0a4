//! EndpointSlice to the endpoints of a service.

use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{self, EndpointSlice};

use super::{FieldPath, Invalid, Key, address, is_tcp, port};
use crate::mesh::{Endpoint, EndpointPort, PodName};

/// A part of a service's endpoints.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::control) struct Slice {
    /// The name of the service, in the slice's own namespace.
    pub(in crate::control) service: Arc<str>,
    pub(in crate::control) endpoints: Vec<Endpoint>,
}

/// Converts a slice; `None` where it belongs to no service, or holds names instead of addresses.
pub(super) fn convert(slice: &EndpointSlice, key: &Key) -> Result<Option<Slice>, Invalid> {
    let labels = slice.metadata.labels.as_ref();
    let service = labels.and_then(|labels| labels.get("kubernetes.io/service-name"));
    let Some(service) = service.filter(|_| slice.address_type != "FQDN") else { return Ok(None) };
    let ports = ports(slice)?;
    let mut endpoints = Vec::with_capacity(slice.endpoints.len());
    for (index, entry) in slice.endpoints.iter().enumerate() {
        endpoints.extend(endpoint(entry, index, &ports, key)?);
    }
    Ok(Some(Slice { service: service.as_str().into(), endpoints }))
}

fn endpoint(
    entry: &v1::Endpoint,
    index: usize,
    ports: &Arc<[EndpointPort]>,
    key: &Key,
) -> Result<Option<Endpoint>, Invalid> {
    // No semantics are defined for addresses beyond the first, and kube-proxy does not look at them.
    let Some(text) = entry.addresses.first() else { return Ok(None) };
    let path = || FieldPath::of(&["endpoints"]).index(index).key("addresses").index(0);
    let target = entry.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    let pod = target.and_then(|target| {
        let namespace = target.namespace.as_deref().unwrap_or(&key.namespace).into();
        Some(PodName { namespace, name: target.name.as_deref()?.into() })
    });
    Ok(Some(Endpoint {
        address: address(text, path)?,
        ready: entry.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true),
        node: entry.node_name.as_deref().filter(|node| !node.is_empty()).map(Into::into),
        pod,
        ports: Arc::clone(ports),
    }))
}

fn ports(slice: &EndpointSlice) -> Result<Arc<[EndpointPort]>, Invalid> {
    let mut ports = Vec::new();
    for (index, entry) in slice.ports.iter().flatten().enumerate() {
        if !is_tcp(entry.protocol.as_ref()) {
            continue;
        }
        let path = || FieldPath::of(&["ports"]).index(index).key("port");
        let number = entry.port.map(|number| port(number, path)).transpose()?;
        ports.push(EndpointPort { name: entry.name.as_deref().unwrap_or_default().into(), port: number });
    }
    Ok(ports.into())
}
