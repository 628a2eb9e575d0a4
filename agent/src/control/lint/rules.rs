//! Rules that do nothing: that nothing matches, that another says already, or that another undoes.

use super::{super::FieldPath, Code, Findings, World, spec};
use crate::mesh::{Action, AuthorizationPolicy, Rule, Rules};

pub(super) fn check(world: &World<'_>, findings: &mut Findings<'_>) {
    let policies = world.snapshot.policies().authorization();
    for policy in policies.iter().filter(|policy| policy.rules != Rules::Unreadable) {
        if policy.action.denies() && policy.rules().is_empty() {
            let message = "it has no rules, and so denies nothing";
            findings.policy(Code::NeverMatches, &policy.name, &spec(), message);
        }
        for (at, rule) in policy.rules().iter().enumerate() {
            let place = Place { world, policy, at, rule };
            if let Some((code, message)) = place.judge(policies.iter().map(|other| &**other)) {
                findings.policy(code, &policy.name, &place.path(), message);
            }
        }
    }
}

/// A rule, and where it stands.
struct Place<'a> {
    world: &'a World<'a>,
    policy: &'a AuthorizationPolicy,
    at: usize,
    rule: &'a Rule,
}

impl<'a> Place<'a> {
    fn path(&self) -> FieldPath {
        spec().key("rules").index(self.at)
    }

    fn judge(
        &self,
        policies: impl Iterator<Item = &'a AuthorizationPolicy> + Clone,
    ) -> Option<(Code, String)> {
        let action = self.policy.action;
        if self.rule.is_inert(action) {
            // A notice says so of rules that need what cannot be seen.
            let message = "no connection can match it: it is empty, or excludes all that it wants";
            return (!self.rule.is_blind()).then(|| (Code::NeverMatches, message.to_owned()));
        }
        // What is only counted neither adds to what is enforced nor is undone by it.
        let beside = policies.filter(|other| other.dry_run == self.policy.dry_run);
        beside
            .clone()
            .find_map(|other| self.undone_by(other))
            .or_else(|| beside.into_iter().find_map(|other| self.said_by(other)))
            .or_else(|| {
                let everybody = action == Action::Allow && self.rule.is_for_all(action);
                let message = "it permits everybody, plaintext too";
                everybody.then(|| (Code::AllowsEverybody, message.to_owned()))
            })
    }

    /// Whether a DENY policy refuses whatever this permits.
    fn undone_by(&self, other: &AuthorizationPolicy) -> Option<(Code, String)> {
        let relevant = !self.policy.action.denies()
            && other.action.denies()
            && other.reaches_all_of(self.policy, self.world.root);
        let covers = |rule: &Rule| rule.covers(other.action, self.rule, self.policy.action);
        let undone = relevant && (other.rules == Rules::Unreadable || other.rules().iter().any(covers));
        undone.then(|| {
            let message = format!("{} {} refuses all that it permits", other.action.as_str(), other.name);
            (Code::MootAllow, message)
        })
    }

    /// Whether another rule matches whatever this matches, to the same effect.
    fn said_by(&self, other: &AuthorizationPolicy) -> Option<(Code, String)> {
        if other.action.denies() != self.policy.action.denies()
            || !other.reaches_all_of(self.policy, self.world.root)
        {
            return None;
        }
        other.rules().iter().enumerate().find_map(|(at, rule)| self.said_by_rule(other, at, rule))
    }

    fn said_by_rule(&self, other: &AuthorizationPolicy, at: usize, rule: &Rule) -> Option<(Code, String)> {
        let own = (&self.policy.name, self.at);
        let theirs = (&other.name, at);
        if own == theirs || !rule.covers(other.action, self.rule, self.policy.action) {
            return None;
        }
        let mutual = self.rule.covers(self.policy.action, rule, other.action)
            && self.policy.reaches_all_of(other, self.world.root);
        let name = match own.0 == theirs.0 {
            true => format!("rules[{at}]"),
            false => format!("rules[{at}] of {}", other.name),
        };
        match mutual {
            // Of two that are alike the later is too many.
            true => (theirs < own).then(|| (Code::DuplicateRule, format!("{name} says the same"))),
            false => Some((Code::ShadowedRule, format!("{name} matches whatever it matches"))),
        }
    }
}
