//! PeerAuthentication.

use serde_json::Value;

use super::{super::ROOT, Bad, Read, get, has_all, known, map, name, selector, spec, text};
use crate::mesh::{Connection, Workload};

/// The PeerAuthentication that makes the port STRICT, if it is.
pub(super) fn strict(objects: &[Value], pod: &Workload, connection: &Connection<'_>) -> Option<String> {
    let mut peers: Vec<_> = objects.iter().filter(|object| object["kind"] == "PeerAuthentication").collect();
    peers.sort_by_key(|object| {
        let created = object["metadata"]["creationTimestamp"].as_str();
        (created.is_none(), created.map(str::to_owned), name(object))
    });
    let labels = |object: &Value| spec(object).and_then(|spec| selector(&spec)).unwrap_or_default();
    let workload = peers.iter().find(|object| {
        name(object).0 == &*pod.namespace && !labels(object).is_empty() && has_all(pod, &labels(object))
    });
    let whole = |namespace: &str| {
        peers.iter().find(|object| name(object).0 == namespace && labels(object).is_empty())
    };
    let port = connection.destination.port();
    let levels = [
        workload.map(|object| (object, modes(object, Some(port)))),
        workload.map(|object| (object, modes(object, None))),
        whole(&pod.namespace).map(|object| (object, modes(object, None))),
        whole(ROOT).map(|object| (object, modes(object, None))),
    ];
    let (object, mode) = levels.into_iter().flatten().find(|(_, mode)| mode != "UNSET")?;
    let (namespace, name) = name(object);
    (mode == "STRICT").then(|| format!("{namespace}/{name}"))
}

/// The mode of a port, or of the whole.
fn modes(object: &Value, port: Option<u16>) -> String {
    let strict_where_bad = |mode: Read<String>| mode.unwrap_or_else(|_| "STRICT".to_owned());
    strict_where_bad((|| {
        let spec = spec(object)?;
        known(&spec, &["selector", "mtls", "portLevelMtls"])?;
        let labels = selector(&spec)?;
        let whole = get(&spec, "mtls").map_or(Ok("UNSET".to_owned()), mode)?;
        let mut at_port = "UNSET".to_owned();
        if let Some(levels) = get(&spec, "portLevelMtls") {
            for (key, level) in map(levels)? {
                let number = key.parse::<u16>().ok().filter(|port| *port > 0).ok_or(Bad)?;
                let mode = mode(level)?;
                if port == Some(number) {
                    at_port = mode;
                }
            }
            if labels.is_empty() && !map(levels)?.is_empty() {
                return Err(Bad);
            }
        }
        Ok(if port.is_some() { at_port } else { whole })
    })())
}

fn mode(mtls: &Value) -> Read<String> {
    let mtls = map(mtls)?;
    known(mtls, &["mode"])?;
    let mode = get(mtls, "mode").map_or(Ok("UNSET"), text)?;
    let is_known = ["UNSET", "STRICT", "PERMISSIVE", "DISABLE"].contains(&mode);
    if is_known { Ok(mode.to_owned()) } else { Err(Bad) }
}
