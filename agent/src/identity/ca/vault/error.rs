//! Why Vault cannot be used, or did not sign, with what to do about it.

use std::{error::Error, io, path::PathBuf, sync::Arc, time::Duration};

use http::StatusCode;
use rustls::CertificateError;

use crate::identity::{spiffe::shorten, trust::TrustError};

/// Why Vault cannot be used, or did not sign.
#[derive(Clone, Debug, thiserror::Error)]
pub enum VaultError {
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// A file does not hold what it should.
    #[error("{}: {problem}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// There is nothing to check Vault's certificate with.
    #[error("{0} needs the roots that vouch for Vault's own certificate: name their file (--vault-ca)")]
    NoVaultCa(String),
    /// No connection, or TLS failed.
    #[error("Vault cannot be reached at {address}: {problem}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        problem: String,
    },
    /// No answer in time.
    #[error("Vault did not answer {request} within {}", humantime::format_duration(*.limit))]
    Slow {
        /// What was asked.
        request: String,
        /// How long it had.
        limit: Duration,
    },
    /// Vault answered with an error.
    #[error("Vault answered {request} with {}{}: {remedy}", .status.as_u16(), bracketed(.said))]
    Refused {
        /// What was asked.
        request: String,
        /// The HTTP status.
        status: StatusCode,
        /// Vault's own words, bounded.
        said: String,
        /// What to do.
        remedy: String,
    },
    /// What came back is not what Vault's API promises.
    #[error("{request} was answered with something that is not Vault's: {problem}; is the address right?")]
    Garbage {
        /// What was asked.
        request: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A standby node names another one that is not followed.
    #[error("Vault answered {request} with a redirection that is not followed: {problem}")]
    Redirect {
        /// What was asked.
        request: String,
        /// Why not.
        problem: String,
    },
    /// The mount has no roots, or none that can be used.
    #[error(
        "the mount {mount} tells no root certificates to trust: {problem}; name a file of roots (--ca-roots)"
    )]
    Roots {
        /// The mount.
        mount: String,
        /// Why.
        problem: String,
    },
    /// A file's root certificates cannot be used.
    #[error("{}: {source}", .path.display())]
    RootsFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: TrustError,
    },
}

impl VaultError {
    /// Whether Vault refused the token: a new one may help.
    pub(super) fn is_forbidden(&self) -> bool {
        matches!(self, Self::Refused { status: StatusCode::FORBIDDEN, .. })
    }

    /// Returns the error with another remedy than the one that goes for every request, where Vault refused.
    pub(super) fn remedied(self, find: impl FnOnce(StatusCode) -> Option<String>) -> Self {
        match self {
            Self::Refused { request, status, said, remedy } => {
                let remedy = find(status).unwrap_or(remedy);
                Self::Refused { request, status, said, remedy }
            }
            other => other,
        }
    }
}

/// What Vault's statuses mean for any request
/// (<https://developer.hashicorp.com/vault/api-docs#http-status-codes>).
pub(super) fn remedy(status: StatusCode) -> &'static str {
    match status {
        StatusCode::FORBIDDEN => "the token is expired, or its policies do not allow this path",
        StatusCode::NOT_FOUND => "nothing is mounted there: check mount and namespace",
        StatusCode::TOO_MANY_REQUESTS => {
            "a quota limits the rate of requests: raise it, or lengthen certificates' lives"
        }
        StatusCode::SERVICE_UNAVAILABLE => "it is sealed, or has no active node: unseal it (vault status)",
        status if status.is_server_error() => "its own log says more",
        _ => "Vault does not do what was asked of it",
    }
}

/// Describes a failed connection by its innermost cause; what hyper wraps around it says nothing more.
pub(super) fn connection_problem(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(inner) = wrapped(innermost).or_else(|| innermost.source()) {
        innermost = inner;
    }
    match innermost.downcast_ref() {
        Some(tls) => tls_problem(tls),
        None => shorten(innermost.to_string()),
    }
}

/// An I/O error's source is the source of what it wraps, so what it wraps has to be asked for.
fn wrapped<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    let inner = error.downcast_ref::<io::Error>()?.get_ref()?;
    Some(inner)
}

fn tls_problem(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "none of the roots in --vault-ca signed its certificate".to_owned(),
        other => format!("TLS failed: {}", shorten(other.to_string())),
    }
}

fn bracketed(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

/// Bounds Vault's words, and keeps them on one line of a log.
pub(super) fn quoted(texts: &[String]) -> String {
    let words = texts.iter().flat_map(|text| text.split(|c: char| c.is_whitespace() || c.is_control()));
    shorten(words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vaults_words_stay_on_one_line_and_short() {
        let texts = ["1 error occurred:\n\t* no\r\n\u{1b}[31mrole \"a\"".to_owned(), "b".to_owned()];
        assert_eq!(quoted(&texts), "1 error occurred: * no [31mrole \"a\" b");
        assert!(quoted(&["é ".repeat(100_000)]).chars().count() < 300);
    }
}
