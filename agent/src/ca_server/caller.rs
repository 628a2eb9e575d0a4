//! Who asks: the bearer token of a node's agent, a service account token that Kubernetes bound to a pod on a node.

use std::{fmt, str::FromStr, sync::Arc};

use super::{refusal::Refusal, review::Reviews, signed::SignedTokens};
use crate::mesh::{Identity, TrustDomain};

/// Tells callers by their tokens. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Callers {
    /// By the keys that sign tokens.
    Signed(SignedTokens),
    /// By the API server's word.
    Reviewed(Reviews),
}

impl Callers {
    /// Returns whose token it is.
    pub(super) async fn authenticate(&self, token: &str) -> Result<Caller, Refusal> {
        match self {
            Self::Signed(keys) => Ok(keys.authenticate(token)?),
            Self::Reviewed(reviews) => reviews.authenticate(token).await,
        }
    }
}

/// A service account: `namespace/name`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceAccount {
    namespace: String,
    name: String,
}

/// A node's agent, as its token proves it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Caller {
    pub(super) account: ServiceAccount,
    /// The node that the token's pod runs on.
    pub(super) node: Arc<str>,
    /// The token's pod.
    pub(super) pod: Option<String>,
}

/// Why nobody knows who asks.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Unauthenticated {
    #[error("there is no bearer token in the request (metadata `authorization: Bearer …`)")]
    NoToken,
    #[error("this is no signed token of three parts (RFC 7515)")]
    Malformed,
    #[error("tokens signed by {0} are not taken: RS256, ES256 and EdDSA are")]
    Algorithm(String),
    #[error(
        "the token is signed by a key that is not known here ({0}): is --jwks that of the cluster that made it?"
    )]
    UnknownKey(String),
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token is expired: its file is no longer renewed, or one of the clocks is wrong")]
    Expired,
    #[error("the token is not valid yet: one of the clocks is wrong")]
    NotYetValid,
    #[error("the token is for another audience: one for {0:?} is wanted")]
    Audience(String),
    #[error("the token is of another issuer: one of {0:?} is wanted")]
    Issuer(String),
    #[error("the token has no {0}, which a token that Kubernetes bound to a pod has")]
    Claim(&'static str),
    #[error(
        "the token is that of the service account {0}, which is none of the agents' here (--agent-service-account)"
    )]
    NoAgent(ServiceAccount),
    #[error("the API server does not take the token: {0}")]
    Refused(String),
    #[error("the token is not bound to a pod on a node, as a projected volume's is")]
    NotBound,
    #[error("the token's pod {0} is no longer there")]
    PodGone(String),
}

impl Caller {
    /// Makes the agent of a node, if that is a node's name.
    pub(super) fn new(
        account: ServiceAccount,
        node: &str,
        pod: Option<String>,
    ) -> Result<Self, Unauthenticated> {
        if node.is_empty() || node.len() > MAX_NODE_NAME {
            return Err(Unauthenticated::Claim("kubernetes.io/node/name of a node"));
        }
        Ok(Self { account, node: node.into(), pod })
    }

    /// Returns the caller's own identity.
    pub(super) fn identity(&self, trust_domain: &TrustDomain) -> Option<Identity> {
        Identity::new(trust_domain.clone(), &self.account.namespace, &self.account.name).ok()
    }
}

impl ServiceAccount {
    pub(super) fn new(namespace: String, name: String) -> Self {
        Self { namespace, name }
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Takes its name as a user's apart.
    pub(super) fn of_subject(subject: &str) -> Option<Self> {
        let (namespace, name) = subject.strip_prefix(SUBJECT)?.split_once(':')?;
        Some(Self::new(namespace.to_owned(), name.to_owned()))
    }

    /// Returns its name as a user's, as Kubernetes writes it.
    pub(super) fn subject(&self) -> String {
        format!("{SUBJECT}{}:{}", self.namespace, self.name)
    }
}

impl FromStr for ServiceAccount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let any = "any".parse().map_err(|error: crate::mesh::IdentityError| error.to_string())?;
        let (namespace, name) = text.split_once('/').ok_or("this is not of the form NAMESPACE/NAME")?;
        Identity::new(any, namespace, name).map_err(|error| error.to_string())?;
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// How the name of a service account begins as a user's.
const SUBJECT: &str = "system:serviceaccount:";
/// The longest name that a Kubernetes object has.
const MAX_NODE_NAME: usize = 253;
