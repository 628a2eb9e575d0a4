//! The trust bundle: what may be added, and what may go.

use super::*;
use crate::identity::{
    Fingerprint,
    ca::{CaDirectory, Force, Need, NeedSource, RootsError},
};

impl Fixture {
    fn roots_of(&self) -> CaDirectory {
        CaDirectory::open(&self.dir).unwrap()
    }

    /// The fingerprints in `root.pem`.
    fn fingerprints(&self) -> Vec<String> {
        let roots = self.roots_of().roots(&[]).unwrap();
        roots.iter().map(|root| root.fingerprint.to_string()).collect()
    }

    /// Both roots trusted, and an intermediate under the new one: the old root's fingerprint is returned.
    fn rotated(&self) -> String {
        let old = self.fingerprints()[0].clone();
        let (_, key) = self.roots_of().new_root(None, HOUR * 10).unwrap();
        self.roots_of().renew_intermediate(&key, HOUR).unwrap();
        old
    }

    fn remove(&self, fingerprint: &str, records: &[PathBuf]) -> Result<String, RootsError> {
        self.roots_of().remove_root(fingerprint, records, Force::No)
    }
}

fn needs(result: Result<String, RootsError>) -> Vec<Need> {
    match result {
        Err(RootsError::Needed { needs, .. }) => needs,
        other => panic!("the root is needed, but: {other:?}"),
    }
}

/// Writes a record as a signer does, of the intermediate in the file `issuer`.
fn record(dir: &Path, issuer: &Path, until: SystemTime) {
    fs::create_dir_all(dir).unwrap();
    let pem = fs::read_to_string(issuer).unwrap();
    let text = format!("valid-until: {}\n{pem}", humantime::format_rfc3339_seconds(until));
    fs::write(dir.join("record.pem"), text).unwrap();
}

#[tokio::test]
async fn new_root_is_trusted_beside_the_old_and_signs_intermediates() {
    let fixture = Fixture::new();
    let (name, key) = fixture.roots_of().new_root(None, HOUR * 10).unwrap();
    assert_eq!(mode(&key), 0o600);
    let prints = fixture.fingerprints();
    assert_eq!(prints.len(), 2);
    assert!(name.contains(&prints[1][..16]) && key.display().to_string().contains(&prints[1][..16]));
    let ca = fixture.open();
    let before = svid(&ca, WEB).await;
    fixture.roots_of().renew_intermediate(&key, HOUR).unwrap();
    let ca = fixture.open();
    assert_ne!(svid(&ca, WEB).await.chain()[1], before.chain()[1]);
    // An intermediate for longer than the root is not possible.
    fixture.roots_of().renew_intermediate(&key, HOUR * 11).unwrap_err();
}

#[test]
fn key_of_a_new_root_overwrites_nothing() {
    let fixture = Fixture::new();
    let before = contents(&fixture.dir);
    fixture.roots_of().new_root(Some(&fixture.dir.join("root.key")), HOUR).unwrap_err();
    fixture.roots_of().new_root(Some(Path::new("/nowhere/root.key")), HOUR).unwrap_err();
    fixture.roots_of().new_root(None, Duration::ZERO).unwrap_err();
    assert_eq!(contents(&fixture.dir), before);
}

#[test]
fn only_roots_of_the_trust_domain_are_added_and_each_once() {
    let (fixture, other, stranger) = (Fixture::new(), Fixture::new(), Fixture::of("other.example"));
    let before = contents(&fixture.dir);
    let add = |file: PathBuf| fixture.roots_of().add_roots(&file);
    let error = add(stranger.dir.join("root.pem")).unwrap_err();
    assert!(error.to_string().contains("other.example"), "{error}");
    let error = add(fixture.dir.join("root.pem")).unwrap_err();
    assert!(matches!(error, RootsError::Known(_)), "{error}");
    let error = add(other.dir.join("root.key")).unwrap_err();
    assert!(error.to_string().contains("no certificate"), "{error}");
    add(PathBuf::from("/nowhere/root.pem")).unwrap_err();
    assert_eq!(contents(&fixture.dir), before);

    assert_eq!(add(other.dir.join("root.pem")).unwrap().len(), 1);
    assert_eq!(fixture.fingerprints().len(), 2);
}

#[test]
fn root_of_the_directorys_own_intermediate_stays() {
    let fixture = Fixture::new();
    let ours = fixture.fingerprints()[0].clone();
    let error = fixture.remove(&ours, &[]).unwrap_err();
    assert!(matches!(error, RootsError::Last(_)), "{error}");
    fixture.roots_of().new_root(None, HOUR).unwrap();
    let before = contents(&fixture.dir);
    let needs = needs(fixture.remove(&ours, &[]));
    assert!(matches!(&needs[..], [Need { source: NeedSource::Signing, .. }]), "{needs:?}");
    assert_eq!(contents(&fixture.dir), before);
    // The new one may go: nothing was signed under it.
    let new = fixture.fingerprints()[1].clone();
    fixture.remove(&new, &[]).unwrap();
    assert_eq!(fixture.fingerprints(), [ours]);
}

#[tokio::test]
async fn root_stays_while_a_certificate_that_was_signed_under_it_is_valid() {
    let fixture = Fixture::new();
    // Long enough for a slow machine to get as far as the first attempt.
    let ca = fixture.open().with_lifetime(Duration::from_secs(10));
    let signed = svid(&ca, WEB).await;
    let old = fixture.rotated();
    let error = fixture.remove(&old, &[]).unwrap_err();
    let text = error.to_string();
    let needs = needs(Err(error));
    assert!(matches!(&needs[..], [Need { source: NeedSource::Recorded, .. }]), "{needs:?}");
    assert!(needs[0].until >= signed.not_after() && text.contains("--force"), "{text}");
    // Once it is over, and not before.
    loop {
        let begun = SystemTime::now();
        match fixture.remove(&old, &[]) {
            Err(RootsError::Needed { .. }) => assert!(begun <= needs[0].until, "it is over"),
            removed => break drop(removed.unwrap()),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!signed.is_valid_at(SystemTime::now()));
    assert!(!fixture.fingerprints().contains(&old));
}

#[test]
fn without_a_record_the_end_of_the_retired_intermediate_counts() {
    let fixture = Fixture::new();
    let old = fixture.rotated();
    let needed = needs(fixture.remove(&old, &[]));
    assert!(matches!(&needed[..], [Need { source: NeedSource::Unrecorded, .. }]), "{needed:?}");
    let info = &fixture.roots_of().roots(&[]).unwrap()[0];
    assert_eq!((info.fingerprint.to_string(), info.needs.len()), (old.clone(), 1));

    fixture.roots_of().remove_root(&old, &[], Force::Yes).unwrap();
    assert_eq!(fixture.fingerprints().len(), 1);
}

#[test]
fn records_of_other_nodes_count_and_the_latest_of_them() {
    let fixture = Fixture::new();
    let old = fixture.rotated();
    let issuer = contents(&fixture.dir.join("retired")).into_keys().next().unwrap();
    let nodes = TempDir::new().unwrap();
    let (a, b) = (nodes.path().join("a"), nodes.path().join("b"));
    let now = SystemTime::now();
    record(&a, &issuer, now - HOUR);
    record(&b, &issuer, now + HOUR);
    let both = needs(fixture.remove(&old, &[a.clone(), b.clone()]));
    assert!(matches!(&both[..], [Need { source: NeedSource::Recorded, .. }]), "{both:?}");
    assert!(both[0].until > now);

    fixture.remove(&old, &[nodes.path().join("c")]).unwrap_err();
    fs::write(b.join("record.pem"), "nonsense").unwrap();
    let error = fixture.remove(&old, &[a.clone(), b]).unwrap_err();
    assert!(error.to_string().contains("no record"), "{error}");
    fixture.remove(&old, &[a]).unwrap();
    assert!(!fixture.fingerprints().contains(&old));
}

#[test]
fn record_of_an_issuer_that_is_known_nowhere_else_counts() {
    let (fixture, copy) = (Fixture::new(), Fixture::new());
    copy.copy_from(&fixture, "root.pem");
    let old = fixture.rotated();
    let issuer = contents(&fixture.dir.join("retired")).into_keys().next().unwrap();
    for file in ["root.pem", "intermediate.pem", "intermediate.key"] {
        copy.copy_from(&fixture, file);
    }
    // Nothing is retired in a copy to which the new files were copied: its own record says what it signed.
    record(&copy.dir.join("signed"), &issuer, SystemTime::now() + HOUR);
    assert!(matches!(&needs(copy.remove(&old, &[]))[..], [Need { source: NeedSource::Recorded, .. }]));
}

#[test]
fn intermediate_that_another_root_vouches_for_too_needs_neither() {
    let fixture = Fixture::new();
    let ours = fixture.fingerprints()[0].clone();
    // The same root once more: same name and key, another certificate.
    let key = KeyPair::from_pem(&fs::read_to_string(fixture.dir.join("root.key")).unwrap()).unwrap();
    let pem = fs::read_to_string(fixture.dir.join("root.pem")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&pem, &key).unwrap();
    let mut params = super::super::params::root(&domain(), SystemTime::now() + HOUR).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let (_, der) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    let name = der.parse_x509().unwrap();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "Culvert");
    let common = name.subject().iter_common_name().next().unwrap().as_str().unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, common);
    let again = params.signed_by(&key, &issuer).unwrap();
    let file = fixture.dir.join("again.pem");
    fs::write(&file, again.pem()).unwrap();
    fixture.roots_of().add_roots(&file).unwrap();
    fixture.remove(&ours, &[]).unwrap();
    assert_eq!(fixture.fingerprints(), [Fingerprint::of(again.der()).to_string()]);
}

#[test]
fn root_is_named_by_one_fingerprint() {
    let fixture = Fixture::new();
    fixture.roots_of().new_root(None, HOUR).unwrap();
    for (asked, found) in [("", 0), ("0123456789abcdef0123", 0)] {
        let error = fixture.remove(asked, &[]).unwrap_err();
        assert!(matches!(error, RootsError::NotOne { found: n, .. } if n == found), "{error}");
    }
}
