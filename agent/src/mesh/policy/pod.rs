//! The AuthorizationPolicies of one pod, found once for all connections to it, and of those by their clients the ones that
//! a connection can match at all: of a thousand that each name another client, one is compared with it.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    iter,
    sync::Arc,
};

use super::{
    AuthorizationPolicy, Clause, Decision, Denial, DryRun, Permit, evaluate,
    rule::{Field, Rules, Test, Values},
    strings::Strings,
    view::{Caller, View},
};

/// The AuthorizationPolicies of one pod at one moment, for [`PolicySet::authorize_with`](super::PolicySet::authorize_with).
#[derive(Debug)]
pub struct PodPolicies {
    enforced: Policies,
    /// Those on trial beside the others; none where none is.
    on_trial: Option<Policies>,
}

/// Policies by what a match means.
#[derive(Debug)]
pub(super) struct Policies {
    pub(super) denying: Indexed,
    pub(super) allowing: Indexed,
}

/// Policies in the order of their names, by the clients that they can match.
#[derive(Debug)]
pub(super) struct Indexed {
    policies: Vec<Arc<AuthorizationPolicy>>,
    /// What a client may be called, and a policy that can match it; in order. Two names may have one hash: a policy more is
    /// compared then.
    named: Vec<(NameHash, u32)>,
    /// The policies that can match a client of any name, or none.
    others: Vec<u32>,
}

type NameHash = u64;

impl PodPolicies {
    /// `policies` are those of the pod, in the order of their names.
    pub(super) fn new(policies: Vec<Arc<AuthorizationPolicy>>) -> Self {
        let enforced = policies.iter().filter(|policy| !policy.dry_run).cloned().collect();
        let has_dry_run = policies.iter().any(|policy| policy.dry_run);
        Self { enforced: Policies::new(enforced), on_trial: has_dry_run.then(|| Policies::new(policies)) }
    }

    /// Decides on a connection that may come in the way that it does, or on one that `authenticated` refuses already.
    pub(super) fn decide(&self, view: &View<'_>, authenticated: &Result<(), Denial>) -> Decision {
        let decide = |policies: &Policies| -> Result<Permit, Denial> {
            authenticated.clone()?;
            evaluate::decide(policies, view)
        };
        let dry_run = self.on_trial.as_ref().map(|policies| DryRun { verdict: decide(policies) });
        Decision { verdict: decide(&self.enforced), dry_run }
    }
}

impl Policies {
    fn new(policies: Vec<Arc<AuthorizationPolicy>>) -> Self {
        let (denying, allowing) = policies.into_iter().partition(|policy| policy.action.denies());
        Self { denying: Indexed::new(denying), allowing: Indexed::new(allowing) }
    }
}

impl Indexed {
    fn new(policies: Vec<Arc<AuthorizationPolicy>>) -> Self {
        let (mut named, mut others) = (Vec::new(), Vec::new());
        for (at, policy) in (0..).zip(&policies) {
            match policy.clients().filter(|names| named.len() + names.len() <= NAMED) {
                Some(names) => named.extend(names.into_iter().map(|name| (name, at))),
                None => others.push(at),
            }
        }
        named.sort_unstable();
        Self { policies, named, others }
    }

    pub(super) fn all(&self) -> &[Arc<AuthorizationPolicy>] {
        &self.policies
    }

    /// Returns the policies that may match the connection, in the order of their names. The others do not.
    pub(super) fn candidates(&self, view: &View<'_>) -> impl Iterator<Item = &AuthorizationPolicy> {
        let mut candidates = self.others.clone();
        if let (Some(caller), false) = (&view.caller, self.named.is_empty()) {
            for name in caller.names() {
                let first = self.named.partition_point(|(other, _)| *other < name);
                let of_name = self.named[first..].iter().take_while(|(other, _)| *other == name);
                candidates.extend(of_name.map(|(_, policy)| *policy));
            }
            candidates.sort_unstable();
            candidates.dedup();
        }
        candidates.into_iter().map(|at| &*self.policies[at as usize])
    }
}

impl AuthorizationPolicy {
    /// Names of clients, of which one must be the connection's for any rule to match; none where others may match, or where
    /// there are too many to keep them with every pod.
    fn clients(&self) -> Option<Vec<NameHash>> {
        let Rules::Readable(rules) = &self.rules else { return None };
        let mut names = Vec::new();
        for rule in rules {
            let sources = rule.clause(Clause::From);
            if sources.is_empty() {
                return None;
            }
            // One without fields never matches.
            for source in sources.iter().filter(|source| !source.fields.is_empty()) {
                let (kind, texts) = source.fields.iter().find_map(Field::clients)?;
                names.extend(texts.exact().map(|text| kind.hash(text)));
                if names.len() > NAMES {
                    return None;
                }
            }
        }
        Some(names)
    }
}

impl Field {
    /// What the client must be called for the field to match, where that is written out.
    fn clients(&self) -> Option<(Name, &Strings)> {
        let (kind, texts) = match &self.test {
            Test::Is(Values::Principals(texts)) => (Name::Principal, texts),
            Test::Is(Values::ServiceAccounts(texts)) => (Name::Account, texts),
            Test::Is(Values::Namespaces(texts)) => (Name::Namespace, texts),
            _ => return None,
        };
        texts.are_exact().then_some((kind, texts))
    }
}

impl Caller<'_> {
    fn names(&self) -> impl Iterator<Item = NameHash> {
        let principal = iter::once(Name::Principal.hash(&self.principal));
        let account = iter::once(Name::Account.hash(&self.account));
        principal.chain(account).chain(iter::once(Name::Namespace.hash(self.identity.namespace())))
    }
}

/// What a client is called in policies.
#[derive(Clone, Copy, Hash)]
enum Name {
    Principal,
    Account,
    Namespace,
}

impl Name {
    fn hash(self, text: &str) -> NameHash {
        let mut hasher = DefaultHasher::new();
        (self, text).hash(&mut hasher);
        hasher.finish()
    }
}

/// Names of one policy: with more it is compared with every connection, which costs one look into its own table.
const NAMES: usize = 64;
/// Names of all policies of one effect together, at 16 bytes: the policies that no longer fit are compared with every connection.
const NAMED: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::{
        Action, Connection, Entry, PolicyKind, PolicyName, PolicySet, Rule, Target,
        fixtures::{ip, pod},
        policy::Pattern,
    };

    fn source(fields: Vec<(&'static str, Values)>) -> Entry {
        let field = |(name, values): (&'static str, _)| Field { name: name.into(), test: Test::Is(values) };
        Entry { key: None, fields: fields.into_iter().map(field).collect() }
    }

    fn strings<'a>(values: impl IntoIterator<Item = &'a str>) -> Strings {
        values.into_iter().map(|value| Pattern::parse(value).unwrap()).collect()
    }

    fn policy(name: &str, sources: Vec<Entry>) -> Arc<AuthorizationPolicy> {
        let rule = Rule::new(sources, Vec::new(), Vec::new());
        Arc::new(AuthorizationPolicy {
            name: PolicyName {
                kind: PolicyKind::AuthorizationPolicy,
                namespace: "shop".into(),
                name: name.into(),
            },
            target: Target::All,
            action: Action::Allow,
            dry_run: false,
            rules: Rules::Readable(vec![rule]),
        })
    }

    /// The policies that plaintext, `front` and `other`, both in the namespace `shop`, are compared with.
    fn compared(sources: Vec<Vec<Entry>>) -> [Vec<usize>; 3] {
        let policies = sources.into_iter().enumerate();
        let policies = policies.map(|(at, sources)| policy(&format!("{at:03}"), sources)).collect();
        let indexed = Indexed::new(policies);
        let destination = "10.0.0.1:80".parse().unwrap();
        [None, Some("front"), Some("other")].map(|account| {
            let identity = account.map(|account| pod(account, &[]).identity);
            let connection = Connection { source: ip("10.0.0.9"), identity: identity.as_ref(), destination };
            let view = View::of(&connection);
            let candidates = indexed.candidates(&view);
            candidates.map(|policy| policy.name.name.parse().unwrap()).collect()
        })
    }

    #[test]
    fn only_policies_that_can_match_the_client_are_compared_with_it() {
        let front = || strings(["cluster.local/ns/shop/sa/front"]);
        let sources = vec![
            vec![source(vec![("principals", Values::Principals(front()))])],
            vec![source(vec![("serviceAccounts", Values::ServiceAccounts(strings(["shop/other"])))])],
            vec![source(vec![("namespaces", Values::Namespaces(strings(["shop"])))])],
            vec![source(vec![("namespaces", Values::Namespaces(strings(["bank"])))])],
            // Those that may match others: by a star, by an address alone, without a source.
            vec![source(vec![("principals", Values::Principals(strings(["*/sa/front"])))])],
            vec![
                source(vec![("principals", Values::Principals(front()))]),
                source(vec![("ipBlocks", Values::SourceIps([].into_iter().collect()))]),
            ],
            Vec::new(),
            // One that never matches, and one by the field that says who.
            vec![source(Vec::new())],
            vec![source(vec![
                ("ipBlocks", Values::SourceIps([].into_iter().collect())),
                ("principals", Values::Principals(front())),
            ])],
        ];
        assert_eq!(compared(sources), [vec![4, 5, 6], vec![0, 2, 4, 5, 6, 8], vec![1, 2, 4, 5, 6]]);
    }

    #[test]
    fn a_policy_of_very_many_names_is_compared_with_everybody() {
        let names: Vec<_> = (0..=NAMES).map(|number| format!("bank/{number}")).collect();
        let accounts = |count| {
            let names = strings(names[..count].iter().map(String::as_str));
            vec![source(vec![("serviceAccounts", Values::ServiceAccounts(names))])]
        };
        assert_eq!(compared(vec![accounts(NAMES), accounts(NAMES + 1)]), [vec![1], vec![1], vec![1]]);
    }

    #[test]
    fn the_policies_of_a_pod_with_very_many_names_are_compared_with_everybody() {
        let accounts = |policy: usize| {
            let names: Vec<_> = (0..NAMES).map(|number| format!("bank/{policy}-{number}")).collect();
            let names = strings(names.iter().map(String::as_str));
            vec![source(vec![("serviceAccounts", Values::ServiceAccounts(names))])]
        };
        let fitting = NAMED / NAMES;
        let beyond = vec![fitting, fitting + 1];
        let found = compared((0..fitting + 2).map(accounts).collect());
        assert_eq!(found, [beyond.clone(), beyond.clone(), beyond]);
    }

    #[test]
    fn a_thousand_policies_decide_as_the_one_that_names_the_client() {
        let name = |number| format!("cluster.local/ns/shop/sa/front{number}");
        let of =
            |number| vec![source(vec![("principals", Values::Principals(strings([name(number).as_str()])))])];
        let policies = (0..1000).map(|number| policy(&format!("{number:04}"), of(number))).collect();
        let set = PolicySet::new(policies, Vec::new(), "root", &[]);
        let web = pod("web", &["10.0.0.1"]);
        let decide = |account: &str| {
            let identity = pod(account, &[]).identity;
            let destination = "10.0.0.1:80".parse().unwrap();
            let connection = Connection { source: ip("10.0.0.9"), identity: Some(&identity), destination };
            set.authorize_with(&set.of_pod(&web), &web, &connection).verdict
        };
        assert_eq!(decide("front712").unwrap().policy().unwrap().to_string(), "shop/0712");
        assert!(matches!(decide("front"), Err(Denial::NotAllowed { tried, .. }) if tried.len() == 1000));
    }
}
