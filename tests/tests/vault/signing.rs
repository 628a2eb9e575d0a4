//! What a role signs, and how what it does not is explained.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use culvert::identity::{
    CertificateAuthority as _, Csr, Svid, VaultCa,
    ca::vault::{VaultAuth, VaultConfig},
};
use rcgen::KeyPair;

use super::{pki::Role, server::Vault};

pub(crate) const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
pub(crate) const TOKEN: &str = "hvs.secret-of-the-tests";
const HOUR: Duration = Duration::from_secs(3600);

/// A Vault, and a token for it in the file `token`.
pub(crate) fn vault_and_token() -> (Vault, PathBuf) {
    let vault = Vault::start();
    vault.token(TOKEN);
    let file = vault.write("token", &format!("{TOKEN}\n"));
    (vault, file)
}

pub(crate) fn config(vault: &Vault, auth: VaultAuth) -> VaultConfig {
    VaultConfig {
        address: vault.url().parse().unwrap(),
        vault_ca: Some(vault.file("vault-ca.pem")),
        namespace: None,
        mount: "pki".parse().unwrap(),
        role: "culvert".parse().unwrap(),
        auth,
        roots: None,
        trust_domain: "cluster.local".parse().unwrap(),
        lifetime: HOUR,
    }
}

/// Has a certificate signed and checks it as the agent does; an error is what its log says.
pub(crate) async fn svid(ca: &VaultCa) -> Result<Svid, String> {
    let (identity, key) = (WEB.parse().unwrap(), KeyPair::generate().unwrap());
    let csr = Csr::new(&identity, &key).unwrap();
    let issued = ca.sign(&csr, &identity).await.map_err(|error| error.to_string())?;
    Svid::new(&identity, &key, issued, ca.trust()).map_err(|error| error.to_string())
}

/// Waits until a certificate is signed.
pub(crate) async fn signed(ca: &VaultCa) -> Svid {
    let repeated = async {
        loop {
            if let Ok(svid) = svid(ca).await {
                return svid;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(lab::PATIENCE, repeated).await.expect("a certificate in time")
}

#[tokio::test]
async fn certificate_chains_to_the_mounts_root_and_lives_as_long_as_asked() {
    let (vault, file) = vault_and_token();
    let ca = VaultCa::open(config(&vault, VaultAuth::TokenFile(file))).unwrap();
    let svid = svid(&ca).await.unwrap();
    assert_eq!(svid.chain().len(), 2, "leaf and intermediate, no root");
    let left = svid.not_after().duration_since(SystemTime::now()).unwrap();
    assert!(left <= HOUR && left > HOUR - Duration::from_secs(60), "{left:?}");
    assert_eq!(ca.source(), format!("vault {}/v1/pki/sign/culvert", vault.url()));
    let seen = vault.with(|state| state.seen.clone());
    assert!(seen.iter().all(|seen| seen.marked && seen.namespace.is_none()), "{seen:?}");
    let (signings, others): (Vec<_>, Vec<_>) =
        seen.iter().partition(|seen| seen.path == "/v1/pki/sign/culvert");
    assert_eq!(signings.iter().map(|seen| seen.token.as_deref()).collect::<Vec<_>>(), [Some(TOKEN)]);
    assert!(
        others.iter().all(|seen| seen.token.is_none()),
        "what anybody may read is read without it: {others:?}"
    );
    assert!(!format!("{ca:?}").contains(TOKEN));
}

#[tokio::test]
async fn role_may_take_names_from_the_csr_or_from_the_request() {
    let (vault, file) = vault_and_token();
    let ca = VaultCa::open(config(&vault, VaultAuth::TokenFile(file))).unwrap();
    for use_csr_sans in [true, false] {
        vault.with(|state| state.mounts.get_mut("pki").unwrap().role().use_csr_sans = use_csr_sans);
        svid(&ca).await.unwrap();
    }
}

#[tokio::test]
async fn namespace_and_mount_are_named_to_vault() {
    let (vault, file) = vault_and_token();
    vault.with(|state| {
        state.namespace = Some("teams/mesh".to_owned());
        let pki = state.mounts.remove("pki").unwrap();
        state.mounts.insert("infra/pki_int".to_owned(), pki);
        state.tokens.get_mut(TOKEN).unwrap().updates = vec!["infra/pki_int/sign/culvert".to_owned()];
    });
    let mut config = config(&vault, VaultAuth::TokenFile(file));
    config.mount = "infra/pki_int".parse().unwrap();
    config.namespace = Some("/teams/mesh/".parse().unwrap());
    svid(&VaultCa::open(config.clone()).unwrap()).await.unwrap();
    config.namespace = None;
    let error = svid(&VaultCa::open(config).unwrap()).await.unwrap_err();
    assert!(error.contains("404 (namespace not found): no PKI engine is mounted there"), "{error}");
}

/// Checks what the log says where a role is not as it has to be.
async fn check_role(spoil: impl FnOnce(&mut Role), expected: &str) {
    let (vault, file) = vault_and_token();
    vault.with(|state| spoil(state.mounts.get_mut("pki").unwrap().role()));
    let error = svid(&VaultCa::open(config(&vault, VaultAuth::TokenFile(file))).unwrap()).await.unwrap_err();
    assert!(error.contains("/v1/pki/sign/culvert with 400 (") && error.contains(expected), "{error}");
    // Vault's own words, and then what the role needs.
    for needed in ["key_type=ec", "require_cn=false", "allowed_uri_sans=spiffe://cluster.local/*", "1h"] {
        assert!(error.contains(needed), "{needed}: {error}");
    }
}

#[tokio::test]
async fn refusal_by_a_role_says_what_the_role_needs() {
    check_role(|role| role.allowed_uri_sans = vec!["spiffe://other/*".to_owned()], "not valid for this role")
        .await;
    check_role(|role| role.require_cn = true, "require_cn").await;
    check_role(|role| role.key_type = "rsa", "role requires keys of another type").await;
}

#[tokio::test]
async fn unknown_role_mount_and_trust_domain_are_told_apart() {
    let (vault, file) = vault_and_token();
    let config = config(&vault, VaultAuth::TokenFile(file));
    vault.with(|state| {
        state.tokens.get_mut(TOKEN).unwrap().updates =
            vec!["pki/sign/other".to_owned(), "elsewhere/sign/culvert".to_owned()];
    });
    let attempt = async |config| svid(&VaultCa::open(config).unwrap()).await.unwrap_err();
    let error = attempt(VaultConfig { role: "other".parse().unwrap(), ..config.clone() }).await;
    assert!(error.contains("400 (unknown role: other)"), "{error}");
    let elsewhere = VaultConfig { mount: "elsewhere".parse().unwrap(), ..config.clone() };
    let error = attempt(elsewhere.clone()).await;
    assert!(
        error.contains("elsewhere/issuers?list=true with 403") && error.contains("--ca-roots"),
        "{error}"
    );
    let roots =
        Some(vault.write("roots.pem", &vault.with(|state| state.mounts["pki"].issuers[1].pem.clone())));
    let error = attempt(VaultConfig { roots, ..elsewhere }).await;
    assert!(error.contains("404 (no handler for route)") && error.contains("--vault-mount"), "{error}");
    let error = attempt(VaultConfig { trust_domain: "other.example".parse().unwrap(), ..config }).await;
    assert!(error.contains("signs for trust domain other.example"), "{error}");
}

#[tokio::test]
async fn life_that_the_role_shortens_is_accepted() {
    let (vault, file) = vault_and_token();
    vault.with(|state| state.mounts.get_mut("pki").unwrap().role().max_ttl = HOUR / 6);
    let ca = VaultCa::open(config(&vault, VaultAuth::TokenFile(file))).unwrap();
    let svid = svid(&ca).await.unwrap();
    assert!(svid.not_after() <= SystemTime::now() + HOUR / 6);
}

#[tokio::test]
async fn request_may_ask_for_less_and_not_for_more() {
    let (vault, file) = vault_and_token();
    let ca = VaultCa::open(config(&vault, VaultAuth::TokenFile(file))).unwrap();
    for (asked, expected) in [(HOUR / 4, HOUR / 4), (HOUR * 4, HOUR)] {
        let (identity, key) = (WEB.parse().unwrap(), KeyPair::generate().unwrap());
        let csr = Csr::new(&identity, &key).unwrap().with_lifetime(asked);
        let issued = ca.sign(&csr, &identity).await.unwrap();
        let svid = Svid::new(&identity, &key, issued, ca.trust()).unwrap();
        let left = svid.not_after().duration_since(SystemTime::now()).unwrap();
        assert!(left <= expected && left > expected - Duration::from_secs(60), "{left:?}");
    }
}

#[tokio::test]
async fn no_certificate_outlives_its_issuer() {
    let (vault, file) = vault_and_token();
    vault.with(|state| {
        state.mounts.get_mut("pki").unwrap().issuers[0].not_after = SystemTime::now() + HOUR / 2;
    });
    let error = svid(&VaultCa::open(config(&vault, VaultAuth::TokenFile(file))).unwrap()).await.unwrap_err();
    assert!(error.contains("leaf_not_after_behavior=truncate"), "{error}");
}

#[tokio::test]
async fn mount_without_its_root_needs_a_file_of_roots() {
    let (vault, file) = vault_and_token();
    let root = vault.with(|state| state.mounts.get_mut("pki").unwrap().forget_root());
    let config = config(&vault, VaultAuth::TokenFile(file));
    let error = svid(&VaultCa::open(config.clone()).unwrap()).await.unwrap_err();
    assert!(error.contains("none of its issuers is self-signed") && error.contains("--ca-roots"), "{error}");
    assert_eq!(vault.count("sign/culvert"), 0, "nothing is signed that nobody could check");

    let ca = VaultCa::open(VaultConfig { roots: Some(vault.write("roots.pem", &root)), ..config }).unwrap();
    assert_eq!(svid(&ca).await.unwrap().chain().len(), 2);
    // The file is followed.
    let other = vault.with(|state| state.mounts.get_mut("pki").unwrap().add_root("other root"));
    vault.write("roots.pem", &format!("{root}{other}"));
    let mut trust = ca.trust();
    let both = trust.wait_for(|bundle| bundle.certificates().len() == 2);
    tokio::time::timeout(lab::PATIENCE, both).await.expect("the new root in time").unwrap();
}

#[tokio::test]
async fn roots_of_the_mount_are_followed_and_never_lost() {
    let (vault, file) = vault_and_token();
    let ca = VaultCa::open(config(&vault, VaultAuth::TokenFile(file))).unwrap();
    svid(&ca).await.unwrap();
    let mut trust = ca.trust();
    assert_eq!(trust.borrow_and_update().certificates().len(), 1);

    vault.with(|state| drop(state.mounts.get_mut("pki").unwrap().add_root("next root")));
    next_poll().await;
    let both = trust.wait_for(|bundle| bundle.certificates().len() == 2);
    drop(tokio::time::timeout(lab::PATIENCE, both).await.expect("the new root in time").unwrap());

    // A mount that was emptied by mistake takes nobody's trust away.
    trust.mark_unchanged();
    let asked = vault.count("issuers");
    vault.with(|state| state.mounts.get_mut("pki").unwrap().issuers.clear());
    next_poll().await;
    let asks_again = async {
        while vault.count("issuers") < asked + 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(lab::PATIENCE, asks_again).await.expect("it is asked again");
    assert!(!trust.has_changed().unwrap(), "the roots from before stay in force");
}

/// Lets the time pass until the mount is asked for its roots again.
async fn next_poll() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(70)).await;
    tokio::time::resume();
}
