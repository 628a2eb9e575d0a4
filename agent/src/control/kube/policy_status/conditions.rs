//! The conditions of a policy (`metav1.Condition`).

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::Policy;

/// Whether a policy is for any pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Selection {
    None,
    Some,
}

/// A condition without its times.
struct Condition {
    name: &'static str,
    status: bool,
    reason: &'static str,
    message: String,
}

/// Returns the conditions that a policy ought to have, others' among them; none where it has them.
pub(super) fn conditions(policy: &Policy, selection: Selection) -> Option<Vec<Value>> {
    let ours = [accepted(policy), as_written(policy), in_effect(selection)];
    let is_ours = |known: &Value| ours.iter().any(|ours| known["type"] == ours.name);
    let known = |ours: &Condition| policy.conditions.iter().find(|known| known["type"] == ours.name);
    if ours.iter().all(|ours| known(ours).is_some_and(|known| ours.is(known, policy.generation))) {
        return None;
    }
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let others = policy.conditions.iter().filter(|known| !is_ours(known)).cloned();
    let ours = ours.iter().map(|ours| ours.value(known(ours), policy.generation, &now));
    Some(others.chain(ours).collect())
}

fn accepted(policy: &Policy) -> Condition {
    let (status, reason, message) = match policy.errors.as_slice() {
        [] => (true, "Readable", "The policy could be read.".to_owned()),
        errors => (false, "Unreadable", join(errors)),
    };
    Condition { name: "culvert.dev/Accepted", status, reason, message }
}

fn as_written(policy: &Policy) -> Condition {
    let (status, reason, message) = match policy.warnings.as_slice() {
        [] => (true, "NoWarnings", "Everything that it says is enforced as it is written.".to_owned()),
        warnings => (false, "Warnings", join(warnings)),
    };
    Condition { name: "culvert.dev/AsWritten", status, reason, message }
}

fn in_effect(selection: Selection) -> Condition {
    let (status, reason, message) = match selection {
        Selection::Some => (true, "SelectsPods", "It is for at least one pod."),
        Selection::None => (
            false,
            "SelectsNothing",
            "It is for no pod: there is none that it selects, it has no effect of its own, or an older one counts in its place.",
        ),
    };
    Condition { name: "culvert.dev/InEffect", status, reason, message: message.to_owned() }
}

impl Condition {
    fn status(&self) -> &'static str {
        if self.status { "True" } else { "False" }
    }

    fn is(&self, known: &Value, generation: i64) -> bool {
        known["status"] == self.status()
            && known["reason"] == self.reason
            && known["message"] == self.message
            && known["observedGeneration"] == generation
    }

    fn value(&self, known: Option<&Value>, generation: i64, now: &str) -> Value {
        let same = known.filter(|known| known["status"] == self.status());
        let since = same.and_then(|known| known["lastTransitionTime"].as_str()).unwrap_or(now);
        json!({
            "type": self.name,
            "status": self.status(),
            "reason": self.reason,
            "message": self.message,
            "observedGeneration": generation,
            "lastTransitionTime": since,
        })
    }
}

fn join(lines: &[String]) -> String {
    lines.join("\n").chars().take(MESSAGE).collect()
}

/// Far below what a condition's message may be (32,768).
const MESSAGE: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Object, Record, Settings, kube::policies::Policies};

    fn policy(spec: &Value, status: &Value) -> Policy {
        let object = json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "a", "namespace": "shop", "generation": 3, "resourceVersion": "7"},
            "spec": spec, "status": status});
        let settings = Settings {
            trust_domain: "cluster.local".parse().unwrap(),
            root_namespace: "culvert-system".to_owned(),
            readiness: crate::control::Readiness::Annotation,
        };
        let object = Object::AuthorizationPolicy(Box::new(object));
        let record = Record::new(&object, &settings).unwrap();
        let policies = Policies::new(settings.trust_domain);
        policies.note(record.key(), &object, Some(&record));
        policies.all().into_values().next().unwrap()
    }

    /// Each condition as `type status reason`.
    fn show(conditions: &[Value]) -> Vec<String> {
        let text = |condition: &Value, field: &str| condition[field].as_str().unwrap_or("-").to_owned();
        let show = |condition| ["type", "status", "reason"].map(|field| text(condition, field)).join(" ");
        conditions.iter().map(show).collect()
    }

    #[test]
    fn conditions_say_what_is_wrong_with_a_policy() {
        let fine = policy(&json!({"rules": [{}]}), &Value::Null);
        assert_eq!(
            show(&conditions(&fine, Selection::Some).unwrap()),
            [
                "culvert.dev/Accepted True Readable",
                "culvert.dev/AsWritten True NoWarnings",
                "culvert.dev/InEffect True SelectsPods"
            ]
        );
        let broken = policy(&json!({"rules": 5}), &Value::Null);
        let broken = conditions(&broken, Selection::None).unwrap();
        assert_eq!(show(&broken)[0], "culvert.dev/Accepted False Unreadable");
        assert!(
            broken[0]["message"].as_str().unwrap().starts_with("spec.rules: must be a list"),
            "{broken:?}"
        );
        assert_eq!(show(&broken)[2], "culvert.dev/InEffect False SelectsNothing");
        // What the linter says of it by itself.
        let foreign = json!({"rules": [{"from": [{"source": {"principals": ["elsewhere/ns/shop/sa/front"]}}]}, {}, {}]});
        let foreign = conditions(&policy(&foreign, &Value::Null), Selection::Some).unwrap();
        assert_eq!(show(&foreign)[1], "culvert.dev/AsWritten False Warnings");
        let message = foreign[1]["message"].as_str().unwrap();
        for part in ["its trust domain is cluster.local", "spec.rules[2]: rules[1] says the same"] {
            assert!(message.contains(part), "{part} is not in {message}");
        }
        let unseen = policy(&json!({"rules": [{"to": [{"operation": {"paths": ["/x"]}}]}]}), &Value::Null);
        assert_eq!(
            show(&conditions(&unseen, Selection::Some).unwrap())[1],
            "culvert.dev/AsWritten False Warnings"
        );
    }

    #[test]
    fn nothing_is_written_where_nothing_changed_and_others_conditions_stay() {
        let spec = json!({"rules": [{}]});
        let first = conditions(&policy(&spec, &Value::Null), Selection::Some).unwrap();
        let others = json!({"type": "Reconciled", "status": "True", "observedGeneration": 1});
        let mut status = json!({"conditions": first});
        status["conditions"].as_array_mut().unwrap().insert(0, others);
        assert_eq!(conditions(&policy(&spec, &status), Selection::Some), None);
        let second = conditions(&policy(&spec, &status), Selection::None).unwrap();
        assert_eq!(show(&second)[0], "Reconciled True -");
        assert_eq!(second[1], first[0], "what did not change keeps its time");
        status["conditions"][1]["observedGeneration"] = 2.into();
        assert!(conditions(&policy(&spec, &status), Selection::Some).is_some(), "of an older generation");
    }
}
