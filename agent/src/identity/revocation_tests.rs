//! Revocation lists in files that change: what is in force, and what is said of those that cannot be.

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use prometheus_client::registry::Registry;
use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, UnixTime};
use tempfile::TempDir;
use tokio::{sync::watch, time::sleep};

use super::{
    CrlError, Revocation, TlsError, TrustBundle, Usage,
    testing::{HOUR, TestRoot, WEB, leaf},
};

/// A mesh of one root, and a file of lists.
struct World {
    root: TestRoot,
    _dir: TempDir,
    file: PathBuf,
}

impl World {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("lists.pem");
        Self { root: TestRoot::new("test root"), _dir: dir, file }
    }

    fn write(&self, text: &str) {
        fs::write(&self.file, text).unwrap();
    }

    fn start(&self) -> Revocation {
        self.start_with(&[&self.root])
    }

    fn start_with(&self, roots: &[&TestRoot]) -> Revocation {
        let roots = roots.iter().map(|root| root.certificate.clone()).collect();
        // The sender's end only says that there will be no other roots.
        let (sender, authority) = watch::channel(Arc::new(TrustBundle::new(roots).unwrap()));
        tokio::spawn(async move { sender.closed().await });
        Revocation::start(vec![self.file.clone()], authority).unwrap()
    }
}

/// A certificate with this serial number.
fn certificate(root: &TestRoot, serial: u64) -> CertificateDer<'static> {
    let mut params = leaf(WEB);
    params.serial_number = Some(serial.into());
    root.sign(&params, &KeyPair::generate().unwrap())
}

fn check(revocation: &Revocation, certificate: &CertificateDer<'_>) -> Result<(), TlsError> {
    let bundle = revocation.trust().borrow().clone();
    bundle.verify(Usage::Client, (certificate, &[]), UnixTime::now()).map(drop)
}

fn metric(revocation: &Revocation, name: &str) -> i64 {
    let mut registry = Registry::default();
    revocation.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..3000 {
        if condition() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not come true");
}

fn tomorrow() -> SystemTime {
    SystemTime::now() + 24 * HOUR
}

#[tokio::test]
async fn list_that_changes_is_in_force_soon_after() {
    let world = World::new();
    world.write(&world.root.crl(&[1], tomorrow()));
    let revocation = world.start();
    let (first, second) = (certificate(&world.root, 1), certificate(&world.root, 2));
    assert!(matches!(check(&revocation, &first), Err(TlsError::Revoked)));
    check(&revocation, &second).unwrap();

    let mut trust = revocation.trust();
    world.write(&world.root.crl(&[2], tomorrow()));
    tokio::time::timeout(HOUR / 60, trust.changed()).await.expect("who follows the trust is told").unwrap();
    until("the second list", || matches!(check(&revocation, &second), Err(TlsError::Revoked))).await;
    check(&revocation, &first).expect("the newest list is right");
    assert_eq!(metric(&revocation, "culvert_crl_loaded"), 1);
    assert_eq!(metric(&revocation, "culvert_crl_revoked"), 1);
    assert_eq!(metric(&revocation, "culvert_crl_failures_total"), 0);
    let left = metric(&revocation, "culvert_crl_next_update_seconds");
    assert!((86_000..=86_400).contains(&left), "{left}");
}

#[tokio::test]
async fn content_that_is_no_list_is_counted_and_changes_nothing() {
    let world = World::new();
    world.write(&world.root.crl(&[1], tomorrow()));
    let revocation = world.start();
    let revoked = certificate(&world.root, 1);
    for (number, wrong) in ["", "not PEM at all", "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"]
        .into_iter()
        .enumerate()
    {
        world.write(wrong);
        until("a failure", || metric(&revocation, "culvert_crl_failures_total") > number as i64).await;
        assert!(matches!(check(&revocation, &revoked), Err(TlsError::Revoked)));
    }
    fs::remove_file(&world.file).unwrap();
    until("one more failure", || metric(&revocation, "culvert_crl_failures_total") > 3).await;
    assert!(matches!(check(&revocation, &revoked), Err(TlsError::Revoked)));
    assert!(revocation.files().unwrap().borrow().error.as_ref().unwrap().contains("lists.pem"));
}

#[tokio::test]
async fn list_that_the_issuer_did_not_sign_revokes_nothing_and_the_one_before_stays() {
    let world = World::new();
    world.write(&world.root.crl(&[1], tomorrow()));
    let revocation = world.start();
    // Of the same name, with another key.
    let forger = TestRoot::new("test root");
    world.write(&forger.crl(&[2], tomorrow()));
    until("a failure", || metric(&revocation, "culvert_crl_failures_total") == 1).await;
    assert_eq!(metric(&revocation, "culvert_crl_unverified"), 1);
    assert!(matches!(check(&revocation, &certificate(&world.root, 1)), Err(TlsError::Revoked)));
    check(&revocation, &certificate(&world.root, 2)).expect("who is listed by nobody is let in");

    world.write(&world.root.crl(&[], tomorrow()));
    until("the right list", || metric(&revocation, "culvert_crl_unverified") == 0).await;
    check(&revocation, &certificate(&world.root, 1)).expect("the list before is gone");
}

#[tokio::test]
async fn lists_of_two_authorities_of_one_name_are_told_apart() {
    let world = World::new();
    let twin = TestRoot::new("test root");
    world.write(&[twin.crl(&[1], tomorrow()), world.root.crl(&[2], tomorrow())].concat());
    let revocation = world.start_with(&[&world.root, &twin]);
    assert!(matches!(check(&revocation, &certificate(&twin, 1)), Err(TlsError::Revoked)));
    assert!(matches!(check(&revocation, &certificate(&world.root, 2)), Err(TlsError::Revoked)));
    check(&revocation, &certificate(&twin, 2)).unwrap();
    check(&revocation, &certificate(&world.root, 1)).unwrap();
}

#[tokio::test]
async fn outdated_list_goes_on_to_revoke_what_it_lists_and_is_counted() {
    let world = World::new();
    world.write(&world.root.crl(&[1], SystemTime::now() - HOUR));
    let revocation = world.start();
    assert!(matches!(check(&revocation, &certificate(&world.root, 1)), Err(TlsError::Revoked)));
    check(&revocation, &certificate(&world.root, 2)).unwrap();
    assert_eq!(metric(&revocation, "culvert_crl_outdated"), 1);
    assert!(metric(&revocation, "culvert_crl_next_update_seconds") <= -3600);
}

#[tokio::test]
async fn list_of_an_issuer_that_nobody_knows_yet_is_in_force_with_its_first_chain() {
    let world = World::new();
    let stranger = TestRoot::new("another root");
    world.write(&stranger.crl(&[1], tomorrow()));
    let revocation = world.start();
    assert_eq!(metric(&revocation, "culvert_crl_unverified"), 1);
    let later = world.start_with(&[&world.root, &stranger]);
    assert_eq!(metric(&later, "culvert_crl_unverified"), 0);
    assert!(matches!(check(&later, &certificate(&stranger, 1)), Err(TlsError::Revoked)));
}

#[tokio::test]
async fn agent_does_not_start_without_the_lists_that_it_was_told_of() {
    let world = World::new();
    let (_sender, authority) = watch::channel(Arc::clone(&world.root.trust().borrow()));
    let error = Revocation::start(vec![world.file.clone()], authority.clone()).unwrap_err();
    assert!(matches!(error, CrlError::Read { .. }), "{error}");
    let der = b"0\x82\x01\x00";
    fs::write(&world.file, der).unwrap();
    let error = Revocation::start(vec![world.file], authority).unwrap_err();
    assert!(error.to_string().contains("openssl crl -inform DER"), "{error}");
}
