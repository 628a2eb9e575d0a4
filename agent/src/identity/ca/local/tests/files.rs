//! An authority whose files somebody else keeps.

use std::process::Command;

use super::*;
use crate::identity::IssuerFiles;

/// An intermediate as cert-manager makes it: a key in the form of OpenSSL's of old (SEC 1), no trust domain in the
/// certificate.
fn secret(dir: &Path) {
    let openssl = |args: &[&str]| {
        let output =
            Command::new("openssl").args(args).current_dir(dir).output().expect("openssl is installed");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    fs::write(dir.join("ext"), "basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign\n").unwrap();
    for key in ["root.key", "new.key"] {
        openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key]);
    }
    let number = rand::random::<u32>();
    let name = |name: &str| format!("/CN={name} {number}");
    openssl(&["req", "-x509", "-key", "root.key", "-subj", &name("root"), "-days", "2", "-out", "ca.crt"]);
    openssl(&["req", "-new", "-key", "new.key", "-subj", &name("intermediate"), "-out", "new.csr"]);
    let sign = ["x509", "-req", "-in", "new.csr", "-CA", "ca.crt", "-CAkey", "root.key", "-CAcreateserial"];
    openssl(&[&sign[..], &["-days", "1", "-extfile", "ext", "-out", "tls.crt"]].concat());
    fs::rename(dir.join("new.key"), dir.join("tls.key")).unwrap();
}

fn files(dir: &Path, trust_domain: Option<&str>) -> IssuerFiles {
    IssuerFiles {
        certificate: dir.join("tls.crt"),
        key: dir.join("tls.key"),
        roots: dir.join("ca.crt"),
        trust_domain: trust_domain.map(|name| name.parse().unwrap()),
    }
}

#[tokio::test]
async fn files_of_cert_manager_sign_and_are_followed_and_nothing_is_written_beside_them() {
    let dir = TempDir::new().unwrap();
    secret(dir.path());
    let ca = LocalCa::open_files(files(dir.path(), Some("cluster.local"))).unwrap();
    let before = svid(&ca, WEB).await;
    assert_eq!(before.chain().len(), 2);
    let names = || {
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>().len()
    };
    let count = names();
    svid(&ca, CLIENT).await;
    assert_eq!(names(), count);
    assert!(ca.source().contains("tls.crt"), "{}", ca.source());

    let mut generation = ca.generation();
    secret(dir.path());
    tokio::time::timeout(Duration::from_secs(30), generation.changed()).await.unwrap().unwrap();
    let after = svid(&ca, WEB).await;
    assert_ne!(before.chain()[1], after.chain()[1], "another issuer");
    assert_eq!(
        ca.certify_server(&["ca.example".try_into().unwrap()], HOUR).unwrap().cert[1],
        after.chain()[1]
    );
}

#[tokio::test]
async fn a_trust_domain_must_be_named_somewhere() {
    let dir = TempDir::new().unwrap();
    secret(dir.path());
    let error = LocalCa::open_files(files(dir.path(), None)).unwrap_err();
    assert!(error.to_string().contains("--trust-domain"), "{error}");

    let ca = Fixture::new();
    let named = |trust_domain: Option<&str>| IssuerFiles {
        certificate: ca.dir.join("intermediate.pem"),
        key: ca.dir.join("intermediate.key"),
        roots: ca.dir.join("root.pem"),
        trust_domain: trust_domain.map(|name| name.parse().unwrap()),
    };
    for given in [None, Some("cluster.local"), Some("other.example")] {
        let opened = LocalCa::open_files(named(given)).unwrap();
        assert_eq!(*opened.trust_domain(), domain(), "the certificate's own goes before {given:?}");
    }
}
