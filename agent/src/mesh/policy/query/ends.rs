//! The two ends of a connection that somebody asks about, and the words for them.

use std::{net::IpAddr, str::FromStr};

use super::QueryError;
use crate::mesh::{Identity, PodName};

/// Who connects: `namespace/pod`, `spiffe://…`, an address, or one of the first two with `@address`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Client {
    /// A pod, with its identity where it speaks mutual TLS.
    Pod {
        /// Which one.
        name: PodName,
        /// Which of its addresses; a pod that has none of its own needs one.
        address: Option<IpAddr>,
    },
    /// Whoever has proved to be this.
    Identity {
        /// Who.
        identity: Identity,
        /// From where; else from where the first enrolled pod of that identity is.
        address: Option<IpAddr>,
    },
    /// Plaintext from an address.
    Address(IpAddr),
}

/// What is connected to: `namespace/pod:port`, or `namespace/pod@address:port`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Server {
    /// The pod.
    pub pod: PodName,
    /// Which of its addresses.
    pub address: Option<IpAddr>,
    /// The application's port.
    pub port: u16,
}

impl FromStr for Client {
    type Err = QueryError;

    fn from_str(text: &str) -> Result<Self, QueryError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        let form = || QueryError::Client(text.to_owned());
        let (who, address) = split_address(text).ok_or_else(form)?;
        if who.starts_with("spiffe://") {
            return Ok(Self::Identity { identity: who.parse()?, address });
        }
        Ok(Self::Pod { name: who.parse().map_err(|_| form())?, address })
    }
}

impl FromStr for Server {
    type Err = QueryError;

    fn from_str(text: &str) -> Result<Self, QueryError> {
        let form = || QueryError::Server(text.to_owned());
        let (rest, port) = text.rsplit_once(':').ok_or_else(form)?;
        let (pod, address) = split_address(rest).ok_or_else(form)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(form)?;
        Ok(Self { pod: pod.parse().map_err(|_| form())?, address, port })
    }
}

impl FromStr for PodName {
    type Err = QueryError;

    fn from_str(text: &str) -> Result<Self, QueryError> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.into(), name: name.into() })
            }
            _ => Err(QueryError::PodName(text.to_owned())),
        }
    }
}

/// Splits `…@address`; none where what follows the `@` is no address.
fn split_address(text: &str) -> Option<(&str, Option<IpAddr>)> {
    let Some((rest, address)) = text.rsplit_once('@') else { return Some((text, None)) };
    let bare = address.strip_prefix('[').and_then(|address| address.strip_suffix(']')).unwrap_or(address);
    Some((rest, Some(bare.parse::<IpAddr>().ok()?.to_canonical())))
}
