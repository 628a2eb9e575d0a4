//! Where an authority listens.

use std::{fmt, str::FromStr};

use http::Uri;
use rustls::pki_types::ServerName;

/// The address of an authority: `https://host:port`. A token goes there, so there is no other scheme.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CaAddress {
    host: String,
    port: u16,
}

/// Why a text is no address of an authority.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is no address of an authority: it has the form https://host:port, without a path")]
pub struct CaAddressError(String);

impl CaAddress {
    /// Returns the host as it is looked up: a name, or an IP address without brackets.
    pub(super) fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Returns the TCP port.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Returns the name that the server's certificate is to have.
    pub(super) fn server_name(&self) -> ServerName<'static> {
        ServerName::try_from(self.host().to_owned()).expect("checked when the address was parsed")
    }

    /// Returns the start of every request's URI.
    pub(super) fn origin(&self) -> Uri {
        self.to_string().parse().expect("checked when the address was parsed")
    }
}

impl FromStr for CaAddress {
    type Err = CaAddressError;

    fn from_str(text: &str) -> Result<Self, CaAddressError> {
        let error = || CaAddressError(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| error())?;
        let authority = uri.authority().ok_or_else(error)?;
        let fits = uri.scheme_str() == Some("https")
            && matches!(uri.path(), "" | "/")
            && uri.query().is_none()
            && !authority.as_str().contains('@');
        let address =
            Self { host: authority.host().to_owned(), port: authority.port_u16().ok_or_else(error)? };
        let named = ServerName::try_from(address.host()).is_ok();
        if fits && named && address.port != 0 { Ok(address) } else { Err(error()) }
    }
}

impl fmt::Display for CaAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_it_was_parsed() {
        for text in
            ["https://istiod.istio-system.svc:15012", "https://192.0.2.1:443", "https://[fd00::1]:15012"]
        {
            let address: CaAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            assert_eq!(address.origin().authority().unwrap().port_u16(), Some(address.port()));
        }
        let address: CaAddress = "https://[fd00::1]:15012".parse().unwrap();
        assert_eq!(address.host(), "fd00::1");
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "istiod:15012",
            "http://istiod:15012",
            "https://istiod",
            "https://istiod:0",
            "https://istiod:99999",
            "https://istiod:15012/path",
            "https://istiod:15012?query",
            "https://user@istiod:15012",
            "https://:15012",
            "https://a..b:15012",
        ] {
            assert!(text.parse::<CaAddress>().is_err(), "{text:?} was taken for an address");
        }
    }
}
