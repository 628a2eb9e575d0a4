//! What the log says of certificates of an authority.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;

use super::files::not_after;
use crate::identity::Fingerprint;

/// Logs those that expire soon: within thirty days, or a third of their lives where those are short.
pub(super) fn warn(intermediates: &[CertificateDer<'_>], roots: &[CertificateDer<'_>]) {
    for (role, remedy, certificate) in intermediates
        .iter()
        .map(|certificate| ("intermediate", "`culvert ca intermediate` replaces it", certificate))
        .chain(roots.iter().map(|root| ("root", "docs/root-rotation.md says how to replace it", root)))
    {
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { continue };
        let (until, now) = (not_after(&parsed), SystemTime::now());
        let validity = parsed.validity();
        let life = validity.not_after.timestamp().saturating_sub(validity.not_before.timestamp());
        let soon = SOON.min(Duration::from_secs(life.try_into().unwrap_or(0)) / 3);
        if until < now + soon {
            let state = if until < now { "expired" } else { "expires soon" };
            tracing::warn!(
                subject = %parsed.subject(),
                fingerprint = %Fingerprint::of(certificate),
                not_after = %humantime::format_rfc3339_seconds(until),
                "the {role} {state}: {remedy}"
            );
        }
    }
}

/// Names certificates for a line of the log.
pub(super) fn listed(certificates: &[CertificateDer<'_>]) -> String {
    let name = |certificate: &CertificateDer<'_>| {
        let subject = x509_parser::parse_x509_certificate(certificate)
            .map_or_else(|_| "?".to_owned(), |(_, parsed)| parsed.subject().to_string());
        format!("{subject} ({:.16})", Fingerprint::of(certificate))
    };
    certificates.iter().map(name).collect::<Vec<_>>().join("; ")
}

const SOON: Duration = Duration::from_secs(30 * 24 * 60 * 60);
