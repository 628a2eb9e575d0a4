//! Whom rules name: anybody, nobody, or those who come without the identity that they are named by.

use std::{collections::BTreeSet, sync::Arc};

use super::{super::FieldPath, Code, Findings, World, is_enrolled, spec};
use crate::mesh::{
    Action, AuthorizationPolicy, Clause, Entry, Field, Identity, Mode, PlaintextAction, Rule, Strings,
    Target, Test, Values, Workload,
};

pub(super) fn check(world: &World<'_>, findings: &mut Findings<'_>) {
    for policy in world.snapshot.policies().authorization() {
        for (at, rule) in policy.rules().iter().enumerate() {
            for (path, field) in fields(at, rule) {
                let named = Named { world, policy, path };
                named.check(field, findings);
            }
            plaintext(world, findings, policy, (at, rule));
            disabled(world, findings, policy, (at, rule));
        }
    }
}

/// The fields of a rule, each with its path.
fn fields(at: usize, rule: &Rule) -> impl Iterator<Item = (FieldPath, &Field)> {
    Clause::ALL.into_iter().flat_map(move |clause| {
        rule.clause(clause).iter().enumerate().flat_map(move |(number, entry)| {
            let path = spec().key("rules").index(at).key(clause.as_str()).index(number);
            let path = clause.object().map_or(path.clone(), |object| path.key(object));
            entry.fields.iter().map(move |field| (path.clone().key(field.name.to_string()), field))
        })
    })
}

/// The values of one field.
struct Named<'a> {
    world: &'a World<'a>,
    policy: &'a AuthorizationPolicy,
    path: FieldPath,
}

impl Named<'_> {
    fn check(&self, field: &Field, findings: &mut Findings<'_>) {
        let (values, is_positive) = match &field.test {
            Test::Is(values) => (values, true),
            Test::Not(values) => (values, false),
            Test::Unseen => return,
        };
        let mut add = |code, message: String| findings.policy(code, &self.policy.name, &self.path, message);
        if let Values::Principals(texts) | Values::Namespaces(texts) | Values::TrustDomains(texts) = values
            && is_positive
            && texts.holds_all()
            && self.policy.action == Action::Allow
        {
            add(Code::AnyIdentity, "it permits whoever is in the mesh".to_owned());
        }
        for (code, message) in self.foreign(values) {
            add(code, message);
        }
        for (code, message) in self.strangers(values).into_iter().filter(|_| is_positive) {
            add(code, message);
        }
    }

    /// Values of other trust domains, and principals that are no identities.
    fn foreign(&self, values: &Values) -> Vec<(Code, String)> {
        let own = self.world.trust_domain.as_str();
        let foreign = |domain: &str, text: &str| {
            let message =
                format!("no identity of the mesh matches {text:?}: its trust domain is {own}, not {domain}");
            (Code::ForeignTrustDomain, message)
        };
        match values {
            Values::TrustDomains(domains) => {
                let others = domains.exact().filter(|domain| *domain != own);
                sorted(others).map(|domain| foreign(domain, domain)).collect()
            }
            Values::Principals(principals) => {
                let exact = sorted(principals.exact()).filter_map(|text| match identity(text) {
                    Some(identity) if identity.trust_domain().as_str() == own => None,
                    Some(identity) => Some(foreign(identity.trust_domain().as_str(), text)),
                    None => Some((
                        Code::NeverMatches,
                        format!("{text:?} is no identity, such as {own}/ns/NAMESPACE/sa/ACCOUNT, and so matches nobody"),
                    )),
                });
                let prefixes = principals.prefixes().filter_map(|prefix| {
                    let (domain, _) = prefix.split_once('/')?;
                    (domain != own).then(|| foreign(domain, &format!("{prefix}*")))
                });
                exact.chain(prefixes).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Identities that no pod of the files has, or only pods that send plaintext.
    fn strangers(&self, values: &Values) -> Vec<(Code, String)> {
        let own = self.world.trust_domain;
        if !self.world.has_pods() {
            return Vec::new();
        }
        let judge = |texts: &Strings, is: &dyn Fn(&Workload, &str) -> bool, what: &str| {
            let judged = sorted(texts.exact())
                .filter_map(|text| self.stranger(&format!("{what} {text}"), |pod| is(pod, text)));
            judged.collect()
        };
        match values {
            Values::Principals(texts) => {
                let known: Vec<_> = texts
                    .exact()
                    .filter(|text| identity(text).is_some_and(|identity| identity.trust_domain() == own))
                    .collect();
                let is = |pod: &Workload, text: &str| identity(text).as_ref() == Some(&pod.identity);
                let judged = sorted(known.into_iter())
                    .filter_map(|text| self.stranger(&format!("the identity {text}"), |pod| is(pod, text)));
                judged.collect()
            }
            Values::Namespaces(texts) => judge(texts, &|pod, text| *pod.namespace == *text, "the namespace"),
            Values::ServiceAccounts(texts) => judge(
                texts,
                &|pod, text| {
                    text.split_once('/') == Some((pod.identity.namespace(), pod.identity.service_account()))
                },
                "the service account",
            ),
            _ => Vec::new(),
        }
    }

    fn stranger(&self, what: &str, is: impl Fn(&Workload) -> bool) -> Option<(Code, String)> {
        let pods: Vec<_> = self.world.snapshot.workloads().iter().filter(|pod| is(pod)).collect();
        let Some(pod) = pods.first() else {
            return Some((Code::UnknownIdentity, format!("no pod of the files has {what}")));
        };
        if pods.iter().any(|pod| is_enrolled(pod)) {
            return None;
        }
        let effect = match self.policy.action {
            Action::Allow => "they are not permitted by it",
            Action::Deny | Action::Custom => "they are not denied by it",
        };
        let message =
            format!("pods with {what}, such as {pod}, are not in the mesh and send plaintext: {effect}");
        Some((Code::ClientNotEnrolled, message))
    }
}

/// Whether a DENY rule that only identities can match leaves the way by plaintext open.
fn plaintext(
    world: &World<'_>,
    findings: &mut Findings<'_>,
    policy: &AuthorizationPolicy,
    (at, rule): (usize, &Rule),
) {
    if !policy.action.denies() || policy.dry_run || !needs_identity(rule) || rule.is_inert(policy.action) {
        return;
    }
    let ports = ports(rule);
    let is_open = |pod: &Workload| {
        let plaintext = world.snapshot.policies().plaintext(pod);
        match &ports {
            Some(ports) => ports.iter().any(|port| plaintext.at(*port) != PlaintextAction::Refuse),
            None => {
                let mut actions = plaintext.ports.values().chain([&plaintext.otherwise]);
                actions.any(|action| *action != PlaintextAction::Refuse)
            }
        }
    };
    let selected = world.authorized(policy);
    let open = match world.has_pods() {
        true => selected.iter().any(|pod| is_enrolled(pod) && is_open(pod)),
        false => like(policy, world).is_some_and(|pod| is_open(&pod)),
    };
    if open {
        let message = "the pods accept plaintext, which has no identity that the rule could match: the denied may \
                       come outside of the mesh";
        let path = spec().key("rules").index(at);
        findings.policy(Code::DenyMissesPlaintext, &policy.name, &path, message);
    }
}

/// Whether an ALLOW rule that only identities can match is for ports to which everybody sends plaintext.
fn disabled(
    world: &World<'_>,
    findings: &mut Findings<'_>,
    policy: &AuthorizationPolicy,
    (at, rule): (usize, &Rule),
) {
    if policy.action.denies() || !needs_identity(rule) || rule.is_inert(policy.action) {
        return;
    }
    // Port 0 is one that no policy mentions.
    let ports = ports(rule).unwrap_or_else(|| BTreeSet::from([0]));
    let disabled =
        |pod: &Workload| ports.iter().all(|port| world.snapshot.policies().mode(pod, *port) == Mode::Disable);
    let mut pods = world.authorized(policy).iter().filter(|pod| is_enrolled(pod)).peekable();
    let hidden = match pods.peek() {
        Some(_) => pods.all(|pod| disabled(pod)),
        None => like(policy, world).is_some_and(|pod| disabled(&pod)),
    };
    if hidden {
        let message =
            "peers send plaintext there, as the mode is DISABLE: nobody has the identity that it needs";
        let path = spec().key("rules").index(at);
        findings.policy(Code::DisableHidesIdentity, &policy.name, &path, message);
    }
}

/// Whether plaintext can match none of it.
fn needs_identity(rule: &Rule) -> bool {
    let needs = |entry: &Entry| {
        entry.fields.iter().any(|field| match &field.test {
            Test::Is(values) => matches!(
                values,
                Values::Principals(_)
                    | Values::Namespaces(_)
                    | Values::ServiceAccounts(_)
                    | Values::TrustDomains(_)
            ),
            Test::Not(_) | Test::Unseen => false,
        })
    };
    let from = rule.clause(Clause::From);
    rule.clause(Clause::When).iter().any(needs) || (!from.is_empty() && from.iter().all(needs))
}

/// The ports that a rule is about; none where it is about all of them, or all but some.
fn ports(rule: &Rule) -> Option<BTreeSet<u16>> {
    let of = |entry: &Entry| {
        entry.fields.iter().find_map(|field| match &field.test {
            Test::Is(Values::Ports(ports)) => Some(ports.clone()),
            _ => None,
        })
    };
    let operations = rule.clause(Clause::To);
    let ports: Option<Vec<_>> = operations.iter().map(of).collect();
    ports.filter(|ports| !ports.is_empty()).map(|ports| ports.into_iter().flatten().collect())
}

/// A pod such as the policy is for, where the files hold none.
fn like(policy: &AuthorizationPolicy, world: &World<'_>) -> Option<Workload> {
    let labels = match &policy.target {
        Target::All => Arc::default(),
        Target::Labels(labels) => Arc::new(labels.clone()),
        Target::Services(_) => return None,
    };
    let namespace = &policy.name.namespace;
    let identity = Identity::new(world.trust_domain.clone(), namespace, "default").ok()?;
    Some(Workload::unknown(Arc::clone(namespace), labels, identity))
}

/// Reads a principal as policies write it.
fn identity(text: &str) -> Option<Identity> {
    format!("spiffe://{text}").parse().ok()
}

fn sorted<'a>(texts: impl Iterator<Item = &'a str>) -> impl Iterator<Item = &'a str> {
    texts.collect::<BTreeSet<_>>().into_iter()
}
