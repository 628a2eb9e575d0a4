//! A Vault that is sealed, on standby, slow, broken, or not Vault at all.

use std::time::Duration;

use culvert::identity::{
    CertificateAuthority as _, VaultCa,
    ca::vault::{VaultAuth, VaultConfig},
};

use super::{
    server::{Fault, Node, Vault},
    signing::{TOKEN, config, signed, svid, vault_and_token},
};

/// An authority that has had a certificate signed, so that only the next request meets what comes.
async fn working() -> (Vault, VaultCa) {
    let (vault, file) = vault_and_token();
    let ca = VaultCa::open(config(&vault, VaultAuth::TokenFile(file))).unwrap();
    svid(&ca).await.unwrap();
    (vault, ca)
}

#[tokio::test]
async fn sealed_vault_is_told_from_a_broken_one_and_found_again() {
    let (vault, file) = vault_and_token();
    vault.with(|state| state.node = Node::Sealed);
    let ca = VaultCa::open(config(&vault, VaultAuth::TokenFile(file)))
        .expect("one that is down is no reason to end");
    let error = svid(&ca).await.unwrap_err();
    assert!(error.contains("503 (Vault is sealed)") && error.contains("unseal it"), "{error}");
    vault.with(|state| state.node = Node::Active);
    signed(&ca).await;
}

#[tokio::test]
async fn before_the_roots_are_known_nobody_is_trusted() {
    let (vault, file) = vault_and_token();
    let good = VaultCa::open(config(&vault, VaultAuth::TokenFile(file.clone()))).unwrap();
    let chain = svid(&good).await.unwrap().chain().to_vec();
    vault.with(|state| state.node = Node::Sealed);
    let ca = VaultCa::open(config(&vault, VaultAuth::TokenFile(file))).unwrap();
    svid(&ca).await.unwrap_err();
    let trust = ca.trust();
    let trusted = trust.borrow().certificates().to_vec();
    assert_eq!(trusted.len(), 1);
    assert!(!chain.contains(&trusted[0]) && good.trust().borrow().certificates() != trusted);
}

#[tokio::test]
async fn standby_node_leads_to_the_active_one() {
    let (active, file) = vault_and_token();
    let (standby, _) = vault_and_token();
    // One root for the certificates of both nodes, as a cluster has.
    let roots = [&active, &standby].map(|node| std::fs::read_to_string(node.file("vault-ca.pem")).unwrap());
    let roots = active.write("both.pem", &roots.concat());
    standby.with(|state| state.node = Node::Standby(Some(active.url())));
    let config = config(&standby, VaultAuth::TokenFile(file));
    let ca = VaultCa::open(VaultConfig { vault_ca: Some(roots), ..config }).unwrap();
    svid(&ca).await.unwrap();
    assert_eq!((active.count("sign/culvert"), standby.count("sign/culvert")), (1, 1));

    standby.with(|state| state.node = Node::Standby(None));
    let error = svid(&ca).await.unwrap_err();
    assert!(error.contains("503 (no active Vault instance found)"), "{error}");
}

#[tokio::test]
async fn redirection_to_nowhere_to_plaintext_or_in_a_circle_is_refused() {
    let (vault, ca) = working().await;
    let plain = Vault::plain();
    for (leads_to, expected) in [
        (plain.url(), "from https to plaintext"),
        ("http://192.0.2.1:8200".to_owned(), "is plaintext"),
        ("ftp://192.0.2.1".to_owned(), "is not an address of Vault"),
        (vault.url(), "redirects again"),
    ] {
        vault.with(|state| state.node = Node::Standby(Some(leads_to)));
        let error = svid(&ca).await.unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(plain.with(|state| state.seen.len()), 0, "no token went there");
}

#[tokio::test]
async fn answers_that_are_not_vaults_are_refused() {
    let (vault, ca) = working().await;
    for (fault, expected) in [
        (Fault::Page, "is not Vault's: expected value"),
        (Fault::Proxy, "with 502: its own log says more"),
        (Fault::Flood, "length limit exceeded"),
        (Fault::OtherJson, "missing field `certificate`"),
        (Fault::Nonsense, "there is no certificate in it"),
    ] {
        vault.with(|state| state.fault = Some(fault));
        let error = svid(&ca).await.unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    vault.with(|state| state.fault = None);
    svid(&ca).await.unwrap();
}

#[tokio::test]
async fn silent_vault_is_given_up() {
    let (vault, ca) = working().await;
    vault.with(|state| state.fault = Some(Fault::Silence));
    let error =
        tokio::time::timeout(Duration::from_secs(20), svid(&ca)).await.expect("a deadline").unwrap_err();
    assert!(error.contains("did not answer POST") && error.contains("within 4s"), "{error}");
}

#[tokio::test]
async fn vault_that_is_gone_is_unreachable_until_it_is_back() {
    let (vault, file) = vault_and_token();
    let address = vault.url();
    let config =
        config(&vault, VaultAuth::TokenFile(vault.write("kept", &std::fs::read_to_string(file).unwrap())));
    // Bound, so that nobody else gets the port, and not listening.
    let silent = tokio::net::TcpSocket::new_v4().unwrap();
    silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let nobody = format!("https://{}", silent.local_addr().unwrap());
    let ca = VaultCa::open(VaultConfig { address: nobody.parse().unwrap(), ..config }).unwrap();
    let error = svid(&ca).await.unwrap_err();
    assert!(
        error.contains("Vault cannot be reached at 127.0.0.1:") && error.contains("refused"),
        "{address}: {error}"
    );
}

#[tokio::test]
async fn certificate_of_vault_itself_must_be_by_a_root_that_is_named() {
    let (vault, file) = vault_and_token();
    let stranger = Vault::start();
    let theirs = std::fs::read_to_string(stranger.file("vault-ca.pem")).unwrap();
    let ours = std::fs::read_to_string(vault.file("vault-ca.pem")).unwrap();
    let roots = vault.write("roots-of-vault.pem", &theirs);
    let config = VaultConfig { vault_ca: Some(roots), ..config(&vault, VaultAuth::TokenFile(file)) };
    let ca = VaultCa::open(config.clone()).unwrap();
    let error = svid(&ca).await.unwrap_err();
    assert!(error.contains("none of the roots in --vault-ca signed its certificate"), "{error}");
    assert_eq!(vault.with(|state| state.seen.len()), 0, "no token went there");
    // The file is followed.
    vault.write("roots-of-vault.pem", &ours);
    signed(&ca).await;

    let error = VaultCa::open(VaultConfig { vault_ca: None, ..config.clone() }).unwrap_err().to_string();
    assert!(error.contains("(--vault-ca)"), "{error}");
    vault.write("roots-of-vault.pem", "nothing");
    let error = VaultCa::open(config).unwrap_err().to_string();
    assert!(error.contains("roots-of-vault.pem: there is no certificate in it"), "{error}");
}

#[tokio::test]
async fn plaintext_serves_on_the_same_machine() {
    let vault = Vault::plain();
    vault.token(TOKEN);
    let config = config(&vault, VaultAuth::TokenFile(vault.write("token", TOKEN)));
    svid(&VaultCa::open(VaultConfig { vault_ca: None, ..config }).unwrap()).await.unwrap();
}
