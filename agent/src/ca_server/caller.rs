//! Who asks: the bearer token of a node's agent, a service account token that Kubernetes bound to a pod on a node.

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc};

use jsonwebtoken::{Validation, decode, decode_header, errors::ErrorKind};
use serde::Deserialize;

use super::jwks::{Jwks, JwksError, Key};
use crate::{
    identity::{FileState, Followed},
    mesh::{Identity, TrustDomain},
};

/// What tokens must be like.
#[derive(Clone, Debug)]
pub struct TokenRules {
    /// The keys that sign tokens: a JSON Web Key Set (RFC 7517), such as the API server's `/openid/v1/jwks`.
    pub jwks: PathBuf,
    /// Whom tokens must be made for.
    pub audience: String,
    /// Who must have made them; anybody with one of the keys where there is none.
    pub issuer: Option<String>,
    /// The service accounts that may ask for a node's pods.
    pub agents: Vec<ServiceAccount>,
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
}

/// Tells callers by their tokens.
#[derive(Clone, Debug)]
pub struct Callers {
    keys: Followed<Jwks>,
    audience: String,
    issuer: Option<String>,
    agents: Vec<ServiceAccount>,
}

impl Callers {
    /// Reads the keys, and reads them again whenever they change. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// Where the file of the keys cannot be used.
    pub fn new(rules: TokenRules) -> Result<Self, JwksError> {
        let TokenRules { jwks, audience, issuer, agents } = rules;
        let path = jwks.clone();
        let keys = Followed::start("keys of tokens", vec![jwks], move || Jwks::read(&path))?;
        Ok(Self { keys, audience, issuer, agents })
    }

    /// Returns how reading the keys went.
    pub fn file(&self) -> tokio::sync::watch::Receiver<FileState> {
        self.keys.state()
    }

    /// Returns whose token it is.
    pub(super) fn authenticate(&self, token: &str) -> Result<Caller, Unauthenticated> {
        // What cannot be parsed, and `alg` of none, which the library does not know.
        let header = decode_header(token).map_err(|error| match error.kind() {
            ErrorKind::Json(_) | ErrorKind::InvalidAlgorithmName => {
                Unauthenticated::Algorithm("another algorithm, or none at all".to_owned())
            }
            _ => Unauthenticated::Malformed,
        })?;
        let keys = self.keys.get();
        let mut outcome = Err(match &header.kid {
            _ if !Jwks::takes(header.alg) => Unauthenticated::Algorithm(format!("{:?}", header.alg)),
            Some(kid) => Unauthenticated::UnknownKey(format!("kid {:?}", shorten(kid))),
            None => Unauthenticated::UnknownKey("it names none".to_owned()),
        });
        for key in keys.candidates(header.kid.as_deref(), header.alg) {
            outcome = self.verify(token, key);
            if !matches!(outcome, Err(Unauthenticated::Signature)) {
                break;
            }
        }
        self.admit(outcome?)
    }

    fn verify(&self, token: &str, key: &Key) -> Result<Claims, Unauthenticated> {
        // The key says by which algorithm it verifies, and never the token.
        let mut validation = Validation::new(key.algorithm);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.set_audience(&[&self.audience]);
        validation.set_required_spec_claims(&["exp", "aud", "sub"]);
        if let Some(issuer) = &self.issuer {
            validation.set_issuer(&[issuer]);
            validation.set_required_spec_claims(&["exp", "aud", "sub", "iss"]);
        }
        decode::<Claims>(token, &key.key, &validation).map(|token| token.claims).map_err(|error| match error
            .kind()
        {
            ErrorKind::InvalidSignature => Unauthenticated::Signature,
            ErrorKind::ExpiredSignature => Unauthenticated::Expired,
            ErrorKind::ImmatureSignature => Unauthenticated::NotYetValid,
            ErrorKind::InvalidAudience => Unauthenticated::Audience(self.audience.clone()),
            ErrorKind::InvalidIssuer => Unauthenticated::Issuer(self.issuer.clone().unwrap_or_default()),
            ErrorKind::MissingRequiredClaim(claim) => Unauthenticated::Claim(match claim.as_str() {
                "exp" => "exp",
                "aud" => "aud",
                "iss" => "iss",
                _ => "sub",
            }),
            _ => Unauthenticated::Malformed,
        })
    }

    fn admit(&self, claims: Claims) -> Result<Caller, Unauthenticated> {
        let kubernetes = claims.kubernetes.ok_or(Unauthenticated::Claim("kubernetes.io"))?;
        let Kubernetes { namespace, serviceaccount, node, pod } = kubernetes;
        let account = ServiceAccount { namespace, name: serviceaccount.name };
        // Both are the issuer's word; where they differ, it is no token that Kubernetes made.
        if claims.sub != account.subject() {
            return Err(Unauthenticated::Claim("sub of that service account"));
        }
        if !self.agents.contains(&account) {
            return Err(Unauthenticated::NoAgent(account));
        }
        let node =
            node.ok_or(Unauthenticated::Claim("kubernetes.io/node (Kubernetes 1.30 or later sets it)"))?;
        if node.name.is_empty() || node.name.len() > MAX_NODE_NAME {
            return Err(Unauthenticated::Claim("kubernetes.io/node/name of a node"));
        }
        Ok(Caller { account, node: node.name.into(), pod: pod.map(|pod| pod.name) })
    }
}

impl Caller {
    /// Returns the caller's own identity.
    pub(super) fn identity(&self, trust_domain: &TrustDomain) -> Option<Identity> {
        Identity::new(trust_domain.clone(), &self.account.namespace, &self.account.name).ok()
    }
}

impl ServiceAccount {
    /// Returns its name as a user's, as Kubernetes writes it.
    pub(super) fn subject(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
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

/// What Kubernetes says in a service account token.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<Kubernetes>,
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: String,
    serviceaccount: Named,
    node: Option<Named>,
    pod: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

/// How far apart the clocks of the API server and of this machine may be, in seconds.
const LEEWAY: u64 = 10;
/// The longest name that a Kubernetes object has.
const MAX_NODE_NAME: usize = 253;
