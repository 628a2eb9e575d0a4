//! What a PEM file says in the terms of the mesh, and what is wrong with it: `culvert certs inspect`.
//!
//! Everything that can be said without asking anybody: [`certificate`] looks at each certificate alone, [`chain`] at how
//! they hang together, [`request`], [`revocation`] and [`key`] at what else a file may hold. The last word on a chain has
//! the check that a peer would run ([`TrustBundle`]), where the roots are given.

mod certificate;
mod chain;
mod key;
mod names;
mod request;
mod revocation;

use std::time::SystemTime;

use x509_parser::pem::Pem;
use zeroize::Zeroizing;

use self::certificate::Certificate;
use super::TrustBundle;

/// What is said of one part of a file.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Section {
    /// What it is.
    pub title: String,
    /// What it says of itself, each with a name.
    pub facts: Vec<(&'static str, String)>,
    /// What is wrong with it: somebody refuses it, or it does not do what it should.
    pub problems: Vec<String>,
    /// What is worth knowing and does no harm now.
    pub remarks: Vec<String>,
}

/// Why a file cannot be explained.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unreadable {
    /// It holds no PEM.
    #[error("there is no PEM in it (-----BEGIN …-----)")]
    NotPem,
    /// It holds DER, the binary form.
    #[error(
        "it is DER, not PEM: `openssl x509 -inform DER -in FILE` (for a request `req`, for a revocation list `crl`) prints the PEM"
    )]
    Der,
}

impl Section {
    fn new(number: usize, what: &str) -> Self {
        Self { title: format!("{number}. {what}"), ..Self::default() }
    }

    fn fact(&mut self, name: &'static str, value: impl Into<String>) {
        self.facts.push((name, value.into()));
    }

    fn problem(&mut self, text: impl Into<String>) {
        self.problems.push(text.into());
    }

    fn remark(&mut self, text: impl Into<String>) {
        self.remarks.push(text.into());
    }
}

/// Explains a file at `now`; `roots` are those that its chain should lead to.
///
/// # Errors
/// Where there is nothing in it to explain.
pub fn inspect(
    text: &[u8],
    roots: Option<&TrustBundle>,
    now: SystemTime,
) -> Result<Vec<Section>, Unreadable> {
    let parts: Vec<_> = Pem::iter_from_buffer(text).map(|pem| pem.map(Part::from)).collect();
    if parts.is_empty() {
        // Every DER object that is meant here is a SEQUENCE of more than 127 bytes.
        return Err(if text.starts_with(&[0x30, 0x82]) { Unreadable::Der } else { Unreadable::NotPem });
    }
    let mut sections: Vec<_> =
        parts.iter().zip(1..).map(|(part, number)| Section::new(number, &title(part))).collect();
    let (mut certificates, mut requests, mut lists, mut keys) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (at, part) in parts.iter().enumerate() {
        let section = &mut sections[at];
        match part {
            Err(error) => section.problem(format!("it cannot be read: {error}")),
            Ok(part) => match part.label.as_str() {
                "CERTIFICATE" | "X509 CERTIFICATE" => {
                    certificates.extend(Certificate::read(at, &part.content, section, now));
                }
                "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => {
                    requests.extend(request::read(&part.content, section).map(|spki| (at, spki)));
                }
                "X509 CRL" => lists.extend(revocation::read(at, &part.content, section, now)),
                "ENCRYPTED PRIVATE KEY" => section.problem(
                    "it is encrypted, and no agent asks for a password: `openssl pkey` writes it without one",
                ),
                label if label.ends_with("PRIVATE KEY") => keys.push((at, part)),
                "EC PARAMETERS" => section.remark("openssl writes it before a key; it is not needed"),
                label => section.remark(format!("{label:?} is nothing that the mesh uses")),
            },
        }
    }
    for (at, part) in keys {
        key::explain(&part.label, &part.content, &certificates, &requests, &mut sections[at]);
    }
    chain::check(&certificates, roots, &mut sections, now);
    for list in lists {
        list.check(&certificates, roots, &mut sections);
    }
    Ok(sections)
}

/// One part of a file. It may be a private key, so it is wiped.
struct Part {
    label: String,
    content: Zeroizing<Vec<u8>>,
}

impl From<Pem> for Part {
    fn from(pem: Pem) -> Self {
        Self { label: pem.label, content: Zeroizing::new(pem.contents) }
    }
}

fn title<E>(part: &Result<Part, E>) -> String {
    match part {
        Err(_) => "unreadable".to_owned(),
        Ok(part) => match part.label.as_str() {
            "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => "certificate signing request".to_owned(),
            "X509 CRL" => "revocation list".to_owned(),
            label => label.to_lowercase(),
        },
    }
}
