//! Whom a policy is for: `selector`, `targetRefs`, and nothing for the whole namespace.

use std::sync::Arc;

use super::{
    super::Invalid,
    node::Node,
    notice::{Notices, Topic},
};
use crate::mesh::{Labels, Target};

/// Reads whom an AuthorizationPolicy of `namespace` is for.
pub(super) fn read(spec: &Node<'_>, namespace: &str, notices: &mut Notices<'_>) -> Result<Target, Invalid> {
    let (one, several) = (spec.field("targetRef")?, spec.field("targetRefs")?);
    let several = several.filter(|several| !several.is_empty_list());
    if let (Some(one), Some(_)) = (&one, &several) {
        return Err(one
            .path
            .clone()
            .invalid("targetRef and targetRefs stand beside each other: only one may"));
    }
    let labels = selector(spec)?;
    let (path, references) = match (one, several) {
        (Some(one), _) => (one.path.clone(), vec![one]),
        (None, Some(several)) => (several.path.clone(), several.elements()?.collect()),
        (None, None) => return Ok(labels.map_or(Target::All, Target::Labels)),
    };
    if labels.is_some() {
        return Err(path.invalid("stands beside a selector: only one of the two may"));
    }
    let mut services = Vec::new();
    for reference in references {
        services.extend(service(&reference, namespace, notices)?);
    }
    Ok(Target::Services(services))
}

/// Reads `selector.matchLabels`; none where it wants no label.
pub(super) fn selector(spec: &Node<'_>) -> Result<Option<Labels>, Invalid> {
    let Some(selector) = spec.field("selector")? else { return Ok(None) };
    selector.only(&["matchLabels"])?;
    let Some(wanted) = selector.field("matchLabels")? else { return Ok(None) };
    let mut labels = Labels::new();
    for (key, value) in wanted.map()? {
        let path = || wanted.path.clone().key(key.clone());
        let Some(value) = value.as_str() else {
            return Err(path().invalid("the value of a label must be a string: put it in quotes"));
        };
        if key.is_empty() || key.contains('*') || value.contains('*') {
            return Err(path().invalid("no label is called that, or has that value: stars mean nothing here"));
        }
        labels.insert(key.clone(), value.to_owned());
    }
    Ok(Some(labels).filter(|labels| !labels.is_empty()))
}

/// Reads an element of `targetRefs`; none where it selects nothing.
fn service(
    reference: &Node<'_>,
    namespace: &str,
    notices: &mut Notices<'_>,
) -> Result<Option<Arc<str>>, Invalid> {
    reference.only(&["group", "kind", "name", "namespace"])?;
    let text =
        |name| Ok::<_, Invalid>(reference.field(name)?.map(|field| field.text()).transpose()?.unwrap_or(""));
    let (group, kind, name, own) = (text("group")?, text("kind")?, text("name")?, text("namespace")?);
    for (field, value) in [("kind", kind), ("name", name)] {
        if value.is_empty() {
            return Err(reference.path.clone().key(field).invalid("is needed"));
        }
    }
    // In a line of the log; an object's name may be anything here.
    let shown = name.escape_debug();
    let is_service = matches!((group, kind), ("" | "core", "Service"));
    if !is_service || !(own.is_empty() || own == namespace) {
        let message = format!(
            "{} {shown} is no Service of the policy's namespace: it selects nothing",
            kind.escape_debug()
        );
        notices.warn(Topic::TargetRefs, reference.path.clone(), message);
        return Ok(None);
    }
    let message = format!("there are no waypoints: it selects the pods behind the Service {shown}");
    notices.warn(Topic::TargetRefs, reference.path.clone(), message);
    Ok(Some(name.into()))
}
