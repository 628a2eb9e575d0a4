//! The roots that are trusted, and the check of a chain against them.

use std::{fmt, sync::Arc};

use rustls::{
    RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    pki_types::{CertificateDer, UnixTime, pem::PemObject as _},
    server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio::sync::watch;

use super::tls::provider;

/// The bundle that is in force now. Verifiers look at it in each handshake, so a change needs no new configuration.
pub type Trust = watch::Receiver<Arc<TrustBundle>>;

/// A set of root certificates; never empty.
pub struct TrustBundle {
    certificates: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
}

/// Why certificates are no trust bundle.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TrustError {
    /// The PEM text is broken.
    #[error("the root certificates are not valid PEM: {0}")]
    Pem(String),
    /// One of the certificates is no usable root.
    #[error("a root certificate cannot be used: {0}")]
    Root(rustls::Error),
    /// There is no certificate.
    #[error("there is no root certificate: nobody could be trusted")]
    Empty(#[source] VerifierBuilderError),
}

impl TrustBundle {
    /// Makes a bundle of root certificates.
    ///
    /// # Errors
    /// Where there is none, or one cannot be parsed.
    pub fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots.add(certificate.clone()).map_err(TrustError::Root)?;
        }
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider())
            // A workload has one certificate: hints only make the handshake longer.
            .clear_root_hint_subjects()
            .build()
            .map_err(TrustError::Empty)?;
        Ok(Self { certificates, roots, clients })
    }

    /// Makes a bundle of concatenated PEM certificates.
    ///
    /// # Errors
    /// Where the text is no PEM, has no certificate in it, or one that cannot be parsed.
    pub fn from_pem(pem: &[u8]) -> Result<Self, TrustError> {
        let certificates = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|e| TrustError::Pem(e.to_string()))?;
        Self::new(certificates)
    }

    /// Returns the root certificates.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// Returns the roots as rustls has them, for a server that is known by its DNS name.
    pub(super) fn store(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }

    /// Checks that a chain ends at one of the roots and may be used by a TLS server at `now`.
    pub(super) fn verify_server(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(leaf)?,
            &self.roots,
            intermediates,
            now,
            provider().signature_verification_algorithms.all,
        )
    }

    /// Checks that a chain ends at one of the roots and may be used by a TLS client at `now`.
    pub(super) fn verify_client(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        self.clients.verify_client_cert(leaf, intermediates, now).map(drop)
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustBundle").field("certificates", &self.certificates.len()).finish_non_exhaustive()
    }
}
