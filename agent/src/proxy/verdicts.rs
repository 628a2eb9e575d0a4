//! Counts what each policy decides, enforced or on trial.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::mesh::{Decision, Denial, Permit, PolicyName};

/// The verdicts by policy. Bounded: where a node meets more policies than [`MAX_POLICIES`], the one that has decided
/// nothing for longest makes room, and so do those that are deleted.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    counts: Family<Labels, Counter>,
    /// When each policy last decided.
    used: Mutex<HashMap<PolicyName, Instant>>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Labels {
    policy: String,
    kind: &'static str,
    verdict: &'static str,
    mode: &'static str,
}

/// Policies of one node's pods that are counted, four series each.
const MAX_POLICIES: usize = 1000;

const ENFORCED: &str = "enforced";
const DRY_RUN: &str = "dry_run";
const ALLOW: &str = "allow";
const DENY: &str = "deny";

impl Verdicts {
    /// Registers them.
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "policy_verdicts",
            "Connections to pods of this node by the policy that decided (`none`: no policy applies, or no allow policy \
             matched) and its verdict; mode `dry_run` is what the verdict would be with the policies on trial",
            self.counts.clone(),
        );
    }

    /// Counts one decision.
    pub(super) fn count(&self, decision: &Decision) {
        self.count_one(decider(&decision.verdict), word(&decision.verdict), ENFORCED);
        if let Some(dry_run) = &decision.dry_run {
            self.count_one(decider(&dry_run.verdict), word(&dry_run.verdict), DRY_RUN);
        }
    }

    /// Counts the denial of what was permitted before.
    pub(super) fn count_denial(&self, denial: &Denial) {
        self.count_one(denial.policy(), DENY, ENFORCED);
    }

    fn count_one(&self, policy: Option<&PolicyName>, verdict: &'static str, mode: &'static str) {
        if let Some(policy) = policy {
            self.make_room(policy);
        }
        self.counts.get_or_create(&Labels::new(policy, verdict, mode)).inc();
    }

    fn make_room(&self, policy: &PolicyName) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = used.get_mut(policy) {
            *at = Instant::now();
            return;
        }
        if used.len() >= MAX_POLICIES
            && let Some(idle) = used.iter().min_by_key(|(_, at)| **at).map(|(policy, _)| policy.clone())
        {
            used.remove(&idle);
            for (verdict, mode) in [(ALLOW, ENFORCED), (DENY, ENFORCED), (ALLOW, DRY_RUN), (DENY, DRY_RUN)] {
                self.counts.remove(&Labels::new(Some(&idle), verdict, mode));
            }
        }
        used.insert(policy.clone(), Instant::now());
    }
}

impl Labels {
    fn new(policy: Option<&PolicyName>, verdict: &'static str, mode: &'static str) -> Self {
        // A policy's name has a slash.
        let (policy, kind) =
            policy.map_or(("none".to_owned(), ""), |policy| (policy.to_string(), policy.kind.as_str()));
        Self { policy, kind, verdict, mode }
    }
}

/// Returns the policy that decided, where one did.
pub(super) fn decider(verdict: &Result<Permit, Denial>) -> Option<&PolicyName> {
    match verdict {
        Ok(permit) => permit.policy(),
        Err(denial) => denial.policy(),
    }
}

fn word(verdict: &Result<Permit, Denial>) -> &'static str {
    if verdict.is_ok() { ALLOW } else { DENY }
}

/// Returns a verdict in a word, with the policy that decided: `deny shop/lockdown`.
pub(super) fn summary(verdict: &Result<Permit, Denial>) -> String {
    let word = word(verdict);
    match (verdict, decider(verdict)) {
        (_, Some(policy)) => format!("{word} {policy}"),
        (Err(denial), None) => format!("{word}: {denial}"),
        (Ok(_), None) => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::PolicyKind;

    fn denied_by(name: &str) -> Decision {
        let policy =
            PolicyName { kind: PolicyKind::AuthorizationPolicy, namespace: "shop".into(), name: name.into() };
        Decision { verdict: Err(Denial::Denied { policy, rule: Some(0) }), dry_run: None }
    }

    fn counted(verdicts: &Verdicts, name: &str) -> u64 {
        let Decision { verdict, .. } = denied_by(name);
        let labels = Labels::new(decider(&verdict), DENY, ENFORCED);
        verdicts.counts.get(&labels).map_or(0, |counter| counter.get())
    }

    #[test]
    fn the_policy_that_has_been_idle_for_longest_makes_room() {
        let verdicts = Verdicts::default();
        for number in 0..MAX_POLICIES {
            verdicts.count(&denied_by(&format!("p{number}")));
        }
        verdicts.count(&denied_by("p0"));
        verdicts.count(&denied_by("new"));
        assert_eq!(counted(&verdicts, "p0"), 2);
        assert_eq!(counted(&verdicts, "new"), 1);
        assert_eq!(counted(&verdicts, "p1"), 0);
        assert_eq!(verdicts.used.lock().unwrap().len(), MAX_POLICIES);
    }
}
