//! Tokens that are checked here, without an API server: by the keys that sign them.
//!
//! That a token's pod has been deleted meanwhile is not known here: it is good until it expires.

use std::path::PathBuf;

use jsonwebtoken::{Validation, decode, decode_header, errors::ErrorKind};
use serde::Deserialize;

use super::{
    caller::{Caller, ServiceAccount, Unauthenticated},
    jwks::{Jwks, JwksError, Key},
};
use crate::identity::{FileState, Followed};

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

/// Tells callers by tokens that it checks itself.
#[derive(Clone, Debug)]
pub struct SignedTokens {
    keys: Followed<Jwks>,
    audience: String,
    issuer: Option<String>,
    agents: Vec<ServiceAccount>,
}

impl SignedTokens {
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
        let account = ServiceAccount::new(namespace, serviceaccount.name);
        // Both are the issuer's word; where they differ, it is no token that Kubernetes made.
        if claims.sub != account.subject() {
            return Err(Unauthenticated::Claim("sub of that service account"));
        }
        if !self.agents.contains(&account) {
            return Err(Unauthenticated::NoAgent(account));
        }
        let node =
            node.ok_or(Unauthenticated::Claim("kubernetes.io/node (Kubernetes 1.30 or later sets it)"))?;
        Caller::new(account, &node.name, pod.map(|pod| pod.name))
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
