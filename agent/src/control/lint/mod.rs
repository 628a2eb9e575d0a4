//! What is odd in the policies of some files: what cannot be read, what cannot be seen, what does nothing, and what lets in
//! more than its author may think. docs/policy.md lists the findings.
//!
//! ```text
//! Objects ──┬─► notices of their conversion ─────────────┬─► Findings
//!           └─► Snapshot: who is selected, who is there ─┘
//! ```

mod clients;
mod code;
mod finding;
mod read;
mod rules;
mod scope;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc};

use super::{FieldPath, Objects};
use crate::mesh::{AuthorizationPolicy, Enrollment, PolicyName, PolicySet, Snapshot, TrustDomain, Workload};

use finding::Findings;

pub use code::Code;
pub use finding::Finding;

/// What the findings are about.
#[derive(Debug)]
struct World<'a> {
    snapshot: Snapshot,
    /// The pods that each AuthorizationPolicy is for.
    authorized: HashMap<PolicyName, Vec<Arc<Workload>>>,
    root: &'a str,
    trust_domain: &'a TrustDomain,
}

/// Returns what is odd in the objects, by file and line.
pub fn lint(objects: &Objects) -> Vec<Finding> {
    let settings = objects.settings();
    let snapshot = objects.snapshot_enrolling_by_default();
    let world = World {
        authorized: authorized(&snapshot),
        snapshot,
        root: &settings.root_namespace,
        trust_domain: &settings.trust_domain,
    };
    let mut findings = Findings::of(objects);
    read::check(objects, &world, &mut findings);
    scope::check(objects, &world, &mut findings);
    rules::check(&world, &mut findings);
    clients::check(&world, &mut findings);
    findings.finish()
}

/// Returns what is odd in a policy by itself, whatever else there is: a line each, with the field and a remedy. Rules are compared
/// with each other where they are few.
pub(super) fn alone(policy: &Arc<AuthorizationPolicy>, trust_domain: &TrustDomain) -> Vec<String> {
    if policy.rules().len() > MAX_RULES {
        return Vec::new();
    }
    let policies = PolicySet::new(vec![Arc::clone(policy)], Vec::new(), "", &[]);
    let snapshot = Snapshot::default().with_policies(Arc::new(policies));
    let world = World { snapshot, authorized: HashMap::new(), root: "", trust_domain };
    let mut findings = Findings::of_no_files();
    rules::check(&world, &mut findings);
    clients::check(&world, &mut findings);
    let found = findings.finish().into_iter().filter(|finding| ALONE.contains(&finding.code));
    found.map(|Finding { field, message, remedy, .. }| format!("{field}: {message}: {remedy}")).collect()
}

fn authorized(snapshot: &Snapshot) -> HashMap<PolicyName, Vec<Arc<Workload>>> {
    let mut authorized: HashMap<_, Vec<_>> = HashMap::new();
    for pod in snapshot.workloads() {
        for policy in snapshot.policies().applicable(pod) {
            authorized.entry(policy.name.clone()).or_default().push(Arc::clone(pod));
        }
    }
    authorized
}

impl World<'_> {
    /// The pods that an AuthorizationPolicy is for.
    fn authorized(&self, policy: &AuthorizationPolicy) -> &[Arc<Workload>] {
        self.authorized.get(&policy.name).map_or(&[], Vec::as_slice)
    }

    /// Whether the files hold any pods; otherwise nothing can be said about them.
    fn has_pods(&self) -> bool {
        !self.snapshot.workloads().is_empty()
    }
}

fn is_enrolled(workload: &Workload) -> bool {
    workload.enrollment == Enrollment::Enrolled
}

fn spec() -> FieldPath {
    FieldPath::of(&["spec"])
}

/// What a policy shows by itself: the rest is about pods and other policies, which come and go.
const ALONE: [Code; 4] =
    [Code::NeverMatches, Code::ShadowedRule, Code::DuplicateRule, Code::ForeignTrustDomain];
/// Of so many rules each is compared with each.
const MAX_RULES: usize = 200;
