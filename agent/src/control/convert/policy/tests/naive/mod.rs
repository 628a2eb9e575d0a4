//! A second reading of docs/policy.md, on the objects as they are written: no index, no model, no haste. What it says is
//! compared with what the real one says about objects and connections at random.

mod modes;
mod rules;

use serde_json::{Map, Value};

use self::{modes::strict, rules::matches};
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
