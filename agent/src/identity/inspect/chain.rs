//! How the certificates of a file hang together: the workload's first, then who signed it, and so on up to a root.

use std::time::SystemTime;

use rustls::pki_types::UnixTime;

use super::{
    Section,
    certificate::{Certificate, Role, signed},
};
use crate::identity::{TrustBundle, Usage, certificate::name};

/// Checks the chain of a file.
pub(super) fn check(
    certificates: &[Certificate<'_>],
    roots: Option<&TrustBundle>,
    sections: &mut [Section],
    now: SystemTime,
) {
    duplicates(certificates, sections);
    let of_role = |role| certificates.iter().find(|certificate| certificate.role == role);
    let Some(first) = of_role(Role::Workload).or_else(|| of_role(Role::Intermediate)) else {
        // Roots alone: a trust bundle.
        return untrusted_roots(certificates, roots, sections);
    };
    if first.at != certificates[0].at {
        sections[first.at]
            .problem("it must be the first certificate: peers take the first one for the workload's");
    }
    let mut walked = vec![first];
    let mut last = first;
    while last.role != Role::Root {
        let signer = certificates
            .iter()
            .find(|other| !walked.iter().any(|known| known.der == other.der) && other.signed(&last.parsed));
        let Some(signer) = signer else { break };
        follows(certificates, last, signer, sections);
        walked.push(signer);
        last = signer;
    }
    match last.role {
        Role::Root => root_included(last, roots, sections),
        _ => above(last, roots, sections),
    }
    for other in certificates.iter().filter(|other| !walked.iter().any(|known| known.der == other.der)) {
        match other.role {
            Role::Workload => {
                sections[other.at].problem("it is a second workload's: a file holds the chain of one");
            }
            _ => sections[other.at]
                .remark(format!("it is no part of the chain of certificate {}", first.at + 1)),
        }
    }
    if let Some(roots) = roots.filter(|_| first.role == Role::Workload) {
        as_a_peer(first, certificates, roots, sections, now);
    }
}

fn duplicates(certificates: &[Certificate<'_>], sections: &mut [Section]) {
    for (index, certificate) in certificates.iter().enumerate() {
        if let Some(first) = certificates[..index].iter().find(|other| other.der == certificate.der) {
            sections[certificate.at].remark(format!("it is the same as certificate {}", first.at + 1));
        }
    }
}

/// Checks that a signer stands right behind what it signed.
fn follows(
    all: &[Certificate<'_>],
    signee: &Certificate<'_>,
    signer: &Certificate<'_>,
    sections: &mut [Section],
) {
    let next = all.iter().find(|other| other.at > signee.at);
    if next.is_none_or(|next| next.at != signer.at) {
        sections[signer.at].problem(format!(
            "the order is wrong: it signed certificate {}, and must stand right behind it",
            signee.at + 1
        ));
    }
    if !signer.parsed.is_ca() {
        sections[signer.at]
            .problem(format!("it signed certificate {}, and is no authority (CA:TRUE)", signee.at + 1));
    }
    sections[signee.at].fact("signed by", format!("certificate {}", signer.at + 1));
}

fn root_included(root: &Certificate<'_>, roots: Option<&TrustBundle>, sections: &mut [Section]) {
    sections[root.at].remark(
        "the root is in the chain: peers look only at the roots that they trust already, so leave it out",
    );
    untrusted_roots(std::slice::from_ref(root), roots, sections);
}

fn untrusted_roots(found: &[Certificate<'_>], roots: Option<&TrustBundle>, sections: &mut [Section]) {
    let Some(roots) = roots else { return };
    for root in found.iter().filter(|root| root.role == Role::Root) {
        if !roots.certificates().contains(&root.der) {
            sections[root.at].problem("it is none of the roots that were given");
        }
    }
}

/// Looks for who signed the last certificate of a chain that ends without a root, as it should.
fn above(last: &Certificate<'_>, roots: Option<&TrustBundle>, sections: &mut [Section]) {
    let section = &mut sections[last.at];
    let issuer = name(last.parsed.issuer());
    let issuer = if issuer.is_empty() { "somebody without a name".to_owned() } else { issuer };
    let Some(roots) = roots else {
        section.remark(format!(
            "it was signed by {issuer}, who is not in this file: as it should be if that is a root; --roots FILE checks it"
        ));
        return;
    };
    let mut same_name = false;
    for der in roots.certificates() {
        let Ok((_, root)) = x509_parser::parse_x509_certificate(der) else { continue };
        if signed(&root, &last.parsed) {
            section.fact("signed by", format!("the root {}", name(root.subject())));
            return;
        }
        same_name |= root.subject().as_raw() == last.parsed.issuer().as_raw();
    }
    section.problem(if same_name {
        format!("it was signed by {issuer}, but by another key than that of the root of this name")
    } else {
        format!(
            "it was signed by {issuer}, who is neither in this file nor among the roots: an intermediate is missing here, or the roots are those of another mesh"
        )
    });
}

/// Runs the check that peers run, for what nothing before has found.
fn as_a_peer(
    first: &Certificate<'_>,
    certificates: &[Certificate<'_>],
    roots: &TrustBundle,
    sections: &mut [Section],
    now: SystemTime,
) {
    if certificates.iter().any(|certificate| !sections[certificate.at].problems.is_empty()) {
        return;
    }
    let Ok(since) = now.duration_since(SystemTime::UNIX_EPOCH) else { return };
    let now = UnixTime::since_unix_epoch(since);
    let others: Vec<_> =
        certificates.iter().filter(|other| other.at != first.at).map(|other| other.der.clone()).collect();
    let checks = [Usage::Server, Usage::Client].map(|usage| roots.verify(usage, (&first.der, &others), now));
    if let Some(error) = checks.into_iter().find_map(Result::err) {
        sections[first.at].problem(format!("a peer refuses it, and says: {error}"));
    }
}
