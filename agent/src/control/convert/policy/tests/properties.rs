//! What holds for any policies and any connection.

use proptest::prelude::*;

use super::{
    arbitrary::{Attempt, attempt, authorization, policies, port, source},
    *,
};
use crate::mesh::{Explanation, Identity};

/// The services that `targetRefs` may name: one with a selector, one with endpoints only.
fn services() -> [Value; 3] {
    [
        json!({"kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}),
        json!({"kind": "Service", "metadata": {"name": "bare", "namespace": "shop"}, "spec": {"ports": [{"port": 80}]}}),
        json!({"kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.2"]}],
            "metadata": {"name": "bare", "namespace": "shop", "labels": {"kubernetes.io/service-name": "bare"}}}),
    ]
}

fn world(policies: &[Value]) -> World {
    World::with(policies, &services())
}

impl World {
    fn with_connection<T>(
        &self,
        attempt: &Attempt,
        use_it: impl FnOnce(&Workload, &Connection<'_>) -> T,
    ) -> T {
        let identity: Option<Identity> = attempt.identity.map(|identity| identity.parse().unwrap());
        let workload = self.workload(attempt.pod);
        let destination = SocketAddr::new(workload.addresses[0], attempt.port);
        use_it(workload, &Connection { source: attempt.source, identity: identity.as_ref(), destination })
    }

    fn attempt(&self, attempt: &Attempt) -> Decision {
        self.with_connection(attempt, |workload, it| self.snapshot.policies().authorize(workload, it))
    }

    fn explain(&self, attempt: &Attempt) -> Explanation {
        self.with_connection(attempt, |workload, it| self.snapshot.policies().explain(workload, it))
    }
}

fn in_short(decision: &Decision) -> (String, Option<String>) {
    (short(&decision.verdict), decision.dry_run.as_ref().map(|it| short(&it.verdict)))
}

/// What follows from an explanation's tree alone, by the words of docs/policy.md.
fn concluded(explanation: &Explanation, with_dry_run: bool) -> bool {
    let strict = explanation.mode.mode == crate::mesh::Mode::Strict;
    let counting = |denies| {
        let policies = explanation.policies.iter();
        policies.filter(move |it| it.action.denies() == denies && (with_dry_run || !it.dry_run))
    };
    let denied = counting(true).any(|it| it.matches);
    let allowed = counting(false).next().is_none() || counting(false).any(|it| it.matches);
    let refused = strict && explanation.identity.is_none();
    !(refused || denied) && allowed
}

fn assert_parts_agree(explanation: &Explanation) {
    for policy in explanation.policies.iter().filter(|policy| policy.readable) {
        assert_eq!(policy.matches, policy.rules.iter().any(|rule| rule.matches));
        for rule in &policy.rules {
            let clauses = rule.clauses.iter().all(|clause| clause.matches);
            assert_eq!(rule.matches, clauses && (policy.action.denies() || !rule.blind), "{rule:?}");
            for clause in &rule.clauses {
                let mut entries = clause.entries.iter().map(|entry| entry.matches);
                let matches = match clause.clause {
                    crate::mesh::Clause::When => entries.all(|it| it),
                    _ => entries.any(|it| it),
                };
                assert_eq!(clause.matches, matches);
                for entry in &clause.entries {
                    let fields = !entry.fields.is_empty() && entry.fields.iter().all(|field| field.matches);
                    assert_eq!(entry.matches, fields, "{entry:?}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_indexed_evaluation_equals_a_naive_one(policies in policies(), attempts in prop::collection::vec(attempt(), 8)) {
        let world = world(&policies);
        let services: Vec<_> = world.snapshot.services().iter().map(|service| &**service).collect();
        for attempt in attempts {
            let naive = world.with_connection(&attempt, |pod, it| naive::decide(&policies, &services, pod, it));
            prop_assert_eq!(in_short(&world.attempt(&attempt)), naive, "{:?}", attempt);
        }
    }

    #[test]
    fn the_order_of_objects_never_matters(
        (policies, shuffled) in policies().prop_flat_map(|it| (Just(it.clone()), Just(it).prop_shuffle())),
        attempt in attempt(),
    ) {
        prop_assert_eq!(world(&policies).explain(&attempt), world(&shuffled).explain(&attempt));
    }

    #[test]
    fn a_deny_policy_more_never_allows_more(policies in policies(), mut new in authorization(), attempt in attempt()) {
        new["spec"]["action"] = "DENY".into();
        let before = world(&policies).attempt(&attempt).verdict.is_ok();
        let after = world(&[policies, vec![new]].concat()).attempt(&attempt).verdict.is_ok();
        prop_assert!(before || !after);
    }

    #[test]
    fn an_allow_policy_more_never_denies_more_where_there_is_one(
        policies in policies(), mut new in authorization(), attempt in attempt(),
    ) {
        new["spec"]["action"] = "ALLOW".into();
        let old = authorization_policy_for_all();
        let policies = [policies, vec![old]].concat();
        let before = world(&policies).attempt(&attempt).verdict.is_ok();
        let after = world(&[policies, vec![new]].concat()).attempt(&attempt).verdict.is_ok();
        prop_assert!(after || !before);
    }

    #[test]
    fn what_the_kernel_does_with_plaintext_agrees_with_the_policies(
        policies in policies(), attempt in attempt(), sources in prop::collection::vec((source(), port()), 8),
    ) {
        let world = world(&policies);
        let plaintext = world.snapshot.policies().plaintext(world.workload(attempt.pod));
        for (source, port) in sources {
            let attempt = Attempt { identity: None, source, port, ..attempt };
            let decision = world.attempt(&attempt);
            match plaintext.at(port) {
                PlaintextAction::Pass => prop_assert!(decision.verdict.is_ok() && decision.dry_run.is_none()),
                PlaintextAction::Refuse => prop_assert!(decision.verdict.is_err()),
                PlaintextAction::Inspect => {}
            }
        }
    }

    #[test]
    fn an_explanation_never_contradicts_the_decision(policies in policies(), attempt in attempt()) {
        let world = world(&policies);
        let (decision, explanation) = (world.attempt(&attempt), world.explain(&attempt));
        prop_assert_eq!(explanation.verdict.allowed, decision.verdict.is_ok());
        prop_assert_eq!(concluded(&explanation, false), decision.verdict.is_ok());
        let dry_run = decision.dry_run.map(|it| it.verdict.is_ok());
        prop_assert_eq!(explanation.dry_run.as_ref().map(|it| it.allowed), dry_run);
        if let Some(allowed) = dry_run {
            prop_assert_eq!(concluded(&explanation, true), allowed);
        }
        assert_parts_agree(&explanation);
        let json = serde_json::to_string(&explanation).unwrap();
        prop_assert_eq!(serde_json::from_str::<Explanation>(&json).unwrap(), explanation);
    }
}

fn authorization_policy_for_all() -> Value {
    json!({"kind": "AuthorizationPolicy", "metadata": {"name": "old", "namespace": ROOT},
        "spec": {"rules": [{"from": [{"source": {"namespaces": ["shop"]}}]}]}})
}
