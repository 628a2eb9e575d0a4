//! What is in the certificates that an authority in a directory makes.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::ServerName;
use time::OffsetDateTime;

use crate::mesh::{Identity, TrustDomain};

/// A root's: it signs intermediates.
pub(super) fn root(trust_domain: &TrustDomain, until: SystemTime) -> Result<CertificateParams, rcgen::Error> {
    authority("root", trust_domain, until, BasicConstraints::Unconstrained)
}

/// An intermediate's: it signs workloads, never another authority (path length 0, RFC 5280 §4.2.1.9).
pub(super) fn intermediate(
    trust_domain: &TrustDomain,
    until: SystemTime,
) -> Result<CertificateParams, rcgen::Error> {
    authority("intermediate", trust_domain, until, BasicConstraints::Constrained(0))
}

/// A workload's certificate: an X.509-SVID (§4 and §5 of its standard) that is good for both ends of a connection.
pub(super) fn leaf(identity: &Identity, until: SystemTime) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    complete(&mut params, until);
    Ok(params)
}

/// A server's certificate, by the names that clients know it by.
pub(super) fn server(names: &[ServerName<'_>], until: SystemTime) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let name = |name: &ServerName<'_>| match name {
        ServerName::IpAddress(address) => Ok(SanType::IpAddress((*address).into())),
        name => Ok(SanType::DnsName(name.to_str().into_owned().try_into()?)),
    };
    params.subject_alt_names = names.iter().map(name).collect::<Result<_, rcgen::Error>>()?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    complete(&mut params, until);
    Ok(params)
}

/// When a lifetime that begins now ends; none where it is zero, or leads beyond the last moment that a certificate can
/// name (RFC 5280 §4.1.2.5): 9999-12-31T23:59:59Z.
pub(super) fn end_of(lifetime: Duration) -> Option<SystemTime> {
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    SystemTime::now().checked_add(lifetime).filter(|until| !lifetime.is_zero() && *until <= last)
}

fn authority(
    role: &str,
    trust_domain: &TrustDomain,
    until: SystemTime,
    constraint: BasicConstraints,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Culvert");
    // A name of its own: two authorities of one name make verifiers speak of a wrong signature where the truth is
    // an unknown root.
    let name = format!("Culvert {role} {:08x}", rand::random::<u32>());
    params.distinguished_name.push(DnType::CommonName, name);
    // X.509-SVID §3.2: the SPIFFE ID of a signing certificate is the trust domain's.
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.is_ca = IsCa::Ca(constraint);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    complete(&mut params, until);
    Ok(params)
}

fn complete(params: &mut CertificateParams, until: SystemTime) {
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(random_serial());
    let now = SystemTime::now();
    // Who renews at the middle between both dates, as ztunnel does, would renew a short-lived one without end.
    let backdate = BACKDATE.min(until.duration_since(now).unwrap_or_default() / 2);
    params.not_before = OffsetDateTime::from(now - backdate);
    params.not_after = OffsetDateTime::from(until);
}

/// 16 random bytes, but for the sign, which must be positive (RFC 5280 §4.1.2.2), and the bit after it, which keeps
/// the number from being zero.
fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// How far back certificates are dated, for peers whose clocks run behind ours. Kubernetes' own signer takes as much
/// (`pkg/controller/certificates/signer/signer.go`).
const BACKDATE: Duration = Duration::from_secs(5 * 60);
