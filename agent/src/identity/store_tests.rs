//! The store against authorities that fail, lie, hang and come back.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use rcgen::{CertificateParams, CertificateSigningRequestParams, KeyPair};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    CaError, CertificateAuthority, Csr, Ground, IdentityRefusal, Issued, LocalCa, Rejected, Svid, SvidError,
    SvidStatus, SvidStore, TlsError, Trust, TrustBundle, Usage,
    ca::{Lifetimes, Signing},
    queue::AT_ONCE,
    testing::{CLIENT, HOUR, TestRoot, WEB, identity, leaf, uri},
};
use crate::mesh::Identity;

/// What an authority does when it is asked.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// Signs for this long.
    Good(Duration),
    /// Signs after this long.
    Slow(Duration),
    /// Signs something else than what it was asked for.
    Spoiled(fn(&mut CertificateParams)),
    /// Signs for a key of its own.
    OtherKey,
    /// Signs with another root.
    OtherRoot,
    /// Returns no certificate.
    Nothing,
    /// Fails.
    Failure,
    /// Never answers.
    Silence,
}

/// An authority that gives its answers in turn, the last one for ever.
#[derive(Debug)]
struct Scripted {
    root: TestRoot,
    trust: Trust,
    answers: Mutex<VecDeque<Answer>>,
    asked: Mutex<usize>,
    /// Requests that are unanswered, and the most that there were.
    at_once: Mutex<(usize, usize)>,
    /// In the order in which they were signed for.
    signed: Mutex<Vec<Identity>>,
}

impl Scripted {
    fn new(answers: impl IntoIterator<Item = Answer>) -> Arc<Self> {
        let root = TestRoot::new("test root");
        let (trust, answers) = (root.trust(), Mutex::new(answers.into_iter().collect()));
        let (asked, at_once, signed) = Default::default();
        Arc::new(Self { root, trust, answers, asked, at_once, signed })
    }

    fn asked(&self) -> usize {
        *self.asked.lock().unwrap()
    }

    fn next(&self) -> Answer {
        *self.asked.lock().unwrap() += 1;
        let mut answers = self.answers.lock().unwrap();
        if answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0] }
    }
}

impl CertificateAuthority for Scripted {
    fn sign<'a>(&'a self, csr: &'a Csr, identity: &'a Identity) -> Signing<'a> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let key = CertificateSigningRequestParams::from_der(csr.der())?.public_key;
            let mut params = leaf(&identity.to_string());
            let certificate = match self.next() {
                Answer::Slow(latency) => {
                    {
                        let (now, most) = &mut *self.at_once.lock().unwrap();
                        *now += 1;
                        *most = (*most).max(*now);
                    }
                    sleep(latency).await;
                    self.at_once.lock().unwrap().0 -= 1;
                    self.signed.lock().unwrap().push(identity.clone());
                    self.root.sign(&params, &key)
                }
                Answer::Good(lifetime) => {
                    params.not_after = (SystemTime::now() + lifetime).into();
                    self.root.sign(&params, &key)
                }
                Answer::Spoiled(spoil) => {
                    spoil(&mut params);
                    self.root.sign(&params, &key)
                }
                Answer::OtherKey => self.root.sign(&params, &KeyPair::generate().unwrap()),
                Answer::OtherRoot => TestRoot::new("other root").sign(&params, &key),
                Answer::Nothing => return Ok(Issued { chain: Vec::new() }),
                Answer::Failure => return Err(CaError::Expired(SystemTime::UNIX_EPOCH)),
                Answer::Silence => std::future::pending().await,
            };
            Ok(Issued { chain: vec![certificate] })
        })
    }

    fn source(&self) -> String {
        "scripted".to_owned()
    }

    fn trust(&self) -> Trust {
        self.trust.clone()
    }
}

fn store(ca: &Arc<Scripted>) -> SvidStore {
    SvidStore::new(Arc::clone(ca) as Arc<dyn CertificateAuthority>)
}

/// Waits until the store says of its only identity what is wanted.
async fn until(store: &SvidStore, wanted: impl Fn(&SvidStatus) -> bool) -> SvidStatus {
    let found = async {
        loop {
            if let Some(status) = store.snapshot().into_iter().find(&wanted) {
                return status;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), found).await.expect("the store never got there")
}

#[tokio::test]
async fn many_that_ask_at_once_share_one_request() {
    let ca = Scripted::new([Answer::Good(HOUR)]);
    let store = store(&ca);
    let asking: Vec<_> = (0..50)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.svid(&identity(WEB)).await.unwrap().serial().to_owned() })
        })
        .collect();
    let mut serials = HashSet::new();
    for task in asking {
        serials.insert(task.await.unwrap());
    }
    assert_eq!(serials.len(), 1);
    assert_eq!(ca.asked(), 1);
    store.svid(&identity(CLIENT)).await.unwrap();
    assert_eq!(ca.asked(), 2, "another identity is another request");
}

#[tokio::test(start_paused = true)]
async fn failure_is_told_at_once_and_repeated_until_it_works() {
    let ca = Scripted::new([Answer::Failure, Answer::Failure, Answer::Failure, Answer::Good(HOUR)]);
    let store = store(&ca);
    let error = store.svid(&identity(WEB)).await.unwrap_err();
    assert!(matches!(error, SvidError::Authority { .. }), "{error:?}");
    assert!(error.to_string().contains(WEB), "{error}");
    assert_eq!(ca.asked(), 1, "asking again does not hurry the authority");
    until(&store, |status| status.failures == 3).await;
    let status = until(&store, |status| status.svid.is_some()).await;
    assert_eq!(ca.asked(), 4);
    assert!(status.error.is_none() && status.failures == 0);
    store.svid(&identity(WEB)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn silent_authority_meets_a_deadline() {
    let store = store(&Scripted::new([Answer::Silence]));
    let error = store.svid(&identity(WEB)).await.unwrap_err();
    let SvidError::Authority { source, .. } = &error else { panic!("{error:?}") };
    assert!(matches!(**source, CaError::Timeout(_)), "{error}");
}

/// Expects an answer to be rejected, and the next, good one to be taken.
async fn rejected(answer: Answer, expected: impl Fn(&Rejected) -> bool) {
    let ca = Scripted::new([answer, Answer::Good(HOUR)]);
    let store = store(&ca);
    let error = store.svid(&identity(WEB)).await.unwrap_err();
    let SvidError::Rejected { source, .. } = &error else { panic!("{error:?}") };
    assert!(expected(source), "{error:?}");
    let status = until(&store, |status| status.svid.is_some()).await;
    assert_eq!(status.svid.unwrap().identity(), &identity(WEB));

    let mut registry = prometheus_client::registry::Registry::default();
    store.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(
        text.contains("culvert_certificate_requests_total{result=\"rejected\",kind=\"issuance\"} 1"),
        "{text}"
    );
    assert!(
        text.contains("culvert_certificate_requests_total{result=\"issued\",kind=\"issuance\"} 1"),
        "{text}"
    );
    assert!(
        text.contains("culvert_certificate_requests_total{result=\"failed\",kind=\"issuance\"} 0"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn certificate_of_another_identity_is_rejected() {
    let spoil = |params: &mut CertificateParams| params.subject_alt_names = vec![uri(CLIENT)];
    let mismatch = IdentityRefusal::Mismatch { expected: identity(WEB), presented: identity(CLIENT) };
    rejected(
        Answer::Spoiled(spoil),
        |why| matches!(why, Rejected::Unsound(TlsError::Identity(refusal)) if **refusal == mismatch),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn certificate_for_another_key_is_rejected() {
    rejected(Answer::OtherKey, |why| matches!(why, Rejected::OtherKey)).await;
}

#[tokio::test(start_paused = true)]
async fn certificate_of_another_root_is_rejected() {
    rejected(Answer::OtherRoot, |why| matches!(why, Rejected::Unsound(TlsError::UnknownIssuer))).await;
}

#[tokio::test(start_paused = true)]
async fn expired_certificate_is_rejected() {
    let spoil = |params: &mut CertificateParams| params.not_after = (SystemTime::now() - HOUR / 2).into();
    rejected(Answer::Spoiled(spoil), |why| matches!(why, Rejected::Unsound(TlsError::Expired { .. }))).await;
}

#[tokio::test(start_paused = true)]
async fn certificate_for_servers_only_is_rejected() {
    let spoil = |params: &mut CertificateParams| params.extended_key_usages.truncate(1);
    rejected(Answer::Spoiled(spoil), |why| {
        matches!(why, Rejected::Unsound(TlsError::Purpose(Usage::Client)))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn no_certificate_at_all_is_rejected() {
    rejected(Answer::Nothing, |why| matches!(why, Rejected::Empty)).await;
}

#[tokio::test]
async fn certificate_is_renewed_before_it_expires() {
    let store = store(&Scripted::new([Answer::Good(Duration::from_secs(16))]));
    let first = store.svid(&identity(WEB)).await.unwrap();
    assert!(store.snapshot()[0].renew_at.unwrap() < first.not_after());
    let renewed =
        |status: &SvidStatus| status.svid.as_ref().is_some_and(|svid| svid.serial() != first.serial());
    let status = until(&store, renewed).await;
    assert!(status.svid.unwrap().not_after() > first.not_after());
}

#[tokio::test]
async fn certificate_that_cannot_be_renewed_is_used_until_it_expires_and_no_longer() {
    let store = store(&Scripted::new([Answer::Good(Duration::from_secs(3)), Answer::Failure]));
    let first = store.svid(&identity(WEB)).await.unwrap();
    until(&store, |status| status.failures > 0).await;
    match store.svid(&identity(WEB)).await {
        Ok(svid) => assert_eq!(svid.serial(), first.serial()),
        Err(_) => assert!(!first.is_valid_at(SystemTime::now())),
    }
    until(&store, |_| !first.is_valid_at(SystemTime::now())).await;
    let error = store.svid(&identity(WEB)).await.unwrap_err();
    assert!(matches!(error, SvidError::Expired { cause: Some(_), .. }), "{error:?}");
    assert!(error.to_string().contains(WEB), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_retained_is_forgotten_and_asked_for_no_more() {
    let ca = Scripted::new([Answer::Failure]);
    let store = store(&ca);
    store.svid(&identity(WEB)).await.unwrap_err();
    store.retain(&HashSet::from([identity(WEB)]));
    let before = ca.asked();
    until(&store, |status| status.failures > 3).await;
    assert!(ca.asked() > before, "what is retained is tried on");

    store.retain(&HashSet::new());
    assert!(store.snapshot().is_empty());
    let before = ca.asked();
    sleep(HOUR).await;
    assert_eq!(ca.asked(), before);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_forgotten_identity_is_told() {
    let store = store(&Scripted::new([Answer::Silence]));
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.svid(&identity(WEB)).await }
    });
    while store.snapshot().is_empty() {
        tokio::task::yield_now().await;
    }
    store.retain(&HashSet::new());
    assert!(matches!(waiting.await.unwrap(), Err(SvidError::Forgotten(_))));
}

fn many(count: usize) -> Vec<Identity> {
    (0..count).map(|number| identity(&format!("spiffe://cluster.local/ns/shop/sa/pod-{number}"))).collect()
}

#[tokio::test(start_paused = true)]
async fn two_thousand_identities_are_signed_for_at_once_and_within_a_bound() {
    let ca = Scripted::new([Answer::Slow(Duration::from_millis(100))]);
    let store = store(&ca);
    let all = many(2000);
    for identity in &all {
        store.prefetch(identity);
    }
    // Virtual time: the authority's latency is all that passes.
    let begun = tokio::time::Instant::now();
    for identity in &all {
        while !store.snapshot().iter().all(|status| status.svid.is_some()) {
            sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(store.svid(identity).await.unwrap().identity(), identity);
    }
    let (_, most) = *ca.at_once.lock().unwrap();
    assert_eq!(ca.asked(), 2000);
    assert!((2..=AT_ONCE).contains(&most), "{most} requests at once");
    assert!(begun.elapsed() < Duration::from_secs(100), "one after the other: {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn connection_that_waits_passes_those_that_nobody_waits_for() {
    let ca = Scripted::new([Answer::Slow(Duration::from_millis(100))]);
    let store = store(&ca);
    let all = many(2000);
    for identity in &all {
        store.prefetch(identity);
    }
    while ca.signed.lock().unwrap().is_empty() {
        sleep(Duration::from_millis(10)).await;
    }
    // One that has a place in the queue, and one that has none.
    for wanted in [&all[1999], &identity(WEB)] {
        store.svid(wanted).await.unwrap();
        let signed = ca.signed.lock().unwrap().clone();
        assert!(signed.contains(wanted) && signed.len() < 200, "after {} others", signed.len());
    }
}

#[tokio::test]
async fn certificate_that_lost_its_root_is_renewed_at_once() {
    let ca = Scripted::new([Answer::Good(HOUR)]);
    let (roots, trust) = watch::channel(ca.trust().borrow().clone());
    let store = SvidStore::with_trust(Arc::clone(&ca) as Arc<dyn CertificateAuthority>, trust);
    let first = store.svid(&identity(WEB)).await.unwrap();
    let bundle = |root: &TestRoot| Arc::new(TrustBundle::new(vec![root.certificate.clone()]).unwrap());
    // The authority still signs with the old root: what it returns is refused, and said.
    roots.send_replace(bundle(&TestRoot::new("new root")));
    let status = until(&store, |status| status.failures > 0).await;
    assert!(matches!(&*status.error.unwrap(), SvidError::Rejected { .. }));
    roots.send_replace(bundle(&ca.root));
    let status = until(&store, |status| status.error.is_none()).await;
    assert_ne!(status.svid.unwrap().serial(), first.serial());
}

#[tokio::test]
async fn nothing_that_is_printed_holds_a_key() {
    let root = TestRoot::new("test root");
    let key = KeyPair::generate().unwrap();
    let csr = Csr::new(&identity(WEB), &key).unwrap();
    let issued = Issued { chain: vec![root.sign(&leaf(WEB), &key)] };
    let printed_before = format!("{csr:?} {issued:?}");
    let svid = Arc::new(Svid::new(&identity(WEB), &key, issued, root.trust()).unwrap());
    let status = SvidStatus {
        identity: identity(WEB),
        svid: Some(Arc::clone(&svid)),
        renew_at: None,
        error: None,
        failures: 0,
    };
    let ground = Ground::new(&svid, Usage::Client);
    let printed = format!("{printed_before} {svid:?} {status:?} {ground:?} {:?}", svid.trust());
    // The private scalar stands at a fixed place in the PKCS#8 of P-256 (RFC 5915, RFC 5208).
    let scalar = &key.serialized_der()[36..68];
    let hex: String = scalar.iter().map(|byte| format!("{byte:02x}")).collect();
    let decimal = scalar.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    assert!(printed.contains("web"), "{printed}");
    for form in [hex.clone(), hex.to_uppercase(), decimal] {
        assert!(!printed.contains(&form), "a key is printed");
    }
}

/// Not a test of anything: what the documentation says comes from here.
#[tokio::test]
#[ignore = "a measurement, of a process that does nothing else: cargo test -p culvert --lib memory_of -- --ignored --nocapture"]
async fn memory_of_two_thousand_identities() {
    let resident = || {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("ca");
    LocalCa::init(&path, &"cluster.local".parse().unwrap(), Lifetimes::default()).unwrap();
    let store = SvidStore::new(Arc::new(LocalCa::open(&path).unwrap()));
    for identity in many(100) {
        store.svid(&identity).await.unwrap();
    }
    let before = resident();
    for identity in many(2100) {
        store.svid(&identity).await.unwrap();
    }
    let bytes = (resident() - before) / 2000;
    println!("{bytes} bytes for each of 2000 more identities");
}
