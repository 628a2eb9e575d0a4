//! What the log says of certificates of an authority.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::X509Certificate;

use super::files::{not_after, not_before};
use crate::identity::Fingerprint;

/// Logs those that expire soon.
pub(super) fn warn(intermediates: &[CertificateDer<'_>], roots: &[CertificateDer<'_>]) {
    let intermediates =
        intermediates.iter().map(|der| ("intermediate", "`culvert ca intermediate` replaces it", der));
    let roots = roots.iter().map(|der| ("root", "docs/root-rotation.md says how to replace it", der));
    for (role, remedy, der) in intermediates.chain(roots) {
        let Ok((_, certificate)) = x509_parser::parse_x509_certificate(der) else { continue };
        let now = SystemTime::now();
        if is_due(&certificate, now) {
            let until = not_after(&certificate);
            let state = if until < now { "has expired" } else { "expires soon" };
            tracing::warn!(
                subject = %certificate.subject(),
                fingerprint = %Fingerprint::of(der),
                not_after = %humantime::format_rfc3339_seconds(until),
                "the {role} {state}: {remedy}"
            );
        }
    }
}

/// Whether a certificate is to be replaced: thirty days before its end, or for the last third of a short life.
fn is_due(certificate: &X509Certificate<'_>, now: SystemTime) -> bool {
    let until = not_after(certificate);
    let life = until.duration_since(not_before(certificate)).unwrap_or_default();
    until < now + SOON.min(life / 3)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::ca::local::params;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    /// Whether a root that is `life` long is to be replaced `left` before its end.
    fn check(life: Duration, left: Duration, expected: bool) {
        let until = SystemTime::now() + life;
        let key = rcgen::KeyPair::generate().unwrap();
        let root = params::root(&"cluster.local".parse().unwrap(), until).unwrap().self_signed(&key).unwrap();
        let (_, parsed) = x509_parser::parse_x509_certificate(root.der()).unwrap();
        assert_eq!(is_due(&parsed, until - left), expected, "{life:?}, {left:?} before its end");
    }

    #[test]
    fn due_a_month_before_its_end_or_in_the_last_third_of_a_short_life() {
        check(3650 * DAY, 31 * DAY, false);
        check(3650 * DAY, 29 * DAY, true);
        check(30 * DAY, 11 * DAY, false);
        check(30 * DAY, 9 * DAY, true);
        check(30 * DAY, Duration::ZERO, true);
    }
}
