//! Where Vault is, and the names in its paths.

use std::{fmt, net::IpAddr, str::FromStr};

use http::Uri;
use serde::Deserialize;

/// Where Vault answers: `https://host[:port]`, or `http://` on this machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VaultAddress {
    scheme: Scheme,
    authority: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Scheme {
    Http,
    Https,
}

/// A name in one of Vault's paths: a mount, a role or a namespace, such as `pki` or `teams/mesh`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub struct VaultPath(String);

/// Why a text is no address of Vault or no name in it.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum VaultNameError {
    /// Not an address.
    #[error("{0:?} is not an address of Vault: https://HOST[:PORT], without a path")]
    Address(String),
    /// Plaintext to another machine: tokens and certificates would be anybody's to read and to change.
    #[error(
        "{0:?} is plaintext: http:// is for an address of this machine (127.0.0.1, [::1], localhost) only; use https://"
    )]
    Plaintext(String),
    /// Not a name.
    #[error("{0:?} is not a name in Vault: letters, digits, '-', '_' and '.', in parts divided by '/'")]
    Name(String),
}

impl VaultAddress {
    /// Whether TLS protects what is sent there.
    pub(super) fn is_tls(&self) -> bool {
        self.scheme == Scheme::Https
    }

    /// Returns the address of `path`, which begins with `/`.
    pub(super) fn at(&self, path: &str) -> Result<Uri, http::Error> {
        Uri::builder()
            .scheme(self.scheme.as_str())
            .authority(self.authority.as_str())
            .path_and_query(path)
            .build()
    }
}

impl Scheme {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

impl TryFrom<&Uri> for VaultAddress {
    type Error = VaultNameError;

    /// Takes scheme, host and port; the path is the caller's.
    fn try_from(uri: &Uri) -> Result<Self, VaultNameError> {
        let wrong = || VaultNameError::Address(uri.to_string());
        let authority =
            uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(wrong)?;
        let scheme = match uri.scheme_str() {
            Some("https") => Scheme::Https,
            Some("http") if is_local(authority.host()) => Scheme::Http,
            Some("http") => return Err(VaultNameError::Plaintext(uri.to_string())),
            _ => return Err(wrong()),
        };
        Ok(Self { scheme, authority: authority.to_string() })
    }
}

impl FromStr for VaultAddress {
    type Err = VaultNameError;

    fn from_str(text: &str) -> Result<Self, VaultNameError> {
        let wrong = || VaultNameError::Address(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        if uri.path().trim_end_matches('/').is_empty() && uri.query().is_none() {
            Self::try_from(&uri)
        } else {
            Err(wrong())
        }
    }
}

impl fmt::Display for VaultAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority)
    }
}

impl VaultPath {
    /// Returns the name, without `/` at its ends.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VaultPath {
    type Err = VaultNameError;

    fn from_str(text: &str) -> Result<Self, VaultNameError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        // Vault has no path that ends in a period, and `..` would name another one.
        let part = |part: &str| !part.is_empty() && !part.ends_with('.') && part.bytes().all(allowed);
        let name = text.trim_matches('/');
        if name.split('/').all(part) {
            Ok(Self(name.to_owned()))
        } else {
            Err(VaultNameError::Name(text.to_owned()))
        }
    }
}

impl TryFrom<String> for VaultPath {
    type Error = VaultNameError;

    fn try_from(text: String) -> Result<Self, VaultNameError> {
        text.parse()
    }
}

impl fmt::Display for VaultPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_local(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let parsed = text.parse::<VaultAddress>();
        let text = parsed.map_or_else(|error| error.to_string(), |address| address.to_string());
        assert!(text.contains(expected), "{text}, not {expected}");
    }

    #[test]
    fn address_is_scheme_host_and_port() {
        check("https://vault.example:8200", "https://vault.example:8200");
        check("https://vault.example/", "https://vault.example");
        check("https://[2001:db8::1]:8200", "https://[2001:db8::1]:8200");
        for wrong in [
            "vault.example:8200",
            "vault",
            "",
            "ftp://vault",
            "https://vault/v1",
            "https://vault/?a",
            "https://a@b",
        ] {
            check(wrong, "is not an address of Vault");
        }
    }

    #[test]
    fn plaintext_never_leaves_the_machine() {
        for local in ["http://127.0.0.1:8200", "http://[::1]:8200", "http://localhost:8200"] {
            check(local, local);
        }
        for other in [
            "http://vault:8200/",
            "http://192.0.2.1/",
            "http://localhost.example/",
            "http://127.0.0.1.example/",
        ] {
            check(other, "is plaintext");
        }
    }

    #[test]
    fn names_lead_nowhere_else() {
        assert_eq!("/teams/mesh_1/".parse::<VaultPath>().unwrap().as_str(), "teams/mesh_1");
        for wrong in ["", "/", "..", "pki/../sys", "pki//x", "pki?x", "pki x", "pki%2f", "pki\n", "pki."] {
            assert!(wrong.parse::<VaultPath>().is_err(), "{wrong:?}");
        }
    }
}
