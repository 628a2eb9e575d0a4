//! The rustls configurations of the mesh, and who is at the other end of a finished handshake.
//!
//! TLS 1.3 only, by AWS-LC (see [`provider`]), mutual; X25519MLKEM768 preferred, so that what is recorded today stays secret from a
//! quantum computer later. No session resumption, tickets or early data: a resumed session would skip the checks of
//! expiry and roots (RFC 8446 §4.6.1), and early data can be replayed (§8). No SNI: it would tell the wire who is called.

use std::sync::{Arc, LazyLock};

use rustls::{
    ClientConfig, CommonState, ServerConfig, SupportedCipherSuite,
    client::Resumption,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{self, kx_group},
        ring,
    },
    server::NoServerSessionStorage,
    sign::SingleCertAndKey,
    version::TLS13,
};

use super::{
    spiffe::{Expected, identity_of},
    tls_error::TlsError,
    trust::Trust,
    verify::SpiffeVerifier,
};
use crate::mesh::Identity;

/// Returns who the peer of a finished handshake is. A client's peer has been checked against the expected identity, a
/// server's against the trust domain; whether it may do what it asks is policy's to say.
///
/// # Errors
/// Where the handshake is not finished, or the peer's certificate has not exactly one SPIFFE ID: not after a handshake
/// with a configuration of [`super::Svid`].
pub fn peer_identity(connection: &CommonState) -> Result<Identity, TlsError> {
    let leaf = connection.peer_certificates().and_then(<[_]>::first).ok_or(TlsError::NoCertificate)?;
    Ok(identity_of(leaf)?)
}

/// Returns the cryptography of the mesh: explicit, so that it depends on no default of the process or of a library.
///
/// All of it is AWS-LC's, but for AES-GCM where ring is the faster by far: on processors with the wide AES instructions (VAES) and
/// without AVX-512, for which AWS-LC has nothing better than it has for those without either. Records are the same.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: if is_ring_faster() { RING.to_vec() } else { AWS_LC.to_vec() },
            kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
            ..aws_lc_rs::default_provider()
        })
    });
    Arc::clone(&PROVIDER)
}

pub(super) const AWS_LC: [SupportedCipherSuite; 2] =
    [aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384, aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];

pub(super) const RING: [SupportedCipherSuite; 2] =
    [ring::cipher_suite::TLS13_AES_256_GCM_SHA384, ring::cipher_suite::TLS13_AES_128_GCM_SHA256];

/// AWS-LC: crypto/fipsmodule/modes/asm/aesni-gcm-avx512.pl, or else aesni-gcm-x86_64.pl; ring: aes-gcm-avx2-x86_64.pl.
#[cfg(target_arch = "x86_64")]
fn is_ring_faster() -> bool {
    use std::arch::is_x86_feature_detected as has;
    let wide = has!("vaes") && has!("vpclmulqdq") && has!("avx2");
    wide && !(has!("avx512bw") && has!("avx512vl"))
}

#[cfg(not(target_arch = "x86_64"))]
fn is_ring_faster() -> bool {
    false
}

/// Returns the configuration of a client that is `certificate` and expects `expected`.
pub(super) fn client_config(
    certificate: Arc<SingleCertAndKey>,
    trust: Trust,
    expected: Expected,
) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites and groups for TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(SpiffeVerifier::new(trust, expected)))
        .with_client_cert_resolver(certificate);
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    config
}

/// Returns the configuration of a server that is `certificate` and accepts `expected`.
pub(super) fn server_config(
    certificate: Arc<SingleCertAndKey>,
    trust: Trust,
    expected: Expected,
) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites and groups for TLS 1.3")
        .with_client_cert_verifier(Arc::new(SpiffeVerifier::new(trust, expected)))
        .with_cert_resolver(certificate);
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

/// HTTP/2 over TLS (RFC 9113 §3.2): HBONE as every peer speaks it.
pub const ALPN_H2: &[u8] = b"h2";

/// The same, and the peer is a Culvert: it takes a tunnel's first bytes together with the request for it.
pub const ALPN_EARLY: &[u8] = b"culvert/1";

/// What is offered and accepted, the preferred first.
const ALPN: [&[u8]; 2] = [ALPN_EARLY, ALPN_H2];
