//! Which rule matches whatever another matches, for finding rules that add nothing. What is said here is certain; that
//! nothing is said proves nothing.

use super::{
    Action, AuthorizationPolicy, Clause, Target,
    rule::{Entry, Field, Rule, Test, Values},
};

impl AuthorizationPolicy {
    /// Returns whether it is for every pod that `other` is for, given the namespace whose policies are for the mesh.
    pub fn reaches_all_of(&self, other: &Self, root: &str) -> bool {
        let everywhere = &*self.name.namespace == root;
        let same_namespace = self.name.namespace == other.name.namespace;
        match (&self.target, &other.target) {
            (Target::All, _) => everywhere || same_namespace,
            (Target::Labels(wanted), Target::Labels(labels)) => {
                (everywhere || same_namespace)
                    && wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
            }
            (Target::Services(all), Target::Services(some)) => {
                same_namespace && some.iter().all(|service| all.contains(service))
            }
            _ => false,
        }
    }
}

impl Rule {
    /// Returns whether it matches every connection, in a policy of an action.
    pub fn is_for_all(&self, action: Action) -> bool {
        self.conditions(action).next().is_none()
            && [Clause::From, Clause::To].into_iter().all(|clause| self.is_open(clause, action))
            && !self.is_inert(action)
    }

    /// Returns whether it can match no connection, in a policy of an action.
    pub fn is_inert(&self, action: Action) -> bool {
        let blind = self.is_blind() && !action.denies();
        let hopeless = |clause| {
            let entries = self.clause(clause);
            !entries.is_empty() && entries.iter().all(Entry::is_contradiction)
        };
        let conditions: Vec<_> = self.clause(Clause::When).iter().flat_map(|entry| &entry.fields).collect();
        blind || hopeless(Clause::From) || hopeless(Clause::To) || contradict(&conditions)
    }

    /// Returns whether it, in a policy of `action`, matches every connection that `other` matches, in one of `others`.
    pub fn covers(&self, action: Action, other: &Self, others: Action) -> bool {
        if self.is_inert(action) || other.is_inert(others) {
            return false;
        }
        let entries = |clause| {
            let (own, theirs) = (self.clause(clause), other.clause(clause));
            self.is_open(clause, action)
                || (!theirs.is_empty()
                    && theirs.iter().all(|entry| own.iter().any(|own| own.covers(entry, action))))
        };
        let theirs = other.clause(Clause::When);
        entries(Clause::From)
            && entries(Clause::To)
            && self.conditions(action).all(|own| theirs.iter().any(|entry| own.covers(entry, action)))
    }

    /// Whether `from` or `to` matches every connection.
    fn is_open(&self, clause: Clause, action: Action) -> bool {
        let certain = |entry: &Entry| {
            !entry.fields.is_empty() && entry.fields.iter().all(|field| field.is_certain(action))
        };
        let entries = self.clause(clause);
        entries.is_empty() || entries.iter().any(certain)
    }

    /// The conditions that can fail.
    fn conditions(&self, action: Action) -> impl Iterator<Item = &Entry> {
        let fails = move |entry: &&Entry| entry.fields.iter().any(|field| !field.is_certain(action));
        self.clause(Clause::When).iter().filter(fails)
    }
}

impl Entry {
    /// Whether it can match nothing.
    fn is_contradiction(&self) -> bool {
        self.fields.is_empty() || contradict(&self.fields.iter().collect::<Vec<_>>())
    }

    fn covers(&self, other: &Self, action: Action) -> bool {
        // An entry without fields never matches.
        !self.fields.is_empty()
            && self
                .fields
                .iter()
                .all(|own| own.is_certain(action) || other.fields.iter().any(|field| own.covers(field)))
    }
}

impl Field {
    /// Whether it matches every connection.
    fn is_certain(&self, action: Action) -> bool {
        self.test == Test::Unseen && action.denies()
    }

    fn covers(&self, other: &Self) -> bool {
        match (&self.test, &other.test) {
            (Test::Is(all), Test::Is(some)) => all.cover(some),
            (Test::Not(few), Test::Not(more)) => more.cover(few),
            _ => false,
        }
    }
}

/// Whether one field excludes all that another wants.
fn contradict(fields: &[&Field]) -> bool {
    let excludes = |values: &Values| {
        fields.iter().any(|field| matches!(&field.test, Test::Not(excluded) if excluded.cover(values)))
    };
    fields.iter().any(|field| matches!(&field.test, Test::Is(values) if excludes(values)))
}

impl Values {
    /// Whether they hold whatever `some` hold.
    fn cover(&self, some: &Self) -> bool {
        match (self, some) {
            (Self::Principals(all), Self::Principals(some))
            | (Self::Namespaces(all), Self::Namespaces(some))
            | (Self::ServiceAccounts(all), Self::ServiceAccounts(some))
            | (Self::TrustDomains(all), Self::TrustDomains(some)) => all.cover(some),
            (Self::SourceIps(all), Self::SourceIps(some))
            | (Self::DestinationIps(all), Self::DestinationIps(some)) => all.cover(some),
            (Self::Ports(all), Self::Ports(some)) => all.is_superset(some),
            _ => false,
        }
    }
}
