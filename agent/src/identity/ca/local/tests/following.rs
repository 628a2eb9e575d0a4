//! What a running process makes of files that change under it.

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::super::signed::Signed;
use super::*;
use crate::identity::ca::{CaDirectory, CertificateAuthority, Force, IssuerPem};

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
    ca.signers.state().borrow().error.is_some()
}

/// What it signs with.
fn chain(ca: &LocalCa) -> Vec<rustls::pki_types::CertificateDer<'static>> {
    ca.signer.borrow().intermediate.chain.clone()
}

async fn issuer_of(ca: &LocalCa) -> Vec<u8> {
    svid(ca, WEB).await.chain()[1].to_vec()
}

#[tokio::test]
async fn replaced_intermediate_signs_and_certificates_of_the_old_one_are_renewed_soon() {
    let fixture = Fixture::new();
    // By themselves renewed after 45 seconds at the earliest; after another issuer within ten.
    let ca = Arc::new(fixture.open().with_lifetime(Duration::from_secs(100)));
    let store = SvidStore::new(Arc::clone(&ca) as Arc<dyn CertificateAuthority>);
    let first = store.svid(&identity(WEB)).await.unwrap();
    let planned = store.snapshot()[0].renew_at.unwrap();

    fixture.directory().renew_intermediate(&fixture.dir.join("root.key"), HOUR).unwrap();
    let newest = || store.snapshot()[0].svid.clone().unwrap();
    until("a certificate by another issuer", || newest().chain()[1] != first.chain()[1]).await;
    assert!(SystemTime::now() < planned, "long before its half-life");
    assert_eq!(chain(&ca)[0], newest().chain()[1]);
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
        until("the other issuer", || chain(&ca)[0].as_ref() != old).await;
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
    until("the other issuer", || chain(&ca)[0].as_ref() != old).await;
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
        ca.signers.state().borrow().error.as_ref().is_some_and(|error| error.contains("other.example"))
    })
    .await;
    assert_eq!(chain(&ca)[0].as_ref(), old);
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
    until("a refusal", || ca.roots.state().borrow().error.is_some()).await;
    assert_eq!(trust.borrow().certificates().len(), 1);
}

#[tokio::test]
async fn what_is_signed_is_recorded_first_and_never_shortened() {
    let fixture = Fixture::new();
    let ca = fixture.open().with_lifetime(HOUR);
    let svid_until = svid(&ca, WEB).await.not_after();
    let records = Signed::read_all(&fixture.dir.join("signed")).unwrap();
    let [record] = &records[..] else { panic!("one issuer, one record: {records:?}") };
    assert_eq!(record.chain, chain(&ca));
    assert!(record.until >= svid_until && record.until < svid_until + HOUR / 8, "{record:?}");

    // Another process on the same directory, with shorter certificates.
    let short = fixture.open().with_lifetime(HOUR / 2);
    svid(&short, WEB).await;
    let again = Signed::read_all(&fixture.dir.join("signed")).unwrap();
    assert_eq!(again[0].until, record.until);
}

#[tokio::test]
async fn directory_that_takes_no_records_signs_all_the_same() {
    let fixture = Fixture::new();
    fs::write(fixture.dir.join("signed"), "in the way").unwrap();
    svid(&fixture.open(), WEB).await;
    assert_eq!(fs::read(fixture.dir.join("signed")).unwrap(), b"in the way");
}

#[tokio::test]
async fn records_of_several_processes_keep_the_latest_end() {
    let fixture = Fixture::new();
    let chain = chain(&fixture.open());
    let dir = fixture.dir.join("signed");
    let now = SystemTime::now();
    std::thread::scope(|scope| {
        for process in 0..8_u32 {
            let (chain, dir) = (&chain, &dir);
            scope.spawn(move || {
                for step in 0..50 {
                    let until = now + HOUR + Duration::from_secs((step * 7 + process * 13).into());
                    Signed { chain: chain.clone(), until }.write(dir).unwrap();
                }
            });
        }
    });
    let [record] = &Signed::read_all(&dir).unwrap()[..] else { panic!("one issuer, one record") };
    let latest =
        (0..8_u32).flat_map(|process| (0..50).map(move |step| step * 7 + process * 13)).max().unwrap();
    let ends = now + HOUR + Duration::from_secs(latest.into());
    assert!(
        record.until <= ends && record.until + Duration::from_secs(1) > ends,
        "whole seconds: {record:?}"
    );
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing else is left");
}

/// What another task would read of the fixture's authority from elsewhere.
fn given(fixture: &Fixture) -> IssuerPem {
    let read = |name: &str| fs::read(fixture.dir.join(name)).unwrap();
    IssuerPem {
        name: "Secret culvert-system/culvert-ca".into(),
        certificate: read("intermediate.pem"),
        key: read("intermediate.key").into(),
        roots: read("root.pem"),
        trust_domain: None,
    }
}

#[tokio::test]
async fn an_authority_in_no_file_follows_what_it_is_given_and_keeps_what_works() {
    let (fixture, other) = (Fixture::new(), Fixture::new());
    let first = given(&fixture);
    let (sender, receiver) = watch::channel(Arc::new(first));
    let ca = LocalCa::open_given(&receiver).unwrap();
    let before = issuer_of(&ca).await;

    // A certificate with another's key, and an authority that its roots do not vouch for.
    let mixed = IssuerPem { key: given(&other).key, ..given(&fixture) };
    let unsound = IssuerPem { roots: given(&fixture).roots, ..given(&other) };
    for (broken, says) in [(mixed, "tls.key: this is not the key"), (unsound, "do not work together")] {
        sender.send_replace(Arc::new(broken));
        let error = || ca.signers.state().borrow().error.clone();
        until(says, || error().is_some_and(|error| error.contains(says))).await;
        assert!(error().unwrap().contains("Secret culvert-system/culvert-ca"));
        assert_eq!(issuer_of(&ca).await, before, "{says}");
    }

    let both = [given(&fixture).roots, given(&other).roots].concat();
    sender.send_replace(Arc::new(IssuerPem { roots: both, ..given(&other) }));
    until("the other intermediate", || chain(&ca)[0] != before[..].into()).await;
    assert_ne!(issuer_of(&ca).await, before);
    assert_eq!(ca.trust().borrow().certificates().len(), 2);
    assert!(!refused(&ca));
}
