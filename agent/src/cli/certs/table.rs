//! The certificates of a node for people: no line that we fill is longer than 120 columns.

use std::{fmt::Write as _, time::SystemTime};

use crate::{
    identity::{At, CertificateFacts, FollowedFile, Held, HeldState, RevocationList},
    report::Certificates,
};

/// The columns that a line has.
const WIDTH: usize = 120;
/// The columns of a time, `2026-01-01T12:00:00Z`.
const TIME: usize = 20;
/// The columns of the longest state.
const STATE: usize = 15;
/// The columns for an identity; a longer one has a line of its own.
const IDENTITY: usize = WIDTH - STATE - 3 * TIME - 2 * 2 - 2;

/// Renders the page.
pub(super) fn render(page: &Certificates, now: SystemTime) -> String {
    let mut text = String::new();
    let Certificates { node, trust_domain, inventory } = page;
    let _ = writeln!(
        text,
        "node {node}, trust domain {trust_domain}, certificates signed by {}",
        inventory.source
    );
    let _ = writeln!(text);
    let _ = writeln!(
        text,
        "{:<IDENTITY$}  {:<STATE$}  {:<TIME$} {:<TIME$} NEXT RENEWAL",
        "IDENTITY", "STATE", "NOT BEFORE", "NOT AFTER"
    );
    for held in &inventory.certificates {
        held_rows(&mut text, held, &inventory.source, now);
    }
    if inventory.certificates.is_empty() {
        let _ = writeln!(text, "none: no pod of this node is enrolled");
    }
    authorities(&mut text, "TRUSTED ROOT", &inventory.roots, now);
    authorities(&mut text, "INTERMEDIATE", &inventory.intermediates, now);
    revocation_lists(&mut text, &inventory.revocation_lists, now);
    files(&mut text, &inventory.files, now);
    text
}

fn held_rows(text: &mut String, held: &Held, source: &str, now: SystemTime) {
    let facts = held.certificate.as_ref();
    let time = |at: Option<At>| at.map_or_else(|| "-".to_owned(), |at| at.to_string());
    let mut identity = held.identity.as_str();
    if identity.chars().count() > IDENTITY {
        let _ = writeln!(text, "{identity}");
        identity = "";
    }
    let row = format!(
        "{identity:<IDENTITY$}  {:<STATE$}  {:<TIME$} {:<TIME$} {}",
        state(held.state),
        time(facts.map(|facts| facts.not_before)),
        time(facts.map(|facts| facts.not_after)),
        time(held.renew_at),
    );
    let _ = writeln!(text, "{}", row.trim_end());
    let mut details = Vec::new();
    if let Some(facts) = facts {
        let verb = if facts.not_after.0 < now { "expired" } else { "expires" };
        details.push(format!("{verb} {}", facts.not_after.relative_to(now)));
        if let Some(renew_at) = held.renew_at.filter(|_| held.state == HeldState::Ok) {
            details.push(format!("renewed {}", renew_at.relative_to(now)));
        }
        details.push(format!("serial {}", facts.serial));
        details.push(format!("issuer {}", facts.issuer));
        details.push(match &held.root {
            Some(root) => {
                format!("root {} ({})", root.subject, &root.fingerprint[..root.fingerprint.len().min(16)])
            }
            None => "root: none that is trusted now".to_owned(),
        });
    }
    // All of a node's are signed by one authority, which the head names.
    if held.source != source {
        details.push(format!("signed by {}", held.source));
    }
    wrap(text, &details);
    if let Some(error) = &held.error {
        let _ = writeln!(text, "  {} failed, the last one: {error}", attempts(held.failures));
    }
}

fn attempts(count: u32) -> String {
    if count == 1 { "1 attempt".to_owned() } else { format!("{count} attempts") }
}

fn state(standing: HeldState) -> &'static str {
    match standing {
        HeldState::Ok => "ok",
        HeldState::RenewalFailing => "renewal failing",
        HeldState::Untrusted => "untrusted",
        HeldState::NotYetValid => "not yet valid",
        HeldState::Revoked => "revoked",
        HeldState::Expired => "expired",
        HeldState::Missing => "missing",
    }
}

/// Writes items in indented lines, as many to a line as fit.
fn wrap(text: &mut String, items: &[String]) {
    let mut line = String::new();
    for item in items {
        if !line.is_empty() && 2 + line.chars().count() + 2 + item.chars().count() > WIDTH {
            let _ = writeln!(text, "  {line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push_str(", ");
        }
        line.push_str(item);
    }
    if !line.is_empty() {
        let _ = writeln!(text, "  {line}");
    }
}

/// The columns for the name of an authority.
const NAME: usize = WIDTH - 2 * TIME - 16 - 16 - 4;

fn authorities(text: &mut String, title: &str, all: &[CertificateFacts], now: SystemTime) {
    if all.is_empty() {
        return;
    }
    let _ = writeln!(text);
    let _ = writeln!(
        text,
        "{title:<NAME$} {:<16} {:<TIME$} {:<TIME$} LEFT",
        "FINGERPRINT", "NOT BEFORE", "NOT AFTER"
    );
    for facts in all {
        let CertificateFacts { subject, not_before, not_after, .. } = facts;
        let fingerprint = facts.short_fingerprint();
        let mut subject = if subject.is_empty() { "(without a name)" } else { subject };
        if subject.chars().count() > NAME {
            let _ = writeln!(text, "{subject}");
            subject = "";
        }
        let left = match not_after.relative_to(now) {
            ago if ago.ends_with("ago") => format!("expired {ago}"),
            left => left.trim_start_matches("in ").to_owned(),
        };
        let _ = writeln!(
            text,
            "{subject:<NAME$} {fingerprint:<16} {not_before:<TIME$} {not_after:<TIME$} {left}"
        );
    }
}

fn revocation_lists(text: &mut String, all: &[RevocationList], now: SystemTime) {
    if all.is_empty() {
        return;
    }
    let _ = writeln!(text);
    let _ = writeln!(text, "{:<NAME$} {:<16} {:<TIME$}", "REVOCATION LIST OF", "REVOKED", "NEXT DUE");
    for RevocationList { issuer, revoked, next_update, outdated, verified } in all {
        let state = match (verified, outdated) {
            (false, _) => "revokes nothing: nobody known here signed it".to_owned(),
            (true, true) => format!("outdated, due {}", next_update.relative_to(now)),
            (true, false) => next_update.relative_to(now),
        };
        let _ = writeln!(text, "{issuer:<NAME$} {revoked:<16} {next_update:<TIME$} {state}");
    }
}

fn files(text: &mut String, all: &[FollowedFile], now: SystemTime) {
    if all.is_empty() {
        return;
    }
    let _ = writeln!(text);
    let _ = writeln!(text, "FILES THAT ARE FOLLOWED");
    for FollowedFile { what, paths, loaded_at, error, failures } in all {
        let loaded =
            loaded_at.map_or_else(|| "not read yet".to_owned(), |at| format!("read {}", at.relative_to(now)));
        let _ = writeln!(text, "{what}, {loaded}");
        wrap(text, paths);
        if let Some(error) = error {
            let _ = writeln!(
                text,
                "  the newest content cannot be used, and what was there before is in force: {error} (refused {failures} times)"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::identity::{Inventory, RootName};

    const HOUR: Duration = Duration::from_secs(3600);

    fn facts(subject: &str, now: SystemTime) -> CertificateFacts {
        CertificateFacts {
            subject: subject.to_owned(),
            issuer: "O=Culvert, CN=Culvert intermediate 0123abcd".to_owned(),
            serial: ["5a"; 16].join(":"),
            fingerprint: "0123456789abcdef".repeat(4),
            not_before: At(now - HOUR),
            not_after: At(now + 11 * HOUR),
        }
    }

    fn held(account: &str, state: HeldState, now: SystemTime) -> Held {
        let root =
            RootName { subject: "O=Culvert, CN=Culvert root 89".to_owned(), fingerprint: "ef".repeat(32) };
        Held {
            identity: format!("spiffe://cluster.local/ns/shop/sa/{account}"),
            state,
            error: None,
            failures: 0,
            certificate: Some(facts("", now)),
            renew_at: Some(At(now + 5 * HOUR)),
            root: Some(root),
            source: "local /etc/culvert/ca".to_owned(),
        }
    }

    fn page(certificates: Vec<Held>, now: SystemTime) -> String {
        let inventory = Inventory {
            source: "local /etc/culvert/ca".to_owned(),
            certificates,
            roots: vec![facts("O=Culvert, CN=Culvert root 89abcdef", now)],
            intermediates: Vec::new(),
            revocation_lists: vec![RevocationList {
                issuer: "CN=Culvert root 89abcdef".to_owned(),
                revoked: 3,
                next_update: At(now - HOUR),
                outdated: true,
                verified: true,
            }],
            files: vec![FollowedFile {
                what: "trust bundle".to_owned(),
                paths: vec!["/etc/culvert/ca/root.pem".to_owned()],
                loaded_at: Some(At(now - HOUR)),
                error: Some("it is empty".to_owned()),
                failures: 2,
            }],
        };
        let page = Certificates { node: "a".to_owned(), trust_domain: "cluster.local".to_owned(), inventory };
        render(&page, now)
    }

    fn now() -> SystemTime {
        humantime::parse_rfc3339("2026-01-01T12:00:00Z").unwrap()
    }

    #[test]
    fn no_line_is_longer_than_a_terminal_is_wide() {
        let accounts = ["web", "a-service-account-whose-name-is-longer-than-the-column-for-it"];
        let text = page(accounts.map(|account| held(account, HeldState::Ok, now())).into(), now());
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{} columns: {line}", line.chars().count());
        }
        assert!(text.contains(accounts[1]), "{text}");
        assert!(text.contains("renewed in 5h") && text.contains("expires in 11h"), "{text}");
        assert!(text.contains("root O=Culvert, CN=Culvert root 89 (efefefefefefefef)"), "{text}");
        assert!(
            text.contains("cannot be used, and what was there before is in force: it is empty"),
            "{text}"
        );
    }

    #[test]
    fn a_failing_renewal_says_why_and_a_missing_certificate_has_no_times() {
        let mut failing = held("web", HeldState::RenewalFailing, now());
        failing.error = Some("the authority did not answer within 10s".to_owned());
        failing.failures = 3;
        let missing =
            Held { certificate: None, renew_at: None, root: None, ..held("db", HeldState::Missing, now()) };
        let text = page(vec![failing, missing], now());
        assert!(text.contains("renewal failing  2026-01-01T11:00:00Z"), "{text}");
        assert!(text.contains("3 attempts failed, the last one: the authority did not answer"), "{text}");
        assert!(text.contains("missing          -                    -                    -"), "{text}");
    }
}
