//! SPIFFE identities as the mesh uses them: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

use std::{fmt, str::FromStr, sync::Arc};

/// A SPIFFE trust domain, such as `cluster.local`.
///
/// Lower-case letters, digits, `.`, `-` and `_`, at most 255 bytes
/// ([SPIFFE-ID §2.1](https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md)).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TrustDomain(Arc<str>);

/// The identity of a workload: its trust domain, namespace and service account. Cheap to clone.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Identity {
    trust_domain: TrustDomain,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

/// Why a text is no identity of this mesh.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum IdentityError {
    /// Not a valid trust domain.
    #[error("{0:?} is not a trust domain: lower-case letters, digits, '.', '-' and '_' only, at most 255")]
    TrustDomain(String),
    /// Not a valid namespace.
    #[error("{0:?} is not a Kubernetes namespace name")]
    Namespace(String),
    /// Not a valid service account.
    #[error("{0:?} is not a Kubernetes service account name")]
    ServiceAccount(String),
    /// Not of the form `spiffe://TD/ns/NS/sa/SA`.
    #[error("{0:?} is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Form(String),
}

impl TrustDomain {
    /// Returns the trust domain's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > 255 || !text.bytes().all(valid) {
            return Err(IdentityError::TrustDomain(text.to_owned()));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Identity {
    /// Makes an identity of its parts.
    ///
    /// # Errors
    /// Where the namespace is no DNS label, or the service account no DNS subdomain
    /// (Kubernetes' own rules for these names).
    pub fn new(
        trust_domain: TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        if namespace.len() > 63 || !is_dns_label(namespace) {
            return Err(IdentityError::Namespace(namespace.to_owned()));
        }
        if service_account.len() > 253 || !service_account.split('.').all(is_dns_label) {
            return Err(IdentityError::ServiceAccount(service_account.to_owned()));
        }
        Ok(Self { trust_domain, namespace: namespace.into(), service_account: service_account.into() })
    }

    /// Returns the trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Returns the namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns the service account's name.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let form = || IdentityError::Form(text.to_owned());
        let mut parts = text.strip_prefix("spiffe://").ok_or_else(form)?.split('/');
        let (Some(trust_domain), Some("ns"), Some(namespace), Some("sa"), Some(account), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(form());
        };
        Self::new(trust_domain.parse()?, namespace, account)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

/// A DNS label as RFC 1123 has it, in lower case; its length is the caller's to check where it matters.
fn is_dns_label(text: &str) -> bool {
    let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.bytes().all(valid) && !text.starts_with('-') && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_it_was_parsed() {
        let text = "spiffe://cluster.local/ns/shop/sa/front.end";
        assert_eq!(text.parse::<Identity>().unwrap().to_string(), text);
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "spiffe://",
            "cluster.local/ns/shop/sa/front",
            "spiffe://cluster.local/ns/shop/sa/",
            "spiffe://cluster.local/ns/shop/sa/front/",
            "spiffe://cluster.local/ns/shop/sa/front/x",
            "spiffe://cluster.local/ns/shop/sa/front?x",
            "spiffe://cluster.local/ns//sa/front",
            "spiffe://Cluster.local/ns/shop/sa/front",
            "spiffe://cluster.local:80/ns/shop/sa/front",
            "spiffe://cluster.local/ns/shop/sa/fr%20ont",
            "spiffe://cluster.local/ns/SHOP/sa/front",
            "SPIFFE://cluster.local/ns/shop/sa/front",
            "spiffe://cluster.local/ns/a.b/sa/front",
            "spiffe://cluster.local/sa/shop/ns/front",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text:?} was taken for an identity");
        }
    }
}
