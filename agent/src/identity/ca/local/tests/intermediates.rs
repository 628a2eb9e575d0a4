//! Replacing the intermediate, with the root's key at hand or elsewhere.

use super::*;
use crate::identity::ca::{CaDirectory, IntermediateError, sign_request};

impl Fixture {
    fn root_key(&self) -> PathBuf {
        self.dir.join("root.key")
    }

    fn root_elsewhere(&self) -> (TempDir, PathBuf, PathBuf) {
        let disk = TempDir::new().unwrap();
        let (key, certificate) = (disk.path().join("root.key"), disk.path().join("root.pem"));
        fs::rename(self.root_key(), &key).unwrap();
        fs::copy(self.dir.join("root.pem"), &certificate).unwrap();
        (disk, key, certificate)
    }

    fn take(&self) -> CaDirectory {
        CaDirectory::open(&self.dir).unwrap()
    }
}

#[tokio::test]
async fn replaced_by_one_of_a_new_key_and_the_old_is_kept() {
    let fixture = Fixture::new();
    let (_disk, key, _) = fixture.root_elsewhere();
    let before = fs::read(fixture.dir.join("intermediate.pem")).unwrap();
    let before_key = fs::read(fixture.dir.join("intermediate.key")).unwrap();
    fixture.take().renew_intermediate(&key, HOUR).unwrap();

    assert_ne!(fs::read(fixture.dir.join("intermediate.key")).unwrap(), before_key);
    assert_eq!(mode(&fixture.dir.join("intermediate.key")), 0o600);
    let retired: Vec<_> = contents(&fixture.dir.join("retired")).into_values().collect();
    assert_eq!(retired, [before]);
    assert!(!fixture.dir.join("intermediate.key.next").exists());
    let ca = fixture.open();
    assert!(ca.not_after() <= SystemTime::now() + HOUR);
    let chain = svid(&ca, WEB).await.chain().to_vec();
    let (_, intermediate) = x509_parser::parse_x509_certificate(&chain[1]).unwrap();
    let constraints = intermediate.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0));
    let usage = intermediate.key_usage().unwrap().unwrap().value;
    assert!(usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature());
}

#[test]
fn bad_input_changes_nothing() {
    let (fixture, other) = (Fixture::new(), Fixture::new());
    let before = contents(&fixture.dir);
    let year = HOUR * 24 * 365;
    let renew = |key: &Path, lifetime| fixture.take().renew_intermediate(key, lifetime).unwrap_err();

    let error = renew(&other.root_key(), HOUR);
    assert!(matches!(error, IntermediateError::OtherRoot { .. }), "{error}");
    let error = renew(&fixture.root_key(), year * 11);
    assert!(matches!(error, IntermediateError::RootSooner { .. }), "{error}");
    let error = renew(&fixture.root_key(), Duration::ZERO);
    assert!(matches!(error, IntermediateError::Lifetime(_)), "{error}");
    let error = renew(Path::new("/nowhere/root.key"), HOUR);
    assert!(error.to_string().contains("/nowhere/root.key"), "{error}");
    let error = renew(&fixture.dir.join("root.pem"), HOUR);
    assert!(matches!(error, IntermediateError::File(_)), "{error}");
    assert_eq!(contents(&fixture.dir), before);
}

#[test]
fn one_command_at_a_time() {
    let fixture = Fixture::new();
    let first = fixture.take();
    let error = CaDirectory::open(&fixture.dir).err().expect("the first has it");
    assert!(matches!(error, IntermediateError::Busy(_)), "{error}");
    drop(first);
    drop(fixture.take());
}

#[tokio::test]
async fn request_is_signed_elsewhere_and_installed() {
    let fixture = Fixture::new();
    let (disk, key, root) = fixture.root_elsewhere();
    let ca = fixture.take();
    let request = ca.request().unwrap();
    assert_eq!(mode(&fixture.dir.join("intermediate.key.next")), 0o600);
    let old = svid(&fixture.open(), WEB).await.chain()[1].clone();

    for again in [ca.request().map(drop), ca.renew_intermediate(&key, HOUR).map(drop)] {
        let error = again.unwrap_err();
        assert!(matches!(error, IntermediateError::Pending(_)), "{error}");
    }

    let signed = sign_request(&request, &key, &root, HOUR).unwrap();
    let file = disk.path().join("intermediate.pem");
    fs::write(&file, signed).unwrap();
    ca.install(&file).unwrap();
    let new = svid(&fixture.open(), WEB).await.chain()[1].clone();
    assert_ne!(new, old);
    assert!(!request.exists() && !fixture.dir.join("intermediate.key.next").exists());
    assert_eq!(contents(&fixture.dir.join("retired")).len(), 1);
    // A second time there is no key for it.
    ca.install(&file).unwrap_err();
}

#[test]
fn certificate_of_another_request_or_root_is_not_installed() {
    let (fixture, other, stranger) = (Fixture::new(), Fixture::new(), Fixture::of("other.example"));
    let request = fixture.take().request().unwrap();
    let before = contents(&fixture.dir);
    let disk = TempDir::new().unwrap();
    let install = |pem: String| {
        let file = disk.path().join("new.pem");
        fs::write(&file, pem).unwrap();
        fixture.take().install(&file).unwrap_err().to_string()
    };
    let sign =
        |request: &Path, by: &Fixture| sign_request(request, &by.root_key(), &by.dir.join("root.pem"), HOUR);
    let others = other.take().request().unwrap();
    assert!(install(sign(&others, &fixture).unwrap()).contains("not the key"));
    assert!(install(sign(&request, &other).unwrap()).contains("do not work together"));
    assert!(install(String::new()).contains("no certificate"));
    let leaf = fs::read_to_string(&request).unwrap();
    assert!(install(leaf).contains("no certificate"));
    assert_eq!(contents(&fixture.dir), before);

    let error = sign(&request, &stranger).unwrap_err();
    assert!(matches!(error, IntermediateError::TrustDomain { .. }), "{error}");
    let error = sign(&fixture.dir.join("root.pem"), &fixture).unwrap_err();
    assert!(error.to_string().contains("root.pem"), "{error}");
    let error = sign_request(&request, &other.root_key(), &fixture.dir.join("root.pem"), HOUR).unwrap_err();
    assert!(matches!(error, IntermediateError::OtherRoot { .. }), "{error}");
}

#[tokio::test]
async fn crash_between_certificate_and_key_leaves_a_working_authority() {
    let fixture = Fixture::new();
    let request = fixture.take().request().unwrap();
    let signed = sign_request(&request, &fixture.root_key(), &fixture.dir.join("root.pem"), HOUR).unwrap();
    fs::write(fixture.dir.join("intermediate.pem"), signed).unwrap();
    assert!(
        fixture.open().not_after() <= SystemTime::now() + HOUR,
        "the new certificate, and the key beside"
    );
}
