//! The check of what an authority returns, for whoever passes it on instead of using it.

use std::time::SystemTime;

use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer as _};

use super::{Csr, Issued};
use crate::{
    identity::{
        spiffe::IdentityRefusal,
        svid::{Rejected, check, facts},
        tls_error::TlsError,
        trust::Trust,
    },
    mesh::Identity,
};

/// What a certificate says of itself.
#[derive(Clone, Debug)]
pub struct IssuedFacts {
    /// The serial number, in hexadecimal.
    pub serial: String,
    /// When it expires.
    pub not_after: SystemTime,
}

impl Issued {
    /// Checks the chain as a peer would at both ends of a connection, and that it is for the key of `csr`.
    ///
    /// # Errors
    /// Where it is for another key or another identity, does not chain to a trusted root, is not valid now, or may not
    /// be used by both a client and a server.
    pub fn check(&self, csr: &Csr, identity: &Identity, trust: &Trust) -> Result<IssuedFacts, Rejected> {
        let (leaf, intermediates) = self.chain.split_first().ok_or(Rejected::Empty)?;
        check(identity, leaf, intermediates, trust)?;
        let unreadable = || TlsError::from(IdentityRefusal::Unreadable);
        let (_, certificate) = x509_parser::parse_x509_certificate(leaf).map_err(|_| unreadable())?;
        let (_, request) = X509CertificationRequest::from_der(csr.der()).map_err(|_| Rejected::OtherKey)?;
        if certificate.public_key().raw != request.certification_request_info.subject_pki.raw {
            return Err(Rejected::OtherKey);
        }
        let (serial, _, not_after) = facts(leaf).ok_or_else(unreadable)?;
        Ok(IssuedFacts { serial, not_after })
    }
}
