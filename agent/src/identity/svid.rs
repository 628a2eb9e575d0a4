//! One workload's certificate and key, and the TLS configurations made of them.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::KeyPair;
use rustls::{
    ClientConfig, ServerConfig,
    crypto::aws_lc_rs::sign::any_ecdsa_type,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime},
    sign::{CertifiedKey, SingleCertAndKey},
};

use super::{
    ca::Issued,
    spiffe::{Expected, IdentityRefusal},
    tls::{client_config, server_config},
    tls_error::TlsError,
    trust::{Trust, Usage},
    verify::SpiffeVerifier,
};
use crate::mesh::Identity;

/// An X.509-SVID: the proof of who a workload is. Checked when it was made; [`Self::is_valid_at`] says whether it still is.
pub struct Svid {
    identity: Identity,
    serial: String,
    not_before: SystemTime,
    not_after: SystemTime,
    certificate: Arc<CertifiedKey>,
    client: ClientConfig,
    server: Arc<ServerConfig>,
    trust: Trust,
}

/// Why a certificate that an authority returned is not used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Rejected {
    /// The authority returned nothing.
    #[error("the authority returned no certificate")]
    Empty,
    /// The certificate is for another key than the one it was asked for.
    #[error("the authority returned a certificate for another key")]
    OtherKey,
    /// The key that was made for it cannot be used.
    #[error("the private key cannot be used: {0}")]
    Key(rustls::Error),
    /// A peer would refuse it: chain, validity, usage or identity.
    #[error("the authority returned a certificate that peers would refuse: {0}")]
    Unsound(#[from] TlsError),
}

impl Svid {
    /// Makes an SVID of what an authority returned, after checking it as a peer would check it at both ends of a
    /// connection.
    ///
    /// # Errors
    /// Where the certificate is not for this key and this identity, does not chain to a trusted root, is not valid now,
    /// or may not be used by both a client and a server.
    pub fn new(identity: &Identity, key: &KeyPair, issued: Issued, trust: Trust) -> Result<Self, Rejected> {
        let pkcs8 = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der()));
        let signer = any_ecdsa_type(&pkcs8).map_err(Rejected::Key)?;
        let Issued { chain } = issued;
        let (leaf, intermediates) = chain.split_first().ok_or(Rejected::Empty)?;
        check(identity, leaf, intermediates, &trust)?;
        let (serial, not_before, not_after) =
            facts(leaf).ok_or(TlsError::from(IdentityRefusal::Unreadable))?;
        let certificate = Arc::new(CertifiedKey::new(chain, signer));
        certificate.keys_match().map_err(|_| Rejected::OtherKey)?;

        let resolver = Arc::new(SingleCertAndKey::from(Arc::clone(&certificate)));
        let members = Expected::TrustDomain(identity.trust_domain().clone());
        let client = client_config(Arc::clone(&resolver), trust.clone(), members.clone());
        let server = Arc::new(server_config(resolver, trust.clone(), members));
        Ok(Self {
            identity: identity.clone(),
            serial,
            not_before,
            not_after,
            certificate,
            client,
            server,
            trust,
        })
    }

    /// Returns whose certificate it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns the serial number, in hexadecimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Returns when it becomes valid; whole seconds.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Returns when it expires; whole seconds.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether a peer whose clock says `now` accepts it.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// Checks it once more, as a peer with the trust that is in force now would.
    pub(super) fn check(&self) -> Result<(), TlsError> {
        let (leaf, intermediates) =
            self.chain().split_first().ok_or(TlsError::from(IdentityRefusal::Unreadable))?;
        check(&self.identity, leaf, intermediates, &self.trust)
    }

    /// Returns the certificates as they are sent: the workload's first, then the intermediates, without the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certificate.cert
    }

    /// Returns the trust in force, by which its connections judge their peers.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Returns the configuration of a connection to a peer that must be `expect`.
    pub fn client_config(&self, expect: &Identity) -> Arc<ClientConfig> {
        let ours = self.identity.trust_domain().clone();
        let expected = Expected::Workload { ours, identity: Arc::new(expect.clone()) };
        let mut config = self.client.clone();
        config
            .dangerous()
            .set_certificate_verifier(Arc::new(SpiffeVerifier::new(self.trust.clone(), expected)));
        Arc::new(config)
    }

    /// Returns the configuration of accepted connections: any peer of our trust domain may finish the handshake.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("identity", &self.identity)
            .field("serial", &self.serial)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Checks a chain as a peer does: once as that of a server, once as that of a client.
pub(super) fn check(
    identity: &Identity,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    trust: &Trust,
) -> Result<(), TlsError> {
    let bundle = Arc::clone(&trust.borrow());
    let now = UnixTime::now();
    for usage in [Usage::Server, Usage::Client] {
        bundle.verify(usage, (leaf, intermediates), now)?;
    }
    let ours = identity.trust_domain().clone();
    Expected::Workload { ours, identity: Arc::new(identity.clone()) }.check(leaf)?;
    Ok(())
}

/// Serial number and validity of a certificate.
pub(super) fn facts(leaf: &CertificateDer<'_>) -> Option<(String, SystemTime, SystemTime)> {
    let (_, leaf) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let at = |time: i64| Some(UNIX_EPOCH + Duration::from_secs(time.try_into().ok()?));
    let serial = leaf.raw_serial_as_string();
    Some((serial, at(leaf.validity().not_before.timestamp())?, at(leaf.validity().not_after.timestamp())?))
}
