//! The roots that are trusted, what is revoked under them, and the check of a chain against both.

use std::{cell::RefCell, fmt, ptr, sync::Arc};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, TrustAnchor, UnixTime, pem::PemObject as _},
};
use tokio::sync::watch;
use webpki::{Cert, EndEntityCert, KeyUsage, VerifiedPath, anchor_from_trusted_cert};

use super::{crl::Crl, key::WeakKey, tls::provider, tls_error::TlsError};

/// The bundle that is in force now. Verifiers look at it in each handshake, so a change needs no new configuration.
pub type Trust = watch::Receiver<Arc<TrustBundle>>;

/// A set of root certificates, never empty, and the revocation lists of them and of the authorities below.
pub struct TrustBundle {
    /// These three go by the same index.
    certificates: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    /// SubjectPublicKeyInfo, in DER.
    keys: Vec<Vec<u8>>,
    lists: Vec<Arc<Crl>>,
}

/// Why certificates are no trust bundle.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TrustError {
    /// The PEM text is broken.
    #[error("the root certificates are not valid PEM: {0}")]
    Pem(String),
    /// One of the certificates is no usable root.
    #[error("a root certificate cannot be used: {0}")]
    Root(String),
    /// There is no certificate.
    #[error("there is no root certificate: nobody could be trusted")]
    Empty,
}

/// Which end of a connection a certificate is for: its extended key usage must allow it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Usage {
    /// The end that accepts (serverAuth).
    Server,
    /// The end that connects (clientAuth).
    Client,
}

impl Usage {
    pub(super) fn end(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }

    pub(super) fn purpose(self) -> &'static str {
        match self {
            Self::Server => "serverAuth",
            Self::Client => "clientAuth",
        }
    }
}

impl TrustBundle {
    /// Makes a bundle of root certificates.
    ///
    /// # Errors
    /// Where there is none, or one cannot be parsed.
    pub fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, TrustError> {
        if certificates.is_empty() {
            return Err(TrustError::Empty);
        }
        let read = certificates.iter().map(read_root).collect::<Result<Vec<_>, _>>()?;
        let (anchors, keys) = read.into_iter().unzip();
        Ok(Self { certificates, anchors, keys, lists: Vec::new() })
    }

    /// Makes a bundle of concatenated PEM certificates. One that is there twice counts once.
    ///
    /// # Errors
    /// Where the text is no PEM, has no certificate in it, or one that cannot be parsed.
    pub fn from_pem(pem: &[u8]) -> Result<Self, TrustError> {
        let mut certificates = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| TrustError::Pem(error.to_string()))?;
            if !certificates.contains(&certificate) {
                certificates.push(certificate);
            }
        }
        Self::new(certificates)
    }

    /// Returns the root certificates.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// Returns the roots as rustls has them, for a server that is known by its DNS name.
    pub(super) fn store(&self) -> Arc<RootCertStore> {
        Arc::new(RootCertStore { roots: self.anchors.clone() })
    }

    /// Returns the same roots with other revocation lists.
    pub(super) fn with_lists(&self, lists: Vec<Arc<Crl>>) -> Self {
        let Self { certificates, anchors, keys, lists: _ } = self;
        Self { certificates: certificates.clone(), anchors: anchors.clone(), keys: keys.clone(), lists }
    }

    /// Returns the revocation lists.
    pub(super) fn lists(&self) -> &[Arc<Crl>] {
        &self.lists
    }

    /// Returns the names and keys of the roots.
    pub(super) fn issuers(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.anchors.iter().map(|anchor| anchor.subject.as_ref()).zip(self.keys.iter().map(Vec::as_slice))
    }

    /// Checks that a chain ends at one of the roots, has nothing revoked in it, and may be used at `now`; returns the
    /// root that it ends at. The identity in it is not looked at.
    ///
    /// # Errors
    /// What is wrong with the chain.
    pub fn verify(
        &self,
        usage: Usage,
        (leaf, intermediates): (&CertificateDer<'_>, &[CertificateDer<'_>]),
        now: UnixTime,
    ) -> Result<&CertificateDer<'static>, TlsError> {
        if intermediates.len() > MAX_INTERMEDIATES {
            return Err(TlsError::ChainTooLong);
        }
        let refused = RefCell::new(None);
        let root = self.build(usage, leaf, intermediates, now, &refused).map_err(|error| {
            let weak = || intermediates.iter().find_map(|der| WeakKey::of(der).err());
            match (TlsError::of_chain(error, usage), refused.into_inner(), weak()) {
                (TlsError::Revoked, Some(refused), _) => refused,
                // A signature by a key that is too weak is never verified.
                (TlsError::UnknownIssuer, _, Some(weak)) => weak,
                (error, ..) => error,
            }
        })?;
        WeakKey::of(leaf)?;
        Ok(&self.certificates[root])
    }

    fn build(
        &self,
        usage: Usage,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        refused: &RefCell<Option<TlsError>>,
    ) -> Result<usize, webpki::Error> {
        let leaf = EndEntityCert::try_from(leaf)?;
        let check = |path: &VerifiedPath<'_>| {
            self.check_revocation(path).map_err(|error| {
                *refused.borrow_mut() = Some(error);
                webpki::Error::CertRevoked
            })
        };
        let path = leaf.verify_for_usage(
            provider().signature_verification_algorithms.all,
            &self.anchors,
            intermediates,
            now,
            match usage {
                Usage::Server => KeyUsage::server_auth(),
                Usage::Client => KeyUsage::client_auth(),
            },
            None,
            Some(&check),
        )?;
        Ok(self.root_of(&path))
    }

    fn root_of(&self, path: &VerifiedPath<'_>) -> usize {
        let position = self.anchors.iter().position(|anchor| ptr::eq(anchor, path.anchor()));
        position.expect("webpki returns one of the anchors that it was given")
    }

    /// Looks for each certificate of a path in the lists of whoever signed it.
    fn check_revocation(&self, path: &VerifiedPath<'_>) -> Result<(), TlsError> {
        if self.lists.is_empty() {
            return Ok(());
        }
        let leaf: &Cert<'_> = path.end_entity();
        let mut certificate = leaf;
        for issuer in path.intermediate_certificates() {
            self.check_certificate(certificate, ptr::eq(certificate, leaf), || {
                issuer.subject_public_key_info().as_ref().to_vec()
            })?;
            certificate = issuer;
        }
        self.check_certificate(certificate, ptr::eq(certificate, leaf), || {
            self.keys[self.root_of(path)].clone()
        })
    }

    fn check_certificate(
        &self,
        certificate: &Cert<'_>,
        is_leaf: bool,
        key: impl FnOnce() -> Vec<u8>,
    ) -> Result<(), TlsError> {
        let mut named = self.lists.iter().filter(|list| list.is_named(certificate.issuer())).peekable();
        if named.peek().is_none() {
            return Ok(());
        }
        let key = key();
        // All are asked for their signature, so that each comes to know whose it is.
        let signed: Vec<_> = named.filter(|list| list.is_signed_by(&key)).collect();
        let revoked = signed.iter().any(|list| list.revokes(certificate.serial()));
        match (revoked, is_leaf) {
            (false, _) => Ok(()),
            (true, true) => Err(TlsError::Revoked),
            (true, false) => Err(TlsError::revoked_authority(&certificate.der())),
        }
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustBundle")
            .field("certificates", &self.certificates.len())
            .field("revocation_lists", &self.lists.len())
            .finish_non_exhaustive()
    }
}

/// Waits for a change of trust; for ever where there will be none.
pub(super) async fn changed(trust: &mut Trust) {
    if trust.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Returns a root as webpki wants it, and its key.
fn read_root(certificate: &CertificateDer<'static>) -> Result<(TrustAnchor<'static>, Vec<u8>), TrustError> {
    let anchor =
        anchor_from_trusted_cert(certificate).map_err(|error| TrustError::Root(error.to_string()))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| TrustError::Root(error.to_string()))?;
    Ok((anchor.to_owned(), parsed.public_key().raw.to_vec()))
}

/// Certificates between a workload's and the root: meshes have one or two, and webpki follows six.
const MAX_INTERMEDIATES: usize = 6;
