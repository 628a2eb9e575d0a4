//! A certificate revocation list.

use std::time::SystemTime;

use x509_parser::{
    prelude::{FromDer as _, X509Certificate},
    revocation_list::CertificateRevocationList,
};

use super::{Section, certificate::Certificate};
use crate::identity::{
    TrustBundle,
    at::At,
    certificate::{name, time},
};

/// A list of the file.
pub(super) struct List<'a> {
    at: usize,
    parsed: CertificateRevocationList<'a>,
}

/// Says who revokes how many, and until when that can be relied on.
pub(super) fn read<'a>(at: usize, der: &'a [u8], section: &mut Section, now: SystemTime) -> Option<List<'a>> {
    let parsed = match CertificateRevocationList::from_der(der) {
        Ok((_, parsed)) => parsed,
        Err(error) => {
            section.problem(format!("it is not a revocation list that can be parsed: {error}"));
            return None;
        }
    };
    section.fact("issuer", name(parsed.issuer()));
    if let Some(number) = parsed.crl_number() {
        section.fact("number", number.to_string());
    }
    section.fact("revokes", format!("{} certificates", parsed.iter_revoked_certificates().count()));
    let from = At(time(parsed.last_update().timestamp()));
    section.fact("made", format!("{from}, {}", from.relative_to(now)));
    if from.0 > now {
        section.problem("it was made in the future: the clock of its authority, or the one here, is wrong");
    }
    match parsed.next_update().map(|next| At(time(next.timestamp()))) {
        None => {
            section.remark("it does not say when the next one is due: nobody can tell that it is outdated");
        }
        Some(next) if next.0 < now => {
            section
                .problem(format!("it is outdated: the next one was due {next}, {}", next.relative_to(now)));
        }
        Some(next) => section.fact("next one due", format!("{next}, {}", next.relative_to(now))),
    }
    Some(List { at, parsed })
}

impl List<'_> {
    /// Looks for its issuer, and for certificates of the file that it revokes.
    pub(super) fn check(
        &self,
        certificates: &[Certificate<'_>],
        roots: Option<&TrustBundle>,
        sections: &mut [Section],
    ) {
        let trusted = roots.map_or(&[][..], TrustBundle::certificates);
        let trusted = trusted.iter().filter_map(|der| Some(x509_parser::parse_x509_certificate(der).ok()?.1));
        let trusted: Vec<_> = trusted.collect();
        let issuers: Vec<_> = certificates
            .iter()
            .map(|certificate| &certificate.parsed)
            .chain(&trusted)
            .filter(|issuer| issuer.subject().as_raw() == self.parsed.issuer().as_raw())
            .collect();
        if issuers.is_empty() {
            sections[self.at]
                .remark("whether its issuer signed it cannot be told: that certificate is not in this file");
        } else if !issuers.iter().any(|issuer| self.signed_by(issuer)) {
            sections[self.at].problem("its signature is not by the authority that it names");
        }
        for certificate in certificates {
            let revoked = self.parsed.iter_revoked_certificates();
            let mut revoked =
                revoked.filter(|revoked| revoked.raw_serial() == certificate.parsed.raw_serial());
            if certificate.parsed.issuer().as_raw() == self.parsed.issuer().as_raw()
                && revoked.next().is_some()
            {
                sections[certificate.at]
                    .problem(format!("it is revoked by the list in part {}", self.at + 1));
            }
        }
    }

    fn signed_by(&self, issuer: &X509Certificate<'_>) -> bool {
        self.parsed.verify_signature(issuer.public_key()).is_ok()
    }
}
