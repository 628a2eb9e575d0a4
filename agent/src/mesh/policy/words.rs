//! The words for fields and for how they compare with a connection: the same in denials and in explanations.

use super::{
    Action, Clause, Entry, Field, Test, Values,
    truth::Truth,
    view::{Caller, View},
};

/// The path of an entry in its policy's `spec`, such as `rules[0].from[1].source`.
pub(super) fn entry_path(rule: usize, clause: Clause, entry: usize) -> String {
    let path = format!("rules[{rule}].{}[{entry}]", clause.as_str());
    match clause.object() {
        Some(object) => format!("{path}.{object}"),
        None => path,
    }
}

impl Field {
    /// Its path in the policy's `spec`, such as `rules[0].from[1].source.principals`, given its entry's. The name of an
    /// unknown field may be anything: what would break a line is escaped.
    pub(super) fn path(&self, entry: &str) -> String {
        format!("{entry}.{}", self.name.escape_debug())
    }
}

impl Entry {
    /// Says why it does not match, where that is not for one of its fields.
    pub(super) fn why(&self) -> Option<&'static str> {
        self.fields.is_empty().then_some("is empty, and so matches nothing")
    }
}

impl Field {
    /// Says how it compares with a connection, and why.
    pub(super) fn why(&self, action: Action, view: &View<'_>) -> String {
        let (values, is_positive) = match &self.test {
            Test::Is(values) => (values, true),
            Test::Not(values) => (values, false),
            Test::Unseen if action.denies() => {
                return "cannot be seen of a TCP connection, and so counts as matching".to_owned();
            }
            Test::Unseen => {
                return "cannot be seen of a TCP connection, and so the rule never matches".to_owned();
            }
        };
        if values.is_about_identity() && view.caller.is_none() {
            return match is_positive {
                true => "needs an identity, and the connection is plaintext: put the client into the mesh"
                    .to_owned(),
                false => "matches plaintext, which has no identity".to_owned(),
            };
        }
        let holds = (self.evaluate(action, view) == Truth::Yes) == is_positive;
        let verb = if holds { "holds" } else { "does not hold" };
        format!("{verb} {}", values.subject(view))
    }
}

impl Values {
    fn is_about_identity(&self) -> bool {
        match self {
            Self::Principals(_) | Self::Namespaces(_) | Self::ServiceAccounts(_) | Self::TrustDomains(_) => {
                true
            }
            Self::SourceIps(_) | Self::DestinationIps(_) | Self::Ports(_) => false,
        }
    }

    /// What of a connection they are compared with.
    fn subject(&self, view: &View<'_>) -> String {
        let caller = |show: &dyn Fn(&Caller<'_>) -> String| view.caller.as_ref().map(show);
        let subject = match self {
            Self::Principals(_) => caller(&|caller| caller.identity.to_string()),
            Self::Namespaces(_) => caller(&|caller| format!("the namespace {}", caller.identity.namespace())),
            Self::ServiceAccounts(_) => caller(&|caller| format!("the service account {}", caller.account)),
            Self::TrustDomains(_) => {
                caller(&|caller| format!("the trust domain {}", caller.identity.trust_domain()))
            }
            Self::SourceIps(_) => view.source.map(|address| format!("the client's address {address}")),
            Self::DestinationIps(_) => view.destination.map(|address| format!("the pod's address {address}")),
            Self::Ports(_) => view.port.map(|port| format!("the port {port}")),
        };
        subject.unwrap_or_else(|| "what is not known yet".to_owned())
    }
}
