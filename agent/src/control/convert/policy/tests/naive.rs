//! A second reading of docs/policy.md, on the objects as they are written: no index, no model, no haste. What it says is
//! compared with what the real one says about objects and connections at random.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::ROOT;
use crate::mesh::{Connection, Service, Workload};

/// A value that spoils its object.
struct Bad;

type Read<T> = Result<T, Bad>;

/// One AuthorizationPolicy that applies.
struct Applied {
    name: String,
    denies: bool,
    dry_run: bool,
    matches: bool,
}

/// The verdict as [`super::short`] writes it, and that with the dry-run policies where one applies.
pub(super) fn decide(
    objects: &[Value],
    services: &[&Service],
    pod: &Workload,
    connection: &Connection<'_>,
) -> (String, Option<String>) {
    let mut applied: Vec<_> =
        objects.iter().filter_map(|object| apply(object, services, pod, connection)).collect();
    applied.sort_by(|one, other| one.name.split('/').cmp(other.name.split('/')));
    let strict = connection.identity.is_none().then(|| strict(objects, pod, connection)).flatten();
    let verdict = |with_dry_run: bool| {
        if let Some(policy) = &strict {
            return format!("deny {policy}");
        }
        let counting =
            |denies| applied.iter().filter(move |it| it.denies == denies && (with_dry_run || !it.dry_run));
        if let Some(policy) = counting(true).find(|it| it.matches) {
            return format!("deny {}", policy.name);
        }
        if counting(false).next().is_none() {
            return "allow -".to_owned();
        }
        match counting(false).find(|it| it.matches) {
            Some(policy) => format!("allow {}", policy.name),
            None => {
                let tried: Vec<_> = counting(false).map(|it| it.name.as_str()).collect();
                format!("deny none of {}", tried.join(" "))
            }
        }
    };
    let has_dry_run = applied.iter().any(|it| it.dry_run);
    (verdict(false), has_dry_run.then(|| verdict(true)))
}

fn name(object: &Value) -> (&str, &str) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap();
    (text("namespace"), text("name"))
}

/// None where the field is absent, or null.
fn get<'a>(object: &'a Map<String, Value>, field: &str) -> Option<&'a Value> {
    object.get(field).filter(|value| !value.is_null())
}

fn map(value: &Value) -> Read<&Map<String, Value>> {
    value.as_object().ok_or(Bad)
}

fn known(object: &Map<String, Value>, fields: &[&str]) -> Read<()> {
    if object.keys().all(|key| fields.contains(&key.as_str())) { Ok(()) } else { Err(Bad) }
}

fn list<'a>(object: &'a Map<String, Value>, field: &str) -> Read<&'a [Value]> {
    match get(object, field) {
        None => Ok(&[]),
        Some(value) => value.as_array().map(Vec::as_slice).ok_or(Bad),
    }
}

fn text(value: &Value) -> Read<&str> {
    value.as_str().ok_or(Bad)
}

fn spec(object: &Value) -> Read<Map<String, Value>> {
    match get(map(object)?, "spec") {
        None => Ok(Map::new()),
        Some(spec) => map(spec).cloned(),
    }
}

/// The labels that a selector wants; none where there is none, or it is empty.
fn selector(spec: &Map<String, Value>) -> Read<Vec<(String, String)>> {
    let Some(selector) = get(spec, "selector") else { return Ok(Vec::new()) };
    let selector = map(selector)?;
    known(selector, &["matchLabels"])?;
    let Some(labels) = get(selector, "matchLabels") else { return Ok(Vec::new()) };
    map(labels)?.iter().map(|(key, value)| Ok((key.clone(), text(value)?.to_owned()))).collect()
}

fn has_all(pod: &Workload, labels: &[(String, String)]) -> bool {
    labels.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
}

fn selects(object: &Value, services: &[&Service], pod: &Workload) -> Read<bool> {
    let (namespace, _) = name(object);
    let spec = spec(object)?;
    let labels = selector(&spec)?;
    let references = list(&spec, "targetRefs")?;
    if references.is_empty() {
        return Ok((namespace == ROOT || namespace == &*pod.namespace) && has_all(pod, &labels));
    }
    if get(&spec, "selector").is_some() {
        return Err(Bad);
    }
    let mut selects = false;
    for reference in references {
        let reference = map(reference)?;
        known(reference, &["group", "kind", "name", "namespace"])?;
        let (kind, wanted) = (text(&reference["kind"])?, text(&reference["name"])?);
        let behind = |service: &&&Service| {
            &*service.namespace == namespace
                && &*service.name == wanted
                && match service.selector.is_empty() {
                    false => service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value)),
                    true => service.endpoints.iter().any(|end| pod.addresses.contains(&end.address)),
                }
        };
        selects |= kind == "Service" && &*pod.namespace == namespace && services.iter().any(|it| behind(&it));
    }
    Ok(selects)
}

fn apply(
    object: &Value,
    services: &[&Service],
    pod: &Workload,
    connection: &Connection<'_>,
) -> Option<Applied> {
    if object["kind"] != "AuthorizationPolicy" {
        return None;
    }
    let (namespace, own) = name(object);
    let action = object["spec"]["action"].as_str().map(str::to_owned);
    let mut denies = matches!(action.as_deref(), Some("DENY" | "CUSTOM"));
    let selected = selects(object, services, pod);
    let matched = match selected {
        Ok(_) => matches(object, denies, connection),
        Err(Bad) => Err(Bad),
    };
    if matched.is_ok() && action.as_deref() == Some("AUDIT") {
        return None;
    }
    if matched.is_err() && action.as_deref() == Some("AUDIT") {
        denies = false;
    }
    let applies = selected.unwrap_or(namespace == ROOT || namespace == &*pod.namespace);
    applies.then(|| Applied {
        name: format!("{namespace}/{own}"),
        denies,
        dry_run: object["metadata"]["annotations"]["istio.io/dry-run"] == "true",
        matches: matched.unwrap_or(denies),
    })
}

fn matches(object: &Value, denies: bool, connection: &Connection<'_>) -> Read<bool> {
    let spec = spec(object)?;
    known(&spec, &["selector", "targetRefs", "rules", "action"])?;
    if let Some(action) = get(&spec, "action") {
        if !["ALLOW", "DENY", "AUDIT", "CUSTOM"].contains(&text(action)?) {
            return Err(Bad);
        }
    }
    let (namespace, _) = name(object);
    let mut any = false;
    for rule in list(&spec, "rules")? {
        let mut eye = Eye { namespace, connection, denies, was_blind: false };
        let matches = eye.rule(map(rule)?)?;
        any |= matches && (denies || !eye.was_blind);
    }
    Ok(any)
}

/// What looks at a rule.
struct Eye<'a> {
    namespace: &'a str,
    connection: &'a Connection<'a>,
    denies: bool,
    was_blind: bool,
}

impl Eye<'_> {
    fn rule(&mut self, rule: &Map<String, Value>) -> Read<bool> {
        known(rule, &["from", "to", "when"])?;
        let from = self.clause(list(rule, "from")?, "source")?;
        let to = self.clause(list(rule, "to")?, "operation")?;
        let mut when = true;
        for condition in list(rule, "when")? {
            when &= self.condition(map(condition)?)?;
        }
        Ok(from && to && when)
    }

    fn clause(&mut self, entries: &[Value], object: &str) -> Read<bool> {
        let mut any = entries.is_empty();
        for entry in entries {
            let entry = map(entry)?;
            known(entry, &[object])?;
            if let Some(fields) = get(entry, object) {
                any |= self.entry(map(fields)?, object)?;
            }
        }
        Ok(any)
    }

    fn entry(&mut self, fields: &Map<String, Value>, object: &str) -> Read<bool> {
        let is_there = |value: &Value| !value.is_null() && value.as_array().is_none_or(|it| !it.is_empty());
        let fields: Vec<_> = fields.iter().filter(|(_, value)| is_there(value)).collect();
        let names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
        let has = |wanted: &[&str]| wanted.iter().any(|name| names.contains(name));
        if has(&["serviceAccounts", "notServiceAccounts"])
            && has(&["principals", "notPrincipals", "namespaces", "notNamespaces"])
        {
            return Err(Bad);
        }
        let mut all = !fields.is_empty();
        for (name, values) in fields {
            all &= match (object, name.as_str()) {
                ("source", "principals") => self.any("principal", values)?,
                ("source", "notPrincipals") => !self.any("principal", values)?,
                ("source", "namespaces") => self.any("namespace", values)?,
                ("source", "notNamespaces") => !self.any("namespace", values)?,
                ("source", "serviceAccounts") => self.any("account", values)?,
                ("source", "notServiceAccounts") => !self.any("account", values)?,
                ("source", "trustDomains") => self.any("domain", values)?,
                ("source", "notTrustDomains") => !self.any("domain", values)?,
                ("source", "ipBlocks") => self.any("source", values)?,
                ("source", "notIpBlocks") => !self.any("source", values)?,
                ("operation", "ports") => self.any("port", values)?,
                ("operation", "notPorts") => !self.any("port", values)?,
                ("operation", "methods") => {
                    self.any("methods", values)?;
                    self.blind()
                }
                _ => self.blind(),
            };
        }
        Ok(all)
    }

    fn condition(&mut self, condition: &Map<String, Value>) -> Read<bool> {
        known(condition, &["key", "values", "notValues"])?;
        let attribute = match text(get(condition, "key").ok_or(Bad)?)? {
            "" => return Err(Bad),
            "source.principal" => "principal",
            "source.namespace" => "namespace",
            "source.serviceAccount" => "account",
            "source.trustDomain" => "domain",
            "source.ip" => "source",
            "destination.ip" => "destination",
            "destination.port" => "port",
            _ => "methods",
        };
        let (values, not_values) = (list(condition, "values")?, list(condition, "notValues")?);
        if values.is_empty() && not_values.is_empty() {
            return Err(Bad);
        }
        let holds = values.is_empty() || self.any(attribute, &Value::from(values.to_vec()))?;
        let not_holds = not_values.is_empty() || !self.any(attribute, &Value::from(not_values.to_vec()))?;
        Ok(if attribute == "methods" { self.blind() } else { holds && not_holds })
    }

    fn blind(&mut self) -> bool {
        self.was_blind = true;
        self.denies
    }

    fn any(&self, attribute: &str, values: &Value) -> Read<bool> {
        let mut any = false;
        for value in values.as_array().ok_or(Bad)? {
            let value = text(value)?;
            if value.is_empty() {
                return Err(Bad);
            }
            any |= self.one(attribute, value)?;
        }
        Ok(any)
    }

    fn one(&self, attribute: &str, value: &str) -> Read<bool> {
        let of = |part: &dyn Fn(&crate::mesh::Identity) -> String| self.connection.identity.map(part);
        match attribute {
            "principal" => {
                let value = value.strip_prefix("spiffe://").unwrap_or(value);
                let principal = |it: &crate::mesh::Identity| it.to_string()["spiffe://".len()..].to_owned();
                wildcard(value, of(&principal).as_deref())
            }
            "namespace" => wildcard(value, of(&|it| it.namespace().to_owned()).as_deref()),
            "domain" => wildcard(value, of(&|it| it.trust_domain().to_string()).as_deref()),
            "account" => {
                let parts: Vec<_> = value.split('/').collect();
                if value.contains('*') || parts.len() > 2 || parts.contains(&"") {
                    return Err(Bad);
                }
                let value =
                    if parts.len() == 1 { format!("{}/{value}", self.namespace) } else { value.into() };
                let account =
                    |it: &crate::mesh::Identity| format!("{}/{}", it.namespace(), it.service_account());
                Ok(of(&account).as_ref() == Some(&value))
            }
            "source" => block(value, self.connection.source),
            "destination" => block(value, self.connection.destination.ip()),
            "port" => match value.parse::<u16>() {
                Ok(port) if port > 0 => Ok(port == self.connection.destination.port()),
                _ => Err(Bad),
            },
            _ => Ok(true),
        }
    }
}

fn wildcard(value: &str, text: Option<&str>) -> Read<bool> {
    let stars = value.matches('*').count();
    if value.is_empty() || stars > 1 || (stars == 1 && !value.starts_with('*') && !value.ends_with('*')) {
        return Err(Bad);
    }
    let Some(text) = text else { return Ok(false) };
    Ok(match (value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(""), _) => !text.is_empty(),
        (Some(end), _) => text.ends_with(end),
        (None, Some(start)) => text.starts_with(start),
        (None, None) => text == value,
    })
}

fn block(value: &str, address: IpAddr) -> Read<bool> {
    let net = match value.contains('/') {
        true => value.parse::<IpNet>().map_err(|_| Bad)?,
        false => IpNet::from(value.parse::<IpAddr>().map_err(|_| Bad)?),
    };
    let as_v6 = |address: IpAddr| match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    };
    let is_v4 = |address: IpAddr| address.to_canonical().is_ipv4();
    let length = match net {
        IpNet::V4(net) => u32::from(net.prefix_len()) + 96,
        IpNet::V6(net) => u32::from(net.prefix_len()),
    };
    // Bit by bit, in one family; a block that is wider than all of IPv4 holds no IPv4 address.
    let same = (0..length).all(|bit| (as_v6(net.addr()) ^ as_v6(address)) >> (127 - bit) & 1 == 0);
    Ok(same && (length >= 96 || !is_v4(address)))
}

/// The PeerAuthentication that makes the port STRICT, if it is.
fn strict(objects: &[Value], pod: &Workload, connection: &Connection<'_>) -> Option<String> {
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
