//! AuthorizationPolicy: what it selects, and the rules that connections are compared with.

use std::{borrow::Cow, collections::BTreeSet};

use serde::{Deserialize, Serialize};

use super::{IpBlocks, PolicyName, Strings, Target};

/// An AuthorizationPolicy. AUDIT policies are none: they change no verdict.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthorizationPolicy {
    /// What it is called.
    pub name: PolicyName,
    /// The pods that it is for.
    pub target: Target,
    /// What a match means.
    pub action: Action,
    /// Whether it is only counted what it would do.
    pub dry_run: bool,
    /// When it matches.
    pub rules: Rules,
}

/// What a match means.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// The connection is permitted if no DENY policy matches, and where such a policy applies, only then.
    Allow,
    /// The connection is refused.
    Deny,
    /// The connection is refused, as there is no authorizer to ask.
    Custom,
}

/// When a policy matches.
#[derive(Clone, Debug, PartialEq)]
pub enum Rules {
    /// Where one of these does.
    Readable(Vec<Rule>),
    /// Always where it denies, and never where it allows: what it says could not be read.
    Unreadable,
}

/// A rule, which matches where each of its clauses does. A clause without entries is absent, and matches.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    from: Vec<Entry>,
    to: Vec<Entry>,
    when: Vec<Entry>,
    blind: bool,
}

/// A source, an operation, or a condition: it matches where all of its fields do, and never where it has none.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key of a condition.
    pub key: Option<String>,
    /// What is compared.
    pub fields: Vec<Field>,
}

/// One field of an entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Its name, such as `notPrincipals`; of a condition `values` or `notValues`.
    pub name: Cow<'static, str>,
    /// When it matches.
    pub test: Test,
}

/// When a field matches.
#[derive(Clone, Debug, PartialEq)]
pub enum Test {
    /// Where one of the values does.
    Is(Values),
    /// Where none of the values does.
    Not(Values),
    /// It is about what cannot be seen of a TCP connection: in a DENY policy it matches, and in an ALLOW policy the whole
    /// rule does not.
    Unseen,
}

/// The values of a field, by what they are compared with.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// The client's identity, without `spiffe://`.
    Principals(Strings),
    /// The namespace of the client's identity.
    Namespaces(Strings),
    /// The namespace and service account of the client's identity, as `namespace/account`, whatever the trust domain.
    ServiceAccounts(Strings),
    /// The trust domain of the client's identity.
    TrustDomains(Strings),
    /// The client's address.
    SourceIps(IpBlocks),
    /// The address that the client asks for.
    DestinationIps(IpBlocks),
    /// The port that the client asks for.
    Ports(BTreeSet<u16>),
}

/// The clauses of a rule.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Clause {
    /// One of its sources must match.
    From,
    /// One of its operations must match.
    To,
    /// Each of its conditions must match.
    When,
}

impl AuthorizationPolicy {
    /// Returns the rules; none where they could not be read.
    pub fn rules(&self) -> &[Rule] {
        match &self.rules {
            Rules::Readable(rules) => rules,
            Rules::Unreadable => &[],
        }
    }

    /// Returns every port that one of its rules mentions, with repetition.
    pub(super) fn ports(&self) -> impl Iterator<Item = u16> {
        let entries = self.rules().iter().flat_map(Rule::entries);
        let tests = entries.flat_map(|entry| &entry.fields).map(|field| &field.test);
        let ports = tests.filter_map(|test| match test {
            Test::Is(Values::Ports(ports)) | Test::Not(Values::Ports(ports)) => Some(ports),
            _ => None,
        });
        ports.flatten().copied()
    }
}

impl Action {
    /// Returns whether a match refuses.
    pub fn denies(self) -> bool {
        match self {
            Self::Allow => false,
            Self::Deny | Self::Custom => true,
        }
    }

    /// Returns the action as policies write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Custom => "CUSTOM",
        }
    }
}

impl Rule {
    /// Makes a rule of its clauses.
    pub fn new(from: Vec<Entry>, to: Vec<Entry>, when: Vec<Entry>) -> Self {
        let blind = [&from, &to, &when]
            .into_iter()
            .flatten()
            .flat_map(|entry| &entry.fields)
            .any(|field| field.test == Test::Unseen);
        Self { from, to, when, blind }
    }

    /// Returns whether it is about anything that cannot be seen of a TCP connection.
    pub fn is_blind(&self) -> bool {
        self.blind
    }

    /// Returns the entries of a clause; empty where it is absent.
    pub fn clause(&self, clause: Clause) -> &[Entry] {
        match clause {
            Clause::From => &self.from,
            Clause::To => &self.to,
            Clause::When => &self.when,
        }
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        Clause::ALL.into_iter().flat_map(|clause| self.clause(clause))
    }
}

impl Clause {
    /// The clauses in the order that they are compared in.
    pub const ALL: [Self; 3] = [Self::From, Self::To, Self::When];

    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::From => "from",
            Self::To => "to",
            Self::When => "when",
        }
    }

    /// Returns the field of an entry that the object with the entry's own fields stands in; none where the entry has them
    /// itself.
    pub fn object(self) -> Option<&'static str> {
        match self {
            Self::From => Some("source"),
            Self::To => Some("operation"),
            Self::When => None,
        }
    }
}
