//! AuthorizationPolicy to the model's.

use serde_json::Value;

use super::{
    super::{Invalid, Key},
    metadata,
    node::Node,
    notice::{Notices, PolicyNotice, Topic},
    rules::RuleReader,
    target,
};
use crate::mesh::{Action, AuthorizationPolicy, PolicyKind, Rule, Rules, Target};

/// Converts a policy; none where it is one that changes no verdict (AUDIT).
pub(in super::super) fn convert(
    object: &Value,
    key: &Key,
) -> (Option<AuthorizationPolicy>, Vec<PolicyNotice>) {
    let mut notices = Notices::of(key);
    metadata::warn_of_strays(object, &mut notices);
    let policy = read(object, key, &mut notices);
    (policy, notices.finish())
}

fn read(object: &Value, key: &Key, notices: &mut Notices<'_>) -> Option<AuthorizationPolicy> {
    let (dry_run, target) = (dry_run(object, notices), target(object, key, notices));
    let said = action_and_rules(object, key, notices);
    let faults = [dry_run.as_ref().err(), target.as_ref().err(), said.as_ref().err()];
    let faults: Vec<Invalid> = faults.into_iter().flatten().cloned().collect();
    let (action, rules) = match said {
        Ok((None, _)) if faults.is_empty() => return None,
        Ok((Some(action), rules)) if faults.is_empty() => (action, Rules::Readable(rules)),
        _ => (likely_action(object), Rules::Unreadable),
    };
    let effect = if action.denies() { "it denies everything" } else { "it permits nothing" };
    notices.errors(faults, effect, target.is_ok());
    Some(AuthorizationPolicy {
        name: metadata::name(PolicyKind::AuthorizationPolicy, key),
        target: target.unwrap_or(Target::All),
        action,
        dry_run: dry_run.unwrap_or(false),
        rules,
    })
}

fn dry_run(object: &Value, notices: &mut Notices<'_>) -> Result<bool, Invalid> {
    let Some(annotation) = metadata::dry_run(object)? else { return Ok(false) };
    if !matches!(annotation, "true" | "false") {
        let message = format!("{annotation:?} is not \"true\": the policy is enforced");
        notices.warn(Topic::DryRunValue, metadata::dry_run_path(), message);
    }
    Ok(annotation == "true")
}

fn target(object: &Value, key: &Key, notices: &mut Notices<'_>) -> Result<Target, Invalid> {
    match metadata::spec(object)? {
        Some(spec) => target::read(&spec, &key.namespace, notices),
        None => Ok(Target::All),
    }
}

/// The action is none where it is AUDIT.
fn action_and_rules(
    object: &Value,
    key: &Key,
    notices: &mut Notices<'_>,
) -> Result<(Option<Action>, Vec<Rule>), Invalid> {
    let Some(spec) = metadata::spec(object)? else { return Ok((Some(Action::Allow), Vec::new())) };
    spec.only(&["selector", "targetRef", "targetRefs", "rules", "action", "provider"])?;
    if let Some(provider) = spec.field("provider")? {
        provider.only(&["name"])?;
        provider.field("name")?.map(|name| name.text()).transpose()?;
    }
    let action = action(&spec, notices)?;
    let mut reader =
        RuleReader { namespace: &key.namespace, action: action.unwrap_or(Action::Allow), notices };
    Ok((action, reader.read(&spec)?))
}

fn action(spec: &Node<'_>, notices: &mut Notices<'_>) -> Result<Option<Action>, Invalid> {
    let Some(action) = spec.field("action")? else { return Ok(Some(Action::Allow)) };
    match action.text()? {
        "ALLOW" => Ok(Some(Action::Allow)),
        "DENY" => Ok(Some(Action::Deny)),
        "CUSTOM" => {
            let message = "there is no authorizer to ask yet: the policy counts as DENY with the same rules";
            notices.warn(Topic::Custom, action.path, message);
            Ok(Some(Action::Custom))
        }
        "AUDIT" => {
            notices.warn(Topic::Audit, action.path, "AUDIT changes no verdict: the policy is ignored");
            Ok(None)
        }
        other => Err(action.path.invalid(format!("{other:?} is none of ALLOW, DENY, CUSTOM and AUDIT"))),
    }
}

/// What a policy that could not be read is to be taken for.
fn likely_action(object: &Value) -> Action {
    match object.pointer("/spec/action").and_then(Value::as_str) {
        Some("DENY") => Action::Deny,
        Some("CUSTOM") => Action::Custom,
        _ => Action::Allow,
    }
}
