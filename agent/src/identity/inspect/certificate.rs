//! One certificate by itself.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use x509_parser::{
    prelude::X509Certificate,
    public_key::PublicKey,
    x509::{AlgorithmIdentifier, SubjectPublicKeyInfo},
};

use super::{Section, names};
use crate::{
    identity::{
        at::{At, span},
        certificate::CertificateFacts,
        spiffe::single_uri,
    },
    mesh::{Identity, TrustDomain},
};

/// A certificate of the file.
pub(super) struct Certificate<'a> {
    /// Its place among the sections.
    pub(super) at: usize,
    pub(super) der: CertificateDer<'a>,
    pub(super) parsed: X509Certificate<'a>,
    pub(super) role: Role,
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Role {
    Workload,
    Intermediate,
    Root,
}

impl<'a> Certificate<'a> {
    /// Parses one, and says what can be said of it alone; none where it cannot be parsed.
    pub(super) fn read(at: usize, der: &'a [u8], section: &mut Section, now: SystemTime) -> Option<Self> {
        let parsed = match x509_parser::parse_x509_certificate(der) {
            Ok((_, parsed)) => parsed,
            Err(error) => {
                section.problem(format!("it is not a certificate that can be parsed: {error}"));
                return None;
            }
        };
        let certificate = Self { at, der: CertificateDer::from(der), role: Role::of(&parsed), parsed };
        certificate.explain(section, now);
        Some(certificate)
    }

    /// Whether `child` says that this one signed it, and so it is.
    pub(super) fn signed(&self, child: &X509Certificate<'_>) -> bool {
        signed(&self.parsed, child)
    }

    fn explain(&self, section: &mut Section, now: SystemTime) {
        let facts = CertificateFacts::of(&self.der, &self.parsed);
        section.title = format!(
            "{}. {}",
            self.at + 1,
            match self.role {
                Role::Workload => "workload certificate",
                Role::Intermediate => "intermediate certificate of an authority",
                Role::Root => "root certificate of an authority",
            }
        );
        if !facts.subject.is_empty() {
            section.fact("subject", facts.subject);
        }
        match self.role {
            Role::Workload => self.explain_workload(section),
            Role::Intermediate | Role::Root => self.explain_authority(section),
        }
        section.fact("issuer", if self.role == Role::Root { "itself".to_owned() } else { facts.issuer });
        section.fact("serial", facts.serial);
        section.fact("fingerprint", facts.fingerprint);
        explain_key(self.parsed.public_key(), section);
        explain_signature(&self.parsed.signature_algorithm, section);
        explain_validity(self.role, facts.not_before, facts.not_after, section, now);
    }

    fn explain_workload(&self, section: &mut Section) {
        match self.parsed.subject_alternative_name() {
            Ok(found) => {
                names::explain(found.map_or(&[][..], |names| &names.value.general_names), section);
            }
            Err(_) => section.problem("its subjectAltName cannot be parsed"),
        }
        match self.parsed.extended_key_usage() {
            Err(_) => section.problem("its extended key usage cannot be parsed"),
            Ok(None) => section.remark("it has no extended key usage: peers take that for all usages"),
            Ok(Some(usage)) => {
                let missing: Vec<_> =
                    [("serverAuth", usage.value.server_auth), ("clientAuth", usage.value.client_auth)]
                        .into_iter()
                        .filter_map(|(name, has)| (!has).then_some(name))
                        .collect();
                if !missing.is_empty() {
                    section.problem(format!(
                        "its extended key usage lacks {}: a workload is client and server, and peers refuse it as the other",
                        missing.join(" and ")
                    ));
                }
            }
        }
        match self.parsed.key_usage() {
            Err(_) => section.problem("its key usage cannot be parsed"),
            Ok(Some(usage)) if usage.value.key_cert_sign() || usage.value.crl_sign() => section
                .problem("its key usage lets it sign certificates (keyCertSign or cRLSign): peers refuse it as a workload's"),
            Ok(Some(usage)) if !usage.value.digital_signature() => {
                section.problem("its key usage lacks digitalSignature, which TLS 1.3 needs");
            }
            Ok(_) => {}
        }
    }

    fn explain_authority(&self, section: &mut Section) {
        let uri = single_uri(&self.parsed).ok();
        if uri.is_some_and(|uri| uri.parse::<Identity>().is_ok()) {
            section.fact("identity", uri.unwrap_or_default());
            section.problem(
                "it names a workload and is an authority at once (CA:TRUE): peers refuse it as a workload's certificate",
            );
            return;
        }
        let domain = uri.and_then(|uri| uri.strip_prefix("spiffe://")?.parse::<TrustDomain>().ok());
        match domain {
            Some(domain) => section.fact("trust domain", domain.as_str()),
            None => section.remark("it names no trust domain (a URI spiffe://<trust domain>)"),
        }
        if let Ok(Some(usage)) = self.parsed.key_usage()
            && !usage.value.key_cert_sign()
        {
            section.problem("it is an authority's (CA:TRUE), but its key usage does not let it sign certificates (keyCertSign)");
        }
        if let Ok(Some(limits)) = self.parsed.basic_constraints()
            && let Some(depth) = limits.value.path_len_constraint
        {
            section.fact(
                "may sign",
                match depth {
                    0 => "workloads only (pathLenConstraint 0)".to_owned(),
                    depth => format!("workloads, and up to {depth} intermediates one under another"),
                },
            );
        }
    }
}

impl Role {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        if !certificate.is_ca() {
            Self::Workload
        } else if certificate.subject().as_raw() == certificate.issuer().as_raw() {
            Self::Root
        } else {
            Self::Intermediate
        }
    }
}

/// Whether `parent` signed `child`, by name and by signature. Where the algorithm is one that cannot be checked here, the
/// name decides; what peers make of it is said elsewhere.
pub(super) fn signed(parent: &X509Certificate<'_>, child: &X509Certificate<'_>) -> bool {
    use x509_parser::error::X509Error;
    parent.subject().as_raw() == child.issuer().as_raw()
        && matches!(
            child.verify_signature(Some(parent.public_key())),
            Ok(()) | Err(X509Error::SignatureUnsupportedAlgorithm)
        )
}

/// Says what key it is, and whether it is too weak.
pub(super) fn explain_key(key: &SubjectPublicKeyInfo<'_>, section: &mut Section) {
    let curve =
        || key.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok()).map(|oid| oid.to_id_string());
    let text = match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => {
            let bits = rsa.key_size();
            if bits < WEAKEST_RSA {
                section.problem(format!("its key is too weak: RSA of {bits} bits, where {WEAKEST_RSA} are the least that peers take"));
            }
            format!("RSA, {bits} bits")
        }
        Ok(PublicKey::EC(_)) => match curve().as_deref() {
            Some("1.2.840.10045.3.1.7") => "ECDSA, P-256".to_owned(),
            Some("1.3.132.0.34") => "ECDSA, P-384".to_owned(),
            Some("1.3.132.0.35") => "ECDSA, P-521".to_owned(),
            other => {
                section.problem(
                    "its key is on a curve that TLS 1.3 does not use: peers take P-256, P-384 and P-521",
                );
                format!("ECDSA, curve {}", other.unwrap_or("unknown"))
            }
        },
        _ if key.algorithm.algorithm.to_id_string() == "1.3.101.112" => "Ed25519".to_owned(),
        _ => {
            section
                .problem("its key is of a kind that TLS 1.3 does not use: peers take ECDSA, RSA and Ed25519");
            format!("algorithm {}", key.algorithm.algorithm.to_id_string())
        }
    };
    section.fact("key", text);
}

/// What webpki takes at least.
const WEAKEST_RSA: usize = 2048;

fn explain_signature(algorithm: &AlgorithmIdentifier<'_>, section: &mut Section) {
    // MD5 and SHA-1, with RSA, ECDSA and DSA.
    const BROKEN: [&str; 5] = [
        "1.2.840.113549.1.1.4",
        "1.2.840.113549.1.1.5",
        "1.2.840.10045.4.1",
        "1.2.840.10040.4.3",
        "1.3.14.3.2.29",
    ];
    if BROKEN.contains(&algorithm.algorithm.to_id_string().as_str()) {
        section.problem("it is signed by way of SHA-1 or MD5, which can be forged: peers refuse it");
    }
}

fn explain_validity(role: Role, from: At, until: At, section: &mut Section, now: SystemTime) {
    let whole = until.0.duration_since(from.0).unwrap_or_default();
    section.fact("valid", format!("{from} to {until}, {} in all", span(whole)));
    if now < from.0 {
        section.problem(format!(
            "it is not valid yet: from {from}, {}; or the clock here is wrong",
            from.relative_to(now)
        ));
        return;
    }
    if now > until.0 {
        section.problem(format!("it expired {}", until.relative_to(now)));
        return;
    }
    section.fact("expires", until.relative_to(now));
    let left = until.0.duration_since(now).unwrap_or_default();
    if role == Role::Workload && whole > LONG_LIFE {
        section.remark(format!("whoever steals its key can use it for {}; the certificates that an agent gets are valid for a day", span(whole)));
    }
    if role == Role::Workload && left < whole / 2 {
        section.remark("more than half of its life is over: an agent would have renewed it by now");
    }
    if role != Role::Workload && left < SOON {
        section.remark(
            "it expires soon, and with it everything below it: docs/root-rotation.md says how to replace it",
        );
    }
}

/// A workload's certificate that is valid for longer is remarked upon.
const LONG_LIFE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// How long before its end an authority's certificate is remarked upon: as long as the first alert.
const SOON: Duration = Duration::from_secs(90 * 24 * 60 * 60);
