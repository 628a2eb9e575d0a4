//! The keys that sign tokens: a JSON Web Key Set (RFC 7517) in a file.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde::Deserialize;

/// The keys of a set that this server uses; never empty.
#[derive(Debug)]
pub struct Jwks(Vec<Key>);

/// A key with the one algorithm that it verifies by.
pub(super) struct Key {
    id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

/// Why a file is no set of keys.
#[derive(Debug, thiserror::Error)]
pub enum JwksError {
    /// It cannot be read.
    #[error("the keys of tokens in {} cannot be read: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no key set.
    #[error("{} is no JSON Web Key Set: {source}", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// No key can be used.
    #[error(
        "{} holds no key that can be used: RSA of 2048 bits or more, EC on P-256 and Ed25519 can; `kubectl get --raw \
         /openid/v1/jwks` prints a cluster's",
        .path.display()
    )]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<serde_json::Value>,
}

impl Jwks {
    /// Reads a set. Keys of kinds that are not used here are passed over.
    pub(super) fn read(path: &Path) -> Result<Self, JwksError> {
        let text = fs::read(path).map_err(|source| JwksError::Read { path: path.to_owned(), source })?;
        let KeySet { keys } = serde_json::from_slice(&text)
            .map_err(|source| JwksError::Json { path: path.to_owned(), source })?;
        let usable: Vec<_> = keys.into_iter().filter_map(Key::new).take(MAX_KEYS).collect();
        if usable.is_empty() {
            return Err(JwksError::Empty { path: path.to_owned() });
        }
        Ok(Self(usable))
    }

    /// Whether any key can verify tokens of this algorithm. Not those with a shared secret: who can check such a token
    /// can also make one.
    pub(super) fn takes(algorithm: Algorithm) -> bool {
        matches!(algorithm, Algorithm::RS256 | Algorithm::ES256 | Algorithm::EdDSA)
    }

    /// Returns the keys that may have signed a token: the one that it names, or those of its algorithm.
    pub(super) fn candidates<'a>(
        &'a self,
        id: Option<&'a str>,
        algorithm: Algorithm,
    ) -> impl Iterator<Item = &'a Key> {
        let named = move |key: &&Key| id.is_none_or(|id| key.id.as_deref() == Some(id));
        self.0.iter().filter(named).filter(move |key| key.algorithm == algorithm)
    }
}

impl Key {
    fn new(value: serde_json::Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
            return None;
        }
        let (algorithm, named) = match &jwk.algorithm {
            AlgorithmParameters::RSA(key) if key.n.len() >= MIN_RSA => {
                (Algorithm::RS256, KeyAlgorithm::RS256)
            }
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                (Algorithm::ES256, KeyAlgorithm::ES256)
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
            }
            _ => return None,
        };
        if jwk.common.key_algorithm.as_ref().is_some_and(|algorithm| *algorithm != named) {
            return None;
        }
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        Some(Self { id: jwk.common.key_id, algorithm, key })
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// A modulus of 2048 bits in base64url. The cryptographic library refuses shorter ones too, in each verification.
const MIN_RSA: usize = 342;
/// More keys than a cluster ever has at once: a token without a key's name is tried against all of its algorithm.
const MAX_KEYS: usize = 32;
