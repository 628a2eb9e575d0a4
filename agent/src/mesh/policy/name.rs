//! What a policy is called.

use std::{fmt, sync::Arc};

/// The kinds of policy objects, of `security.istio.io`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum PolicyKind {
    /// Who may connect.
    AuthorizationPolicy,
    /// Whether plaintext is accepted.
    PeerAuthentication,
}

/// The name of a policy object. Cheap to clone.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PolicyName {
    /// Its kind.
    pub kind: PolicyKind,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name in it.
    pub name: Arc<str>,
}

impl PolicyKind {
    /// The kind as Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
        }
    }
}

/// `namespace/name`. A manifest may hold names that Kubernetes would refuse: what would break a line is escaped.
impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace.escape_debug(), self.name.escape_debug())
    }
}
