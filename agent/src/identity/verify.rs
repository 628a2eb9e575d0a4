//! The two verifiers that rustls calls in a handshake: the chain first, through webpki, then the SPIFFE ID.
//!
//! The ID comes second so that its refusal speaks of a certificate that one of our roots really signed.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::verify_tls13_signature,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use super::{
    spiffe::Expected,
    tls::provider,
    trust::{Trust, Usage},
};

/// Accepts the peers that `expected` names, by certificates that a root in `trust` vouches for.
///
/// A refusal travels inside rustls' own error as a [`super::TlsError`]; where the identity is refused, the alert that the peer
/// gets is certificate_unknown, as from ztunnel.
#[derive(Clone, Debug)]
pub(super) struct SpiffeVerifier {
    trust: Trust,
    expected: Expected,
}

impl SpiffeVerifier {
    /// Makes a verifier.
    pub(super) fn new(trust: Trust, expected: Expected) -> Self {
        Self { trust, expected }
    }

    fn check(
        &self,
        usage: Usage,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let bundle = Arc::clone(&self.trust.borrow());
        let checked = bundle.verify(usage, (leaf, intermediates), now).map(drop);
        let checked = checked.and_then(|()| Ok(self.expected.check(leaf).map(drop)?));
        checked.map_err(|error| error.into_rustls(now))
    }
}

impl ServerCertVerifier for SpiffeVerifier {
    /// The server's name is not looked at: a mesh peer is dialled by address, and known by its SPIFFE ID alone.
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(Usage::Server, end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12_refused())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for SpiffeVerifier {
    /// Empty, as the hints of the roots' names would be: see [`super::TrustBundle`].
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(Usage::Client, end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12_refused())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn check_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
}

/// TLS 1.2 is not negotiated at all, so rustls never asks for its signatures.
fn tls12_refused() -> Error {
    Error::PeerIncompatible(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig)
}
