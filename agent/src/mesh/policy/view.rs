//! A connection as the rules look at it, or what is known of one before it is there.

use std::net::IpAddr;

use super::Connection;
use crate::mesh::Identity;

/// What the fields of policies are compared with.
#[derive(Clone, Debug)]
pub(super) struct View<'a> {
    /// None: the connection is plaintext.
    pub(super) caller: Option<Caller<'a>>,
    /// Canonical. None: it may be any.
    pub(super) source: Option<IpAddr>,
    /// Canonical. None: it may be any.
    pub(super) destination: Option<IpAddr>,
    /// None: one that no policy mentions.
    pub(super) port: Option<u16>,
}

/// Who connects, in the forms that policies write.
#[derive(Clone, Debug)]
pub(super) struct Caller<'a> {
    pub(super) identity: &'a Identity,
    /// Without `spiffe://`.
    pub(super) principal: String,
    /// `namespace/service account`.
    pub(super) account: String,
}

impl<'a> View<'a> {
    pub(super) fn of(connection: &Connection<'a>) -> Self {
        Self {
            caller: connection.identity.map(Caller::new),
            source: Some(connection.source.to_canonical()),
            destination: Some(connection.destination.ip().to_canonical()),
            port: Some(connection.destination.port()),
        }
    }

    /// Plaintext from anywhere to a port of a pod, at whichever of its addresses: what the pod's status says of them may
    /// be behind.
    pub(super) fn plaintext(port: Option<u16>) -> Self {
        Self { caller: None, source: None, destination: None, port }
    }
}

impl<'a> Caller<'a> {
    fn new(identity: &'a Identity) -> Self {
        let (namespace, account) = (identity.namespace(), identity.service_account());
        Self {
            identity,
            principal: format!("{}/ns/{namespace}/sa/{account}", identity.trust_domain()),
            account: format!("{namespace}/{account}"),
        }
    }
}
