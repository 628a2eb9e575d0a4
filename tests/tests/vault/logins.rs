//! The token: from a file that somebody replaces, or from logins with a Kubernetes service account.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use culvert::identity::{
    VaultCa,
    ca::vault::{KubernetesLogin, VaultAuth},
};

use super::{
    server::{SIGN, Vault},
    signing::{TOKEN, config, signed, svid, vault_and_token},
};

const JWT: &str = "eyJhbGciOiJSUzI1NiJ9.e30.c2lnbmF0dXJl";
const HOUR: Duration = Duration::from_secs(3600);

/// A Vault where the service account of [`JWT`] may log in, and an authority that does.
fn vault_and_login(lease: Duration) -> (Vault, VaultCa) {
    let vault = Vault::start();
    vault.kubernetes(JWT, lease);
    let jwt = vault.write("jwt", JWT);
    let ca = VaultCa::open(config(&vault, login(jwt))).unwrap();
    (vault, ca)
}

fn login(jwt: PathBuf) -> VaultAuth {
    let (path, role) = ("kubernetes".parse().unwrap(), "mesh".parse().unwrap());
    VaultAuth::Kubernetes(KubernetesLogin { path, role, jwt })
}

#[tokio::test]
async fn token_that_is_replaced_in_its_file_is_used() {
    let (vault, file) = vault_and_token();
    let ca = VaultCa::open(config(&vault, VaultAuth::TokenFile(file))).unwrap();
    svid(&ca).await.unwrap();
    vault.with(|state| state.tokens.clear());
    let error = svid(&ca).await.unwrap_err();
    assert!(
        error.contains("403 (permission denied)")
            && error.contains(&format!("the capability update on {SIGN}")),
        "{error}"
    );
    assert!(!error.contains(TOKEN), "{error}");
    vault.token("hvs.next");
    vault.write("token", "hvs.next");
    signed(&ca).await;
}

#[tokio::test]
async fn file_without_a_token_is_named() {
    let (vault, file) = vault_and_token();
    for (text, expected) in [("", "there is no token in it"), ("two words", "it is not a token")] {
        vault.write("token", text);
        let error =
            VaultCa::open(config(&vault, VaultAuth::TokenFile(file.clone()))).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(file.to_str().unwrap()), "{error}");
    }
}

#[tokio::test]
async fn one_login_serves_many_certificates() {
    let (vault, ca) = vault_and_login(HOUR);
    for _ in 0..5 {
        svid(&ca).await.unwrap();
    }
    assert_eq!(vault.count("auth/kubernetes/login"), 1);
}

#[tokio::test]
async fn login_is_repeated_before_its_lease_ends() {
    // Repeated when half of it is over. Twice as long as any machine stands still, or a request would be refused after all.
    let (vault, ca) = vault_and_login(Duration::from_secs(14));
    let asked = async {
        while vault.count("auth/kubernetes/login") < 3 {
            svid(&ca).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(lab::PATIENCE, asked).await.expect("logins without a request that was refused");
}

#[tokio::test]
async fn token_that_vault_forgot_is_replaced_by_a_login() {
    let (vault, ca) = vault_and_login(HOUR);
    svid(&ca).await.unwrap();
    // As after a restore of Vault from a snapshot. A token that is just made is not the reason of a refusal.
    vault.with(|state| state.tokens.clear());
    signed(&ca).await;
    assert_eq!(vault.count("auth/kubernetes/login"), 2);
    // The new service account's token is read at each login.
    vault.with(|state| {
        state.tokens.clear();
        let account = state.kubernetes.accounts.remove(JWT).unwrap();
        state.kubernetes.accounts.insert(format!("{JWT}-next"), account);
    });
    vault.write("jwt", &format!("{JWT}-next"));
    signed(&ca).await;
    assert_eq!(vault.count("auth/kubernetes/login"), 3);
}

#[tokio::test]
async fn policy_that_allows_nothing_is_no_reason_to_log_in_again_and_again() {
    let (vault, ca) = vault_and_login(HOUR);
    vault.with(|state| {
        state.kubernetes.roles.get_mut("mesh").unwrap().updates = vec!["pki/sign/other".to_owned()];
    });
    let begun = Instant::now();
    for _ in 0..20 {
        let error = svid(&ca).await.unwrap_err();
        assert!(error.contains(&format!("the capability update on {SIGN}")), "{error}");
    }
    // A token of five seconds could be the reason: on a slow machine it is replaced, and no sooner.
    let most = 1 + begun.elapsed().as_secs() as usize / 5;
    assert!(vault.count("auth/kubernetes/login") <= most, "{} logins", vault.count("auth/kubernetes/login"));
}

#[tokio::test]
async fn refused_login_says_what_the_role_must_name_and_is_tried_again() {
    let (vault, ca) = vault_and_login(HOUR);
    vault.with(|state| state.kubernetes.accounts.clear());
    let error = svid(&ca).await.unwrap_err();
    assert!(error.contains("its role mesh must name the service account"), "{error}");
    assert!(!error.contains(JWT), "{error}");
    vault.with(|state| state.kubernetes.accounts.insert(JWT.to_owned(), "culvert-system/culvert".to_owned()));
    signed(&ca).await;
}

#[tokio::test]
async fn missing_service_account_token_is_named_and_found_later() {
    let vault = Vault::start();
    vault.kubernetes(JWT, HOUR);
    let ca = VaultCa::open(config(&vault, login(vault.file("jwt")))).unwrap();
    let error = svid(&ca).await.unwrap_err();
    assert!(error.contains(vault.file("jwt").to_str().unwrap()), "{error}");
    vault.write("jwt", JWT);
    signed(&ca).await;
}
