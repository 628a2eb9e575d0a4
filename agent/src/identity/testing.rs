//! An authority for tests that signs whatever it is told to, and the handshakes of the result.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData,
    RevokedCertParams, SanType,
};
use rustls::{
    crypto::aws_lc_rs::sign::any_ecdsa_type,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::sync::watch;

use super::{Trust, TrustBundle};
use crate::mesh::Identity;

pub(super) const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
pub(super) const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
pub(super) const HOUR: Duration = Duration::from_secs(3600);

pub(super) fn identity(text: &str) -> Identity {
    text.parse().expect("a valid identity")
}

/// A root that signs leaves itself.
#[derive(Debug)]
pub(super) struct TestRoot {
    issuer: Issuer<'static, KeyPair>,
    pub(super) certificate: CertificateDer<'static>,
}

impl TestRoot {
    pub(super) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap().into();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    pub(super) fn trust(&self) -> Trust {
        let bundle = TrustBundle::new(vec![self.certificate.clone()]).unwrap();
        watch::channel(Arc::new(bundle)).1
    }

    /// Signs a revocation list of these serial numbers, in PEM.
    pub(super) fn crl(&self, revoked: &[u64], next_update: SystemTime) -> String {
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: SystemTime::now().into(),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: (SystemTime::now() - 2 * HOUR).into(),
            next_update: next_update.into(),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// Signs for `key`.
    pub(super) fn sign(&self, leaf: &CertificateParams, key: &impl PublicKeyData) -> CertificateDer<'static> {
        leaf.signed_by(key, &self.issuer).unwrap().into()
    }

    /// Makes a key and signs for it.
    pub(super) fn issue(&self, leaf: &CertificateParams) -> Arc<SingleCertAndKey> {
        let key = KeyPair::generate().unwrap();
        present(self.sign(leaf, &key), &key)
    }

    /// Signs for a key that whoever presents the certificate does not have: anybody can see a certificate.
    pub(super) fn issue_stolen(&self, leaf: &CertificateParams) -> Arc<SingleCertAndKey> {
        present(self.sign(leaf, &KeyPair::generate().unwrap()), &KeyPair::generate().unwrap())
    }
}

fn present(certificate: CertificateDer<'static>, key: &KeyPair) -> Arc<SingleCertAndKey> {
    let pkcs8 = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der()));
    let signer = any_ecdsa_type(&pkcs8).unwrap();
    Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![certificate], signer)))
}

/// What a good certificate of `spiffe_id` has in it; tests spoil it.
pub(super) fn leaf(spiffe_id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(spiffe_id)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = (SystemTime::now() - HOUR).into();
    params.not_after = (SystemTime::now() + HOUR).into();
    params
}

pub(super) fn uri(text: &str) -> SanType {
    SanType::URI(text.to_owned().try_into().unwrap())
}

pub(super) fn dns(text: &str) -> SanType {
    SanType::DnsName(text.to_owned().try_into().unwrap())
}
