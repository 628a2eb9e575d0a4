//! Whom policies are for: nobody, nobody in the mesh, or whom another policy is for already.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    super::{FieldPath, Key, Kind, Objects},
    Code, Findings, World, is_enrolled, spec,
};
use crate::mesh::{Action, AuthorizationPolicy, Mode, PeerAuthentication, PolicyName, Target, Workload};

pub(super) fn check(objects: &Objects, world: &World<'_>, findings: &mut Findings<'_>) {
    for policy in world.snapshot.policies().authorization() {
        let pods = world.authorized(policy);
        let field = match policy.target {
            Target::All => None,
            Target::Labels(_) => Some(spec().key("selector")),
            Target::Services(_) => Some(spec().key("targetRefs")),
        };
        selection(world, findings, (&policy.name, field), pods);
    }
    let authentications: Vec<_> = objects.authentications().collect();
    for policy in &authentications {
        let pods = world.authenticated(policy);
        let field = policy.selector.is_some().then(|| spec().key("selector"));
        selection(world, findings, (&policy.name, field), &pods);
        strict(world, findings, policy, &pods);
        ignored(world, findings, policy, &authentications);
    }
    default_deny(objects, world, findings);
}

impl World<'_> {
    /// The pods that a PeerAuthentication is for, whether it counts for them or not.
    fn authenticated(&self, policy: &PeerAuthentication) -> Vec<Arc<Workload>> {
        let is_mesh = policy.selector.is_none() && *policy.name.namespace == *self.root;
        let selected = |pod: &&Arc<Workload>| {
            let wanted = policy.selector.iter().flatten();
            (is_mesh || pod.namespace == policy.name.namespace)
                && wanted.into_iter().all(|(key, value)| pod.labels.get(key) == Some(value))
        };
        self.snapshot.workloads().iter().filter(selected).cloned().collect()
    }
}

fn selection(
    world: &World<'_>,
    findings: &mut Findings<'_>,
    (policy, field): (&PolicyName, Option<FieldPath>),
    pods: &[Arc<Workload>],
) {
    if !world.has_pods() {
        return;
    }
    match field {
        Some(field) if pods.is_empty() => {
            findings.policy(
                Code::SelectsNothing,
                policy,
                &field,
                "it selects no pod: the policy does nothing",
            );
        }
        field if !pods.is_empty() && !pods.iter().any(|pod| is_enrolled(pod)) => {
            let message = "none of the pods that it is for is in the mesh: nothing enforces it";
            findings.policy(Code::NotEnforced, policy, &field.unwrap_or_else(spec), message);
        }
        _ => {}
    }
}

/// STRICT for pods that no other pod of the files could reach.
fn strict(
    world: &World<'_>,
    findings: &mut Findings<'_>,
    policy: &PeerAuthentication,
    pods: &[Arc<Workload>],
) {
    let is_strict = policy.mode == Mode::Strict || policy.ports.values().any(|mode| *mode == Mode::Strict);
    let targets: Vec<_> = pods.iter().filter(|pod| is_enrolled(pod)).collect();
    if !is_strict || !policy.is_readable || targets.is_empty() {
        return;
    }
    let clients = || world.snapshot.workloads().iter().filter(|pod| is_enrolled(pod));
    if !targets.iter().any(|target| clients().any(|client| client.uid != target.uid)) {
        let message = "no other pod is in the mesh, and so none has an identity: nobody can reach the pods";
        findings.policy(Code::StrictWithoutClients, &policy.name, &spec().key("mtls"), message);
    }
}

/// A PeerAuthentication in whose place an older one of its level counts for each of its pods.
fn ignored(
    world: &World<'_>,
    findings: &mut Findings<'_>,
    policy: &PeerAuthentication,
    all: &[&Arc<PeerAuthentication>],
) {
    let same_level = |other: &PeerAuthentication| {
        other.name.namespace == policy.name.namespace && other.selector.is_some() == policy.selector.is_some()
    };
    let older: Vec<_> = all.iter().filter(|other| same_level(other) && other.age() < policy.age()).collect();
    let pods = world.authenticated(policy);
    let replaces = |other: &PeerAuthentication| {
        let theirs: BTreeSet<_> =
            world.authenticated(other).into_iter().map(|pod| Arc::clone(&pod.uid)).collect();
        other.selector == policy.selector
            || (!pods.is_empty() && pods.iter().all(|pod| theirs.contains(&pod.uid)))
    };
    if let Some(other) = older.into_iter().find(|other| replaces(other)) {
        let message = format!(
            "PeerAuthentication {} is for the same pods and older: it counts as a whole, and this one not at all",
            other.name
        );
        findings.policy(Code::IgnoredPeerAuthentication, &policy.name, &spec(), message);
    }
}

/// Namespaces of pods, or of policies where there are no pods, in which whoever is not named is let in.
fn default_deny(objects: &Objects, world: &World<'_>, findings: &mut Findings<'_>) {
    let policies = world.snapshot.policies().authorization();
    let mut namespaces: BTreeSet<&str> = BTreeSet::new();
    let pods = world.snapshot.workloads().iter().filter(|pod| is_enrolled(pod));
    namespaces.extend(pods.map(|pod| &*pod.namespace));
    if !world.has_pods() {
        let named = policies.iter().map(|policy| &*policy.name.namespace);
        namespaces.extend(named.filter(|namespace| *namespace != world.root));
    }
    for namespace in namespaces {
        let denies = |policy: &AuthorizationPolicy| {
            let all = policy.rules().iter().any(|rule| rule.is_for_all(policy.action));
            let reaches = *policy.name.namespace == *namespace || *policy.name.namespace == *world.root;
            let closes = policy.action == Action::Allow || all;
            reaches && policy.target == Target::All && !policy.dry_run && closes
        };
        if policies.iter().any(|policy| denies(policy)) {
            continue;
        }
        let message = format!(
            "no ALLOW policy is for the whole namespace {namespace}: pods that no ALLOW policy selects accept everybody"
        );
        match representative(objects, namespace) {
            Some(key) => findings.add(Code::NoDefaultDeny, key, &FieldPath::of(&["metadata"]), message),
            None => findings.general(Code::NoDefaultDeny, message),
        }
    }
}

/// The object that stands for a namespace: its own, or the first policy in it, or the first pod.
fn representative<'a>(objects: &'a Objects, namespace: &str) -> Option<&'a Key> {
    let own = |key: &&Key| key.kind == Kind::Namespace && key.name == namespace;
    let of = |kind| move |key: &&Key| key.kind == kind && key.namespace == namespace;
    let keys = || objects.keys();
    keys()
        .find(own)
        .or_else(|| keys().find(of(Kind::AuthorizationPolicy)))
        .or_else(|| keys().find(of(Kind::Pod)))
}
