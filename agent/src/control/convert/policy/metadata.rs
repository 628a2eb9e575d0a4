//! What stands around a policy's `spec`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;

use super::{
    super::{FieldPath, Invalid, Key},
    node::Node,
    notice::{Notices, Topic},
};
use crate::mesh::{PolicyKind, PolicyName};

pub(super) fn name(kind: PolicyKind, key: &Key) -> PolicyName {
    PolicyName { kind, namespace: key.namespace.as_str().into(), name: key.name.as_str().into() }
}

/// Returns `spec`, where it is there.
pub(super) fn spec(object: &Value) -> Result<Option<Node<'_>>, Invalid> {
    Node::root(object).field("spec")
}

/// Returns the value of the annotation that makes an AuthorizationPolicy a dry run.
pub(super) fn dry_run(object: &Value) -> Result<Option<&str>, Invalid> {
    let Some(metadata) = Node::root(object).field("metadata")? else { return Ok(None) };
    let Some(annotations) = metadata.field("annotations")? else { return Ok(None) };
    annotations.field(DRY_RUN)?.map(|annotation| annotation.text()).transpose()
}

/// Returns the path of that annotation.
pub(super) fn dry_run_path() -> FieldPath {
    FieldPath::of(&["metadata", "annotations", DRY_RUN])
}

/// Returns when the object was created, in nanoseconds since 1970.
pub(super) fn created(object: &Value) -> Result<Option<i128>, Invalid> {
    let Some(metadata) = Node::root(object).field("metadata")? else { return Ok(None) };
    let Some(created) = metadata.field("creationTimestamp")? else { return Ok(None) };
    match serde_json::from_value::<Time>(created.value().clone()) {
        Ok(Time(time)) => Ok(Some(time.as_nanosecond())),
        Err(error) => Err(created.path.invalid(format!("is not a time: {error}"))),
    }
}

/// Warns of fields beside `spec` that no object has: they were meant to stand in it.
pub(super) fn warn_of_strays(object: &Value, notices: &mut Notices<'_>) {
    let known = |name: &str| matches!(name, "apiVersion" | "kind" | "metadata" | "spec" | "status");
    for name in object.as_object().into_iter().flat_map(|object| object.keys()).filter(|name| !known(name)) {
        let path = FieldPath::default().key(name.clone());
        notices.warn(Topic::StrayField, path, "stands outside of spec, and means nothing there");
    }
}

const DRY_RUN: &str = "istio.io/dry-run";
