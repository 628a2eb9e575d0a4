//! What a signing request may ask for: its key, under one name. Everything else is refused, each with its reason.
//!
//! Only the key of a request is ever certified here, but an authority behind this server may take more from it, and
//! who asks for more has another idea of what is going on.

use rustls::pki_types::{CertificateSigningRequestDer, pem::PemObject as _};
use x509_parser::{
    certification_request::X509CertificationRequest,
    cri_attributes::ParsedCriAttribute,
    extensions::{GeneralName, ParsedExtension, X509Extension},
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION,
        OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA, OID_SIG_ECDSA_WITH_SHA256,
        OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ED25519,
    },
    prelude::FromDer as _,
    public_key::PublicKey,
};

use crate::{identity::Csr, mesh::Identity};

/// Why a signing request is refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CsrRefusal {
    /// It is not one PEM block of the right kind.
    #[error("the request is not one PEM block `CERTIFICATE REQUEST`")]
    NotPem,
    /// It is no PKCS #10.
    #[error("the request cannot be parsed as PKCS #10 (RFC 2986)")]
    Unreadable,
    /// The key is RSA, and short.
    #[error("the key is RSA of {0} bits: 2048 to 8192 are taken")]
    WeakRsa(usize),
    /// The key is on another curve, or the point is not written out.
    #[error(
        "the key is on an elliptic curve that is not taken: P-256, P-384 and Ed25519 are, as uncompressed points"
    )]
    Curve,
    /// The key is of another kind.
    #[error("the key is of a kind that is not taken: ECDSA (P-256, P-384), Ed25519 and RSA are")]
    KeyKind,
    /// It is signed by another algorithm than the one that goes with the key.
    #[error(
        "the request is signed by another algorithm than goes with its key: SHA-256 for P-256, SHA-384 for P-384, \
         SHA-256 to SHA-512 for RSA"
    )]
    Algorithm,
    /// The key did not sign it.
    #[error("the request's signature is wrong: its key did not sign it")]
    Signature,
    /// It asks for a distinguished name.
    #[error("the request asks for the subject {0:?}: a workload's is empty")]
    Subject(String),
    /// It asks for a name that is no URI.
    #[error("the request asks for the name {0:?}: its one subjectAltName is to be the identity's URI")]
    OtherName(String),
    /// It asks for another identity than the one that was named.
    #[error("the request asks for the identity {found:?}, and its metadata for {asked}")]
    OtherIdentity {
        /// By the metadata.
        asked: Identity,
        /// In the request.
        found: String,
    },
    /// It asks for several names, or for an empty list of them.
    #[error("the request asks for {0} subjectAltNames: one, or no such extension, is taken")]
    Names(usize),
    /// It asks to be an authority.
    #[error("the request asks to be a certificate authority (basicConstraints CA:TRUE)")]
    Authority,
    /// It asks for another extension.
    #[error("the request asks for the extension {0}: none but subjectAltName is taken")]
    Extension(String),
    /// It has something else in it.
    #[error("the request has the attribute {0}: none but extensionRequest is taken")]
    Attribute(String),
}

/// Checks a request for the certificate of `identity`, in PEM.
///
/// # Errors
/// Where it is anything but a proof of possession of a good key, with the identity as its only name or no name at all.
pub fn check_request(pem: &str, identity: &Identity) -> Result<Csr, CsrRefusal> {
    let mut blocks = CertificateSigningRequestDer::pem_slice_iter(pem.as_bytes());
    let (Some(Ok(der)), None) = (blocks.next(), blocks.next()) else { return Err(CsrRefusal::NotPem) };
    let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| CsrRefusal::Unreadable)?;
    if !rest.is_empty() {
        return Err(CsrRefusal::Unreadable);
    }
    check_key(&request)?;
    request.verify_signature().map_err(|_| CsrRefusal::Signature)?;
    check_names(&request, identity)?;
    Ok(Csr::from_der(der))
}

/// The key, and that the signature's algorithm is the one that goes with it: `rcgen` takes the key's kind from there.
fn check_key(request: &X509CertificationRequest<'_>) -> Result<(), CsrRefusal> {
    let key = &request.certification_request_info.subject_pki;
    let (kind, signed) = (&key.algorithm.algorithm, &request.signature_algorithm.algorithm);
    let fits = if *kind == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = key.algorithm.parameters.as_ref().and_then(|curve| curve.as_oid().ok());
        let curve = curve.ok_or(CsrRefusal::Curve)?;
        match &key.subject_public_key.data[..] {
            [4, point @ ..] if curve == OID_EC_P256 && point.len() == 64 => {
                *signed == OID_SIG_ECDSA_WITH_SHA256
            }
            [4, point @ ..] if curve == OID_NIST_EC_P384 && point.len() == 96 => {
                *signed == OID_SIG_ECDSA_WITH_SHA384
            }
            _ => return Err(CsrRefusal::Curve),
        }
    } else if *kind == OID_PKCS1_RSAENCRYPTION {
        let Ok(PublicKey::RSA(rsa)) = key.parsed() else { return Err(CsrRefusal::Unreadable) };
        match rsa.key_size() {
            2048..=8192 => {
                [OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA].contains(signed)
            }
            bits => return Err(CsrRefusal::WeakRsa(bits)),
        }
    } else if *kind == OID_SIG_ED25519 {
        *signed == OID_SIG_ED25519
    } else {
        return Err(CsrRefusal::KeyKind);
    };
    if fits { Ok(()) } else { Err(CsrRefusal::Algorithm) }
}

fn check_names(request: &X509CertificationRequest<'_>, identity: &Identity) -> Result<(), CsrRefusal> {
    let info = &request.certification_request_info;
    if info.subject.iter().next().is_some() {
        return Err(CsrRefusal::Subject(shorten(&info.subject.to_string())));
    }
    let mut named = false;
    for attribute in info.attributes() {
        let ParsedCriAttribute::ExtensionRequest(requested) = attribute.parsed_attribute() else {
            return Err(CsrRefusal::Attribute(attribute.oid.to_id_string()));
        };
        for extension in &requested.extensions {
            named |= check_extension(extension, identity, named)?;
        }
    }
    Ok(())
}

/// Returns whether the extension names the identity.
fn check_extension(
    extension: &X509Extension<'_>,
    identity: &Identity,
    named: bool,
) -> Result<bool, CsrRefusal> {
    let names = match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) if !named => &names.general_names,
        ParsedExtension::SubjectAlternativeName(_) => return Err(CsrRefusal::Names(2)),
        ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
            return Err(CsrRefusal::Authority);
        }
        // It asks for nothing.
        ParsedExtension::BasicConstraints(_) => return Ok(false),
        _ => return Err(CsrRefusal::Extension(extension.oid.to_id_string())),
    };
    match &names[..] {
        [GeneralName::URI(uri)] if *uri == identity.to_string() => Ok(true),
        [GeneralName::URI(uri)] => {
            Err(CsrRefusal::OtherIdentity { asked: identity.clone(), found: shorten(uri) })
        }
        [other] => Err(CsrRefusal::OtherName(shorten(&other.to_string()))),
        several => Err(CsrRefusal::Names(several.len())),
    }
}

/// What a stranger wrote, for an answer and a log line.
fn shorten(text: &str) -> String {
    text.chars().take(128).collect()
}
