//! The names in a certificate or a request: who the workload is, or why it is nobody.

use x509_parser::extensions::GeneralName;

use super::Section;
use crate::{
    identity::spiffe::{IdentityRefusal, shorten, uri_among},
    mesh::Identity,
};

/// Says who is named, or what is wrong with the names; returns the identity.
pub(super) fn explain(names: &[GeneralName<'_>], section: &mut Section) -> Option<Identity> {
    let others: Vec<_> =
        names.iter().filter(|name| !matches!(name, GeneralName::URI(_))).map(shown).collect();
    let uri = match uri_among(names) {
        Ok(uri) => uri,
        Err(IdentityRefusal::SeveralUris(count)) => {
            section.fact("names", names.iter().map(shown).collect::<Vec<_>>().join(", "));
            section.problem(format!(
                "it has {count} URIs as names; an X.509-SVID has exactly one, and peers refuse it"
            ));
            return None;
        }
        Err(IdentityRefusal::NoSpiffeId) => {
            section.problem(format!("it has no subjectAltName, and so no SPIFFE ID: a workload's is {FORM}"));
            return None;
        }
        Err(IdentityRefusal::NoUri(_)) => {
            section.fact("names", others.join(", "));
            section.problem(format!(
                "it has no SPIFFE ID among its names: the mesh knows a workload by a URI of the form {FORM}, not by DNS names or addresses"
            ));
            return None;
        }
        Err(_) => {
            section.problem("its subjectAltName cannot be parsed");
            return None;
        }
    };
    section.fact("identity", shorten(uri.to_owned()));
    if !others.is_empty() {
        section.remark(format!("the mesh looks at the SPIFFE ID alone, not at {}", others.join(", ")));
    }
    match uri.parse::<Identity>() {
        Ok(identity) => {
            section.fact("namespace", identity.namespace());
            section.fact("service account", identity.service_account());
            Some(identity)
        }
        Err(error) => {
            section.problem(match uri.strip_prefix("spiffe://") {
                None => format!("its URI is not a SPIFFE ID, which is of the form {FORM}"),
                Some(domain) if !domain.contains('/') => {
                    format!(
                        "its SPIFFE ID names a trust domain, as an authority's does, and no workload: {FORM}"
                    )
                }
                Some(_) => format!("its SPIFFE ID is not a workload's: {}", shorten(error.to_string())),
            });
            None
        }
    }
}

/// A name as OpenSSL writes it.
fn shown(name: &GeneralName<'_>) -> String {
    shorten(match name {
        GeneralName::DNSName(name) => format!("DNS:{name}"),
        GeneralName::URI(uri) => format!("URI:{uri}"),
        GeneralName::RFC822Name(mail) => format!("email:{mail}"),
        GeneralName::IPAddress(bytes) => match **bytes {
            [a, b, c, d] => format!("IP:{}", std::net::Ipv4Addr::new(a, b, c, d)),
            _ => match <[u8; 16]>::try_from(*bytes) {
                Ok(bytes) => format!("IP:{}", std::net::Ipv6Addr::from(bytes)),
                Err(_) => "an address of no known length".to_owned(),
            },
        },
        GeneralName::DirectoryName(name) => format!("dirName:{name}"),
        _ => "a name of another type".to_owned(),
    })
}

const FORM: &str = "spiffe://<trust domain>/ns/<namespace>/sa/<service account>";
