//! What policy decides about, and what it says.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::PolicyName;
use crate::mesh::{Identity, Reason};

/// A connection to a pod, as policy sees it.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    /// The client's address; IPv4-mapped is IPv4.
    pub source: IpAddr,
    /// Who the client proved to be; none for plaintext.
    pub identity: Option<&'a Identity>,
    /// The address and port of the pod that it asks for: the application's, not the tunnel's.
    pub destination: SocketAddr,
}

/// What the policies say.
#[derive(Clone, Debug)]
pub struct Decision {
    /// What is enforced.
    pub verdict: Result<Permit, Denial>,
    /// What would be if the dry-run policies that apply were enforced beside the others; none where none applies.
    pub dry_run: Option<DryRun>,
}

/// What the dry-run policies would have done.
#[derive(Clone, Debug)]
pub struct DryRun {
    /// The verdict that there would be.
    pub verdict: Result<Permit, Denial>,
}

/// Proof that the policies permit a connection: only they make one, and dialling the application takes one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Permit {
    policy: Option<PolicyName>,
}

/// Why the policies refuse a connection. Its text names the policy, what of it failed, and the remedy, in one line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Denial {
    /// The port is STRICT, and the connection plaintext.
    Plaintext {
        /// The PeerAuthentication that says so.
        policy: PolicyName,
        /// Whether it says so itself. One that could not be read counts as STRICT.
        readable: bool,
    },
    /// A DENY policy matches.
    Denied {
        /// The policy.
        policy: PolicyName,
        /// The first of its rules that matches, counted from 0; none where the policy could not be read.
        rule: Option<usize>,
    },
    /// ALLOW policies apply, and none matches.
    NotAllowed {
        /// Those that were tried, in the order of their names.
        tried: Vec<PolicyName>,
        /// The policy that came nearest, and the first field in it that failed.
        nearest: Option<Mismatch>,
    },
}

/// Where an ALLOW policy failed to match.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mismatch {
    /// The policy.
    pub policy: PolicyName,
    /// The path of the field, such as `rules[0].from[0].source.principals`.
    pub field: String,
    /// What it was compared with and why that failed, for people.
    pub why: String,
}

impl Permit {
    pub(super) fn new(policy: Option<PolicyName>) -> Self {
        Self { policy }
    }

    /// Returns the ALLOW policy that matched; none where no ALLOW policy applies to the pod.
    pub fn policy(&self) -> Option<&PolicyName> {
        self.policy.as_ref()
    }

    /// What lets a connection of a pod to itself pass: a pod's traffic to itself is let alone.
    pub fn own() -> Self {
        Self { policy: None }
    }
}

impl Denial {
    /// Returns the policy that decided, where one did.
    pub fn policy(&self) -> Option<&PolicyName> {
        match self {
            Self::Plaintext { policy, .. } | Self::Denied { policy, .. } => Some(policy),
            Self::NotAllowed { .. } => None,
        }
    }

    /// Returns what the log and the metrics call it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Plaintext { .. } => Reason::PlaintextRefused,
            Self::Denied { .. } | Self::NotAllowed { .. } => Reason::PolicyDenied,
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plaintext { policy, readable: true } => write!(
                f,
                "PeerAuthentication {policy} refuses plaintext (STRICT): put the client into the mesh, or make the port PERMISSIVE"
            ),
            Self::Plaintext { policy, readable: false } => write!(
                f,
                "PeerAuthentication {policy} could not be read, and so refuses plaintext as STRICT does: mend it"
            ),
            Self::Denied { policy, rule: Some(rule) } => {
                write!(f, "AuthorizationPolicy {policy} denies it: its rules[{rule}] matches")
            }
            Self::Denied { policy, rule: None } => {
                write!(f, "AuthorizationPolicy {policy} could not be read, and so denies everything: mend it")
            }
            Self::NotAllowed { tried, nearest } => {
                f.write_str("no allow policy matched; tried")?;
                for policy in tried.iter().take(SHOWN) {
                    write!(f, " {policy}")?;
                }
                if let more @ 1.. = tried.len().saturating_sub(SHOWN) {
                    write!(f, " and {more} more")?;
                }
                match nearest {
                    Some(Mismatch { policy, field, why }) => {
                        write!(f, "; nearest was {policy}, whose {field} {why}")
                    }
                    None => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for Denial {}

/// Policies that a line of the log names.
const SHOWN: usize = 8;
