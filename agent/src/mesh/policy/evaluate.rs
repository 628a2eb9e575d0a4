//! How rules are compared with a connection, and what follows from the policies that match.

use std::net::IpAddr;

use super::{
    Action, AuthorizationPolicy, Clause, Denial, IpBlocks, Permit,
    nearest::nearest,
    pod::Policies,
    rule::{Entry, Field, Rule, Rules, Test, Values},
    truth::Truth,
    view::{Caller, View},
};

impl AuthorizationPolicy {
    /// Whether it matches.
    pub(super) fn evaluate(&self, view: &View<'_>) -> Truth {
        match &self.rules {
            Rules::Readable(rules) => Truth::any(rules.iter().map(|rule| rule.evaluate(self.action, view))),
            Rules::Unreadable => self.action.denies().into(),
        }
    }

    /// The first of its rules that matches for certain.
    fn matching_rule(&self, view: &View<'_>) -> Option<usize> {
        self.rules().iter().position(|rule| rule.evaluate(self.action, view) == Truth::Yes)
    }
}

impl Rule {
    pub(super) fn evaluate(&self, action: Action, view: &View<'_>) -> Truth {
        if self.is_blind() && !action.denies() {
            return Truth::No;
        }
        Truth::all(Clause::ALL.into_iter().map(|clause| self.evaluate_clause(clause, action, view)))
    }

    pub(super) fn evaluate_clause(&self, clause: Clause, action: Action, view: &View<'_>) -> Truth {
        let entries = self.clause(clause);
        let matches = entries.iter().map(|entry| entry.evaluate(action, view));
        match clause {
            Clause::When => Truth::all(matches),
            Clause::From | Clause::To if entries.is_empty() => Truth::Yes,
            Clause::From | Clause::To => Truth::any(matches),
        }
    }
}

impl Entry {
    pub(super) fn evaluate(&self, action: Action, view: &View<'_>) -> Truth {
        if self.fields.is_empty() {
            return Truth::No;
        }
        Truth::all(self.fields.iter().map(|field| field.evaluate(action, view)))
    }
}

impl Field {
    pub(super) fn evaluate(&self, action: Action, view: &View<'_>) -> Truth {
        match &self.test {
            Test::Is(values) => values.hold(view),
            Test::Not(values) => !values.hold(view),
            Test::Unseen => action.denies().into(),
        }
    }
}

impl Values {
    fn hold(&self, view: &View<'_>) -> Truth {
        // Without an identity none of its parts is among any values.
        let caller =
            |holds: &dyn Fn(&Caller<'_>) -> bool| Truth::from(view.caller.as_ref().is_some_and(holds));
        match self {
            Self::Principals(values) => caller(&|caller| values.holds(&caller.principal)),
            Self::Namespaces(values) => caller(&|caller| values.holds(caller.identity.namespace())),
            Self::ServiceAccounts(values) => caller(&|caller| values.holds(&caller.account)),
            Self::TrustDomains(values) => {
                caller(&|caller| values.holds(caller.identity.trust_domain().as_str()))
            }
            Self::SourceIps(blocks) => blocks.hold(view.source),
            Self::DestinationIps(blocks) => blocks.hold(view.destination),
            Self::Ports(ports) => view.port.is_some_and(|port| ports.contains(&port)).into(),
        }
    }
}

impl IpBlocks {
    /// Whether an address, which may be any where it is none, is in one of them.
    fn hold(&self, address: Option<IpAddr>) -> Truth {
        match address {
            Some(address) => self.holds(address).into(),
            None if self.holds_all() => Truth::Yes,
            None => Truth::Maybe,
        }
    }
}

/// What AuthorizationPolicies say to a connection, in this order: DENY, none that allows, ALLOW, deny.
pub(super) fn decide(policies: &Policies, view: &View<'_>) -> Result<Permit, Denial> {
    let Policies { denying, allowing } = policies;
    // Nothing is unknown of a connection; if it were, what may be denied would be, and what may be allowed would not.
    if let Some(policy) = denying.candidates(view).find(|policy| policy.evaluate(view) != Truth::No) {
        return Err(Denial::Denied { policy: policy.name.clone(), rule: policy.matching_rule(view) });
    }
    if allowing.all().is_empty() {
        return Ok(Permit::new(None));
    }
    if let Some(policy) = allowing.candidates(view).find(|policy| policy.evaluate(view) == Truth::Yes) {
        return Ok(Permit::new(Some(policy.name.clone())));
    }
    Err(Denial::NotAllowed {
        tried: allowing.all().iter().map(|policy| policy.name.clone()).collect(),
        nearest: nearest(allowing.all(), view),
    })
}

/// Whether AuthorizationPolicies permit what is known of a connection.
pub(super) fn permit(policies: &[&AuthorizationPolicy], view: &View<'_>) -> Truth {
    let (denying, allowing) =
        policies.iter().copied().partition::<Vec<_>, _>(|policy| policy.action.denies());
    let denied = Truth::any(denying.iter().map(|policy| policy.evaluate(view)));
    let allowed = match allowing.is_empty() {
        true => Truth::Yes,
        false => Truth::any(allowing.iter().map(|policy| policy.evaluate(view))),
    };
    Truth::all([!denied, allowed])
}
