//! What a running process makes of files that change under it.

use tokio::time::{sleep, timeout};

use super::*;
use crate::identity::ca::{CaDirectory, Force};

impl Fixture {
    fn directory(&self) -> CaDirectory {
        CaDirectory::open(&self.dir).unwrap()
    }

    /// Copies a file as most tools do: emptied, then written.
    fn overwrite(&self, file: &str, bytes: &[u8]) {
        fs::write(self.dir.join(file), bytes).unwrap();
    }

    fn add_root_of(&self, other: &Self) {
        self.directory().add_roots(&other.dir.join("root.pem")).unwrap();
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    timeout(Duration::from_secs(60), async {
        while !condition() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("waited for: {what}"));
}

/// Whether the newest content of the intermediate's files was refused.
fn refused(ca: &LocalCa) -> bool {
    ca.files()[1].borrow().error.is_some()
}

async fn issuer_of(ca: &LocalCa) -> Vec<u8> {
    svid(ca, WEB).await.chain()[1].to_vec()
}

#[tokio::test]
async fn replaced_intermediate_signs_and_certificates_of_the_old_one_are_renewed_soon() {
    let fixture = Fixture::new();
    // Renewed at some ten minutes by itself, and within two when the issuer changed: the clock says which.
    let ca = Arc::new(fixture.open().with_lifetime(Duration::from_secs(20)));
    let store = SvidStore::new(Arc::clone(&ca) as Arc<dyn crate::identity::CertificateAuthority>);
    let first = store.svid(&identity(WEB)).await.unwrap();
    let planned = store.snapshot()[0].renew_at.unwrap();

    fixture.directory().renew_intermediate(&fixture.dir.join("root.key"), HOUR).unwrap();
    until("another issuer", || *ca.generation().borrow() == 1).await;
    until("an earlier renewal", || {
        store.snapshot()[0].renew_at.unwrap() < planned || {
            store.snapshot()[0].svid.as_ref().unwrap().serial() != first.serial()
        }
    })
    .await;
    until("a certificate by it", || {
        store.snapshot()[0].svid.as_ref().unwrap().chain()[1] != first.chain()[1]
    })
    .await;
    assert_eq!(ca.chain()[0], store.svid(&identity(WEB)).await.unwrap().chain()[1]);
    assert_eq!(*ca.generation().borrow(), 1, "once");
}

#[tokio::test]
async fn pair_that_is_replaced_file_by_file_signs_throughout() {
    for first in ["intermediate.pem", "intermediate.key"] {
        let (fixture, other) = (Fixture::new(), Fixture::new());
        fixture.add_root_of(&other);
        let ca = fixture.open();
        let old = issuer_of(&ca).await;
        let second = if first == "intermediate.pem" { "intermediate.key" } else { "intermediate.pem" };

        fixture.overwrite(first, &fs::read(other.dir.join(first)).unwrap());
        until("a refusal", || refused(&ca)).await;
        assert_eq!(issuer_of(&ca).await, old, "after {first}");
        fixture.overwrite(second, &fs::read(other.dir.join(second)).unwrap());
        until("the other issuer", || ca.chain()[0].as_ref() != old).await;
        assert_ne!(issuer_of(&ca).await, old);
        until("no refusal", || !refused(&ca)).await;
    }
}

#[tokio::test]
async fn intermediate_whose_root_is_not_trusted_yet_waits_for_it() {
    let (fixture, other) = (Fixture::new(), Fixture::new());
    let ca = fixture.open();
    let old = issuer_of(&ca).await;
    for file in ["intermediate.pem", "intermediate.key"] {
        fixture.copy_from(&other, file);
    }
    until("a refusal", || refused(&ca)).await;
    assert_eq!(issuer_of(&ca).await, old);
    let mut roots = fs::read(fixture.dir.join("root.pem")).unwrap();
    roots.extend(fs::read(other.dir.join("root.pem")).unwrap());
    fixture.overwrite("root.pem", &roots);
    until("the other issuer", || ca.chain()[0].as_ref() != old).await;
    // Never signs what it does not trust itself.
    assert_ne!(issuer_of(&ca).await, old);
    assert_eq!(ca.trust().borrow().certificates().len(), 2);
}

#[tokio::test]
async fn intermediate_of_another_trust_domain_is_refused_while_running() {
    let fixture = Fixture::new();
    let other = Fixture::of("other.example");
    let ca = fixture.open();
    let old = issuer_of(&ca).await;
    for file in ["root.pem", "intermediate.pem", "intermediate.key"] {
        fixture.copy_from(&other, file);
    }
    until("a refusal", || {
        ca.files()[1].borrow().error.as_ref().is_some_and(|error| error.contains("other.example"))
    })
    .await;
    assert_eq!(ca.chain()[0].as_ref(), old);
    assert_eq!(*ca.trust_domain(), domain());
}

#[tokio::test]
async fn roots_are_followed_both_ways() {
    let (fixture, other) = (Fixture::new(), Fixture::new());
    let ca = fixture.open();
    let trust = ca.trust();
    fixture.add_root_of(&other);
    until("two roots", || trust.borrow().certificates().len() == 2).await;
    let added = trust.borrow().certificates()[1].clone();
    let print = crate::identity::Fingerprint::of(&added).to_string();
    fixture.directory().remove_root(&print, &[], Force::No).unwrap();
    until("one root", || trust.borrow().certificates().len() == 1).await;
    // What cannot be read takes nothing away.
    fixture.overwrite("root.pem", b"");
    until("a refusal", || ca.files()[0].borrow().error.is_some()).await;
    assert_eq!(trust.borrow().certificates().len(), 1);
}

#[tokio::test]
async fn what_is_signed_is_recorded_first_and_never_shortened() {
    let fixture = Fixture::new();
    let ca = fixture.open().with_lifetime(HOUR);
    let svid_until = svid(&ca, WEB).await.not_after();
    let records = super::super::signed::Signed::read_all(&fixture.dir.join("signed")).unwrap();
    let [record] = &records[..] else { panic!("one issuer, one record: {records:?}") };
    assert_eq!(record.chain, ca.chain());
    assert!(record.until >= svid_until && record.until < svid_until + HOUR / 8, "{record:?}");

    // Another process on the same directory, with shorter certificates.
    let short = fixture.open().with_lifetime(HOUR / 2);
    svid(&short, WEB).await;
    let again = super::super::signed::Signed::read_all(&fixture.dir.join("signed")).unwrap();
    assert_eq!(again[0].until, record.until);
}

#[tokio::test]
async fn directory_that_takes_no_records_signs_all_the_same() {
    let fixture = Fixture::new();
    fs::write(fixture.dir.join("signed"), "in the way").unwrap();
    svid(&fixture.open(), WEB).await;
    assert_eq!(fs::read(fixture.dir.join("signed")).unwrap(), b"in the way");
}
