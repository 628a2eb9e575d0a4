//! Terms and policies for unit tests.

use std::sync::Arc;

use super::Terms;
use crate::mesh::{Action, AuthorizationPolicy, PolicyKind, PolicyName, PolicySet, Rules, Target, Workload};

/// A pod and the policies that it is held to.
pub(super) fn terms(workload: Workload, policies: Vec<Arc<AuthorizationPolicy>>) -> Terms {
    let policies = Arc::new(PolicySet::new(policies, Vec::new(), "root", &[]));
    Terms::of(Arc::new(workload), policies)
}

/// The policy `deny` of a namespace, which denies everything.
pub(super) fn deny_all(namespace: &str) -> Arc<AuthorizationPolicy> {
    let name = PolicyName {
        kind: PolicyKind::AuthorizationPolicy,
        namespace: namespace.into(),
        name: "deny".into(),
    };
    Arc::new(AuthorizationPolicy {
        name,
        target: Target::All,
        action: Action::Deny,
        dry_run: false,
        rules: Rules::Unreadable,
    })
}
