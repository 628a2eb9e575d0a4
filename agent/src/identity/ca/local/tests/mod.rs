//! The authority in a directory, from `init` to a handshake of two workloads.

mod files;
mod following;
mod intermediates;
mod roots;

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::KeyPair;
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{CaError, CertificateAuthority as _, Csr, InitError, Lifetimes, LocalCa};
use crate::{
    identity::{
        Rejected, Svid, SvidStore, TlsError, peer_identity,
        testing::{CLIENT, HOUR, WEB, identity},
    },
    mesh::TrustDomain,
};

/// A directory with an authority in it.
struct Fixture {
    _parent: TempDir,
    dir: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        Self::of("cluster.local")
    }

    fn of(trust_domain: &str) -> Self {
        let parent = TempDir::new().unwrap();
        let dir = parent.path().join("ca");
        LocalCa::init(&dir, &trust_domain.parse().unwrap(), Lifetimes::default()).unwrap();
        Self { _parent: parent, dir }
    }

    fn open(&self) -> LocalCa {
        LocalCa::open(&self.dir).unwrap()
    }

    fn copy_from(&self, other: &Self, file: &str) {
        fs::copy(other.dir.join(file), self.dir.join(file)).unwrap();
    }
}

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

/// Everything in a directory, to see that nothing of it changed.
fn contents(dir: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut found = std::collections::BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    found
}

async fn svid(ca: &LocalCa, id: &str) -> Svid {
    let (identity, key) = (identity(id), KeyPair::generate().unwrap());
    let issued = ca.sign(&Csr::new(&identity, &key).unwrap(), &identity).await.unwrap();
    Svid::new(&identity, &key, issued, ca.trust()).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[test]
fn keys_are_readable_by_their_owner_alone() {
    let ca = Fixture::new();
    assert_eq!(mode(&ca.dir), 0o700);
    for (file, expected) in
        [("root.key", 0o600), ("intermediate.key", 0o600), ("root.pem", 0o644), ("intermediate.pem", 0o644)]
    {
        assert_eq!(mode(&ca.dir.join(file)), expected, "{file}");
    }
    let beside: Vec<_> =
        fs::read_dir(ca.dir.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(matches!(&beside[..], [only] if *only == ca.dir), "nothing but the authority is left");
}

#[test]
fn init_overwrites_nothing() {
    let ca = Fixture::new();
    let key = fs::read(ca.dir.join("root.key")).unwrap();
    let error = LocalCa::init(&ca.dir, &domain(), Lifetimes::default()).unwrap_err();
    assert!(matches!(error, InitError::Exists(_)), "{error}");
    assert_eq!(fs::read(ca.dir.join("root.key")).unwrap(), key);

    let file = ca.dir.join("root.pem");
    let error = LocalCa::init(&file, &domain(), Lifetimes::default()).unwrap_err();
    assert!(matches!(error, InitError::Exists(_)), "{error}");
}

#[tokio::test]
async fn init_takes_an_empty_directory_and_makes_missing_parents() {
    let parent = TempDir::new().unwrap();
    LocalCa::init(parent.path(), &domain(), Lifetimes::default()).unwrap();
    assert_eq!(mode(parent.path()), 0o700);
    let deep = parent.path().join("a/b/ca/");
    LocalCa::init(&deep, &domain(), Lifetimes::default()).unwrap();
    LocalCa::open(&deep).unwrap();
}

#[test]
fn failed_init_leaves_nothing_behind() {
    let parent = TempDir::new().unwrap();
    for impossible in [Duration::ZERO, HOUR * 24 * 365 * 9000, Duration::MAX] {
        let lifetimes = Lifetimes { root: impossible, ..Lifetimes::default() };
        let error = LocalCa::init(&parent.path().join("ca"), &domain(), lifetimes).unwrap_err();
        assert!(matches!(error, InitError::Lifetime(_)), "{error}");
    }
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
}

#[test]
fn root_key_may_be_written_elsewhere() {
    let parent = TempDir::new().unwrap();
    let (dir, key) = (parent.path().join("ca"), parent.path().join("offline.key"));
    let init = |dir: &Path| LocalCa::init_with_root_key(dir, &domain(), Lifetimes::default(), &key);
    init(&dir).unwrap();
    assert_eq!(mode(&key), 0o600);
    assert!(!dir.join("root.key").exists());
    // Another authority does not take its place.
    let before = fs::read(&key).unwrap();
    init(&parent.path().join("other")).unwrap_err();
    assert_eq!(fs::read(&key).unwrap(), before);
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 2, "nothing is left behind");
}

#[tokio::test]
async fn signs_without_the_root_key_for_its_trust_domain_only() {
    let fixture = Fixture::new();
    fs::remove_file(fixture.dir.join("root.key")).unwrap();
    let ca = fixture.open();
    assert_eq!(*ca.trust_domain(), domain());
    svid(&ca, WEB).await;

    let other = identity("spiffe://other.example/ns/shop/sa/web");
    let csr = Csr::new(&other, &KeyPair::generate().unwrap()).unwrap();
    let error = ca.sign(&csr, &other).await.unwrap_err();
    assert!(matches!(error, CaError::TrustDomain { .. }), "{error}");
}

#[tokio::test]
async fn certificates_have_what_a_workload_needs_and_no_more() {
    let ca = Fixture::new().open();
    let svid = svid(&ca, WEB).await;
    assert_eq!(svid.chain().len(), 2, "leaf and intermediate, no root");
    let (_, leaf) = x509_parser::parse_x509_certificate(&svid.chain()[0]).unwrap();
    assert!(leaf.subject().iter().next().is_none());
    assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca);
    assert_eq!(leaf.key_usage().unwrap().unwrap().value.flags, 1, "digitalSignature alone");
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth && !usage.any && usage.other.is_empty());
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical, "RFC 5280 §4.1.2.6: the subject is empty");
    assert_eq!(names.value.general_names, [x509_parser::extensions::GeneralName::URI(WEB)]);

    let lifetime = svid.not_after().duration_since(svid.not_before()).unwrap();
    let wanted = LocalCa::LIFETIME + Duration::from_secs(5 * 60);
    assert!(lifetime.abs_diff(wanted) <= Duration::from_secs(1), "{lifetime:?}");
    let (_, intermediate) = x509_parser::parse_x509_certificate(&svid.chain()[1]).unwrap();
    let constraints = intermediate.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0));
}

#[tokio::test]
async fn serial_numbers_differ() {
    let ca = Fixture::new().open();
    assert_ne!(svid(&ca, WEB).await.serial(), svid(&ca, WEB).await.serial());
}

#[tokio::test]
async fn no_certificate_outlives_the_intermediate() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("ca");
    let lifetimes = Lifetimes { root: HOUR, intermediate: HOUR * 2 };
    LocalCa::init(&dir, &domain(), lifetimes).unwrap();
    let ca = LocalCa::open(&dir).unwrap();
    assert!(ca.not_after() <= SystemTime::now() + HOUR, "nor the intermediate the root");
    assert_eq!(svid(&ca, WEB).await.not_after(), ca.not_after());
    let short = ca.with_lifetime(HOUR / 2);
    assert!(svid(&short, WEB).await.not_after() <= SystemTime::now() + HOUR / 2);
}

#[tokio::test]
async fn request_that_its_key_did_not_sign_is_refused() {
    let ca = Fixture::new().open();
    let web = identity(WEB);
    let mut der = Csr::new(&web, &KeyPair::generate().unwrap()).unwrap().der().to_vec();
    let name = der.windows(4).position(|bytes| bytes == b"shop").unwrap();
    der[name] = b'c';
    let error = ca.sign(&Csr::from_der(der.into()), &web).await.unwrap_err();
    assert!(matches!(error, CaError::Crypto(_)), "{error}");
}

#[tokio::test]
async fn missing_and_broken_files_are_named() {
    for file in ["root.pem", "intermediate.pem", "intermediate.key"] {
        let ca = Fixture::new();
        fs::write(ca.dir.join(file), "nonsense").unwrap();
        let error = LocalCa::open(&ca.dir).unwrap_err();
        assert!(error.to_string().contains(file), "{error}");
        fs::remove_file(ca.dir.join(file)).unwrap();
        let error = LocalCa::open(&ca.dir).unwrap_err();
        assert!(matches!(error, CaError::Read { .. }) && error.to_string().contains(file), "{error}");
    }
}

#[tokio::test]
async fn files_of_two_authorities_do_not_mix() {
    let other = Fixture::new();
    let ca = Fixture::new();
    ca.copy_from(&other, "root.pem");
    let error = LocalCa::open(&ca.dir).unwrap_err();
    assert!(
        matches!(&error, CaError::Unsound { source: Rejected::Unsound(TlsError::UnknownIssuer), .. }),
        "{error:?}"
    );
    let ca = Fixture::new();
    ca.copy_from(&other, "intermediate.key");
    let error = LocalCa::open(&ca.dir).unwrap_err();
    assert!(
        matches!(&error, CaError::Content { path, .. } if path.ends_with("intermediate.key")),
        "{error:?}"
    );
}

#[tokio::test]
async fn several_roots_are_trusted_at_once() {
    let (ca, other) = (Fixture::new(), Fixture::new());
    let mut roots = fs::read(other.dir.join("root.pem")).unwrap();
    roots.extend(fs::read(ca.dir.join("root.pem")).unwrap());
    fs::write(ca.dir.join("root.pem"), roots).unwrap();
    assert_eq!(ca.open().trust().borrow().certificates().len(), 2);
}

#[tokio::test]
async fn nothing_prints_a_key() {
    let fixture = Fixture::new();
    let key = fs::read_to_string(fixture.dir.join("intermediate.key")).unwrap();
    let key = KeyPair::from_pem(&key).unwrap();
    let text = format!("{:?}", SvidStore::new(Arc::new(fixture.open())));
    assert!(text.contains("cluster.local"), "{text}");
    // The private scalar stands at a fixed place in the PKCS#8 of P-256 (RFC 5915, RFC 5208).
    let scalar: String = key.serialized_der()[36..68].iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(!text.contains(&scalar) && !text.contains("BEGIN"), "{text}");
}

#[tokio::test]
async fn two_workloads_of_one_authority_shake_hands() {
    let ca = Fixture::new().open();
    let (client, server) = (svid(&ca, CLIENT).await, svid(&ca, WEB).await);
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from("192.0.2.1").unwrap();
    let connector = TlsConnector::from(client.client_config(&identity(WEB)));
    let acceptor = TlsAcceptor::from(server.server_config());
    let (near, far) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
    assert_eq!(peer_identity(near.unwrap().get_ref().1).unwrap(), identity(WEB));
    assert_eq!(peer_identity(far.unwrap().get_ref().1).unwrap(), identity(CLIENT));

    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from("192.0.2.1").unwrap();
    let connector = TlsConnector::from(client.client_config(&identity(CLIENT)));
    let acceptor = TlsAcceptor::from(server.server_config());
    let (near, _) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
    let error = TlsError::from_io(&near.unwrap_err());
    assert!(matches!(error, TlsError::Identity(_)), "{error}");
}
