//! A certificate signing request (PKCS #10).

use x509_parser::{
    certification_request::X509CertificationRequest, extensions::ParsedExtension, prelude::FromDer as _,
};

use super::{Section, certificate::explain_key, names};

/// Says what is asked for; returns the public key in DER, for a private key to be found to it.
pub(super) fn read<'a>(der: &'a [u8], section: &mut Section) -> Option<&'a [u8]> {
    let request = match X509CertificationRequest::from_der(der) {
        Ok((_, request)) => request,
        Err(error) => {
            section.problem(format!("it is not a request that can be parsed: {error}"));
            return None;
        }
    };
    let info = &request.certification_request_info;
    let subject = info.subject.to_string();
    if !subject.is_empty() {
        section.fact("subject", subject);
    }
    let asked: Vec<_> = request.requested_extensions().into_iter().flatten().collect();
    let names = asked.iter().find_map(|extension| match extension {
        ParsedExtension::SubjectAlternativeName(names) => Some(names.general_names.as_slice()),
        _ => None,
    });
    names::explain(names.unwrap_or_default(), section);
    for extension in asked {
        match extension {
            ParsedExtension::BasicConstraints(limits) if limits.ca => {
                section.problem(
                    "it asks for an authority's certificate (CA:TRUE): an authority of the mesh refuses it",
                );
            }
            ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() || usage.crl_sign() => {
                section.problem("it asks to be let sign certificates (keyCertSign or cRLSign): an authority of the mesh refuses it");
            }
            _ => {}
        }
    }
    let problems = section.problems.len();
    explain_key(&info.subject_pki, section);
    // No signature is checked with a key that is too weak.
    if section.problems.len() == problems && request.verify_signature().is_err() {
        section.problem("its signature is wrong: whoever made it does not show that the key is theirs");
    }
    Some(info.subject_pki.raw)
}
