//! Tokens that prove who asks, and tokens that do not.

use x509_parser::prelude::FromDer as _;

use super::*;

/// Asks with a token and returns what the server says against it.
async fn refused(world: &World, token: &str) -> String {
    let error = world.ask(&world.agent_with(token), "web").await.unwrap_err();
    let (code, message) = refusal(&error);
    assert_eq!(code, Code::Unauthenticated, "{message}");
    let line = world.audited();
    assert_eq!(line["reason"], "unauthenticated");
    assert!(line.get("caller").is_none() && line.get("node").is_none(), "nothing of it is proved: {line}");
    assert!(error.to_string().contains("--ca-token"), "the agent says where to look: {error}");
    message
}

#[tokio::test]
async fn tokens_that_say_another_thing_are_refused() {
    let world = World::new().await;
    let good = || claims("node-a");
    let cases = [
        ("expired", with(good(), "/exp", json!(now() - 60)), "expired"),
        ("not yet valid", with(good(), "/nbf", json!(now() + 60)), "not valid yet"),
        ("of another audience", with(good(), "/aud", json!(["https://kubernetes.default.svc"])), "audience"),
        ("of another issuer", with(good(), "/iss", json!("https://elsewhere")), "issuer"),
        ("without an expiry", without(good(), "", "exp"), "exp"),
        ("without an audience", without(good(), "", "aud"), "aud"),
        ("without an issuer", without(good(), "", "iss"), "iss"),
        ("without a node", without(good(), "/kubernetes.io", "node"), "kubernetes.io/node"),
        ("of no node", with(good(), "/kubernetes.io/node/name", json!("")), "node"),
        ("of no pod at all", without(good(), "", "kubernetes.io"), "kubernetes.io"),
        (
            "of another account",
            with(
                with(good(), "/kubernetes.io/serviceaccount/name", json!("web")),
                "/sub",
                json!("system:serviceaccount:culvert-system:web"),
            ),
            "culvert-system/web",
        ),
        ("of two accounts", with(good(), "/sub", json!("system:serviceaccount:culvert-system:web")), "sub"),
    ];
    for (what, claims, says) in cases {
        let message = refused(&world, &world.issuer.sign(&claims)).await;
        assert!(message.contains(says), "a token {what}: {message}");
    }
    // The control, and a clock that is a little late.
    world.ask(&world.agent(&good()), "web").await.unwrap();
    world.ask(&world.agent(&with(good(), "/exp", json!(now() - 3))), "web").await.unwrap();
    assert_eq!(world.counted("unauthenticated"), 12);
}

#[tokio::test]
async fn forged_tokens_are_refused() {
    let world = World::new().await;
    let good = world.issuer.sign(&claims("node-a"));
    let parts: Vec<_> = good.split('.').collect();
    let [header, payload, signature] = parts[..] else { panic!("{good}") };

    // Another key under the name of the right one, and under a name of its own.
    let message = refused(&world, &TokenIssuer::new("first").sign(&claims("node-a"))).await;
    assert!(message.contains("signature"), "{message}");
    let message = refused(&world, &TokenIssuer::new("other").sign(&claims("node-a"))).await;
    assert!(message.contains("--jwks") && message.contains("other"), "{message}");

    // Another node in a token that is good otherwise.
    let elsewhere = world.issuer.sign(&claims("node-b"));
    let stolen = elsewhere.split('.').nth(1).unwrap();
    let message = refused(&world, &format!("{header}.{stolen}.{signature}")).await;
    assert!(message.contains("signature"), "{message}");

    // No signature, by an algorithm that says so.
    for none in ["none", "None", "NONE", ""] {
        let header = base64url(json!({ "alg": none, "typ": "JWT", "kid": "first" }).to_string().as_bytes());
        for signature in ["", signature] {
            let message = refused(&world, &format!("{header}.{payload}.{signature}")).await;
            assert!(message.contains("RS256, ES256 and EdDSA"), "alg {none}: {message}");
        }
    }

    // The public key as the secret of an HMAC, in each form in which a confused server may hold it.
    let public = world.issuer.key.public_key_raw().to_vec();
    let forms = [
        public,
        rcgen::PublicKeyData::subject_public_key_info(&world.issuer.key),
        world.issuer.key.public_key_pem().into_bytes(),
    ];
    for secret in forms {
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let header = Header { kid: Some("first".to_owned()), ..Header::new(algorithm) };
            let token = encode(&header, &claims("node-a"), &EncodingKey::from_secret(&secret)).unwrap();
            let message = refused(&world, &token).await;
            assert!(message.contains(&format!("{algorithm:?}")), "{message}");
        }
    }

    for nonsense in
        ["x", "x.y.z", "..", &format!("{good}.x"), &format!("{header}.{payload}"), &"a.".repeat(2000)]
    {
        refused(&world, nonsense).await;
    }
    world.ask(&world.agent_with(&good), "web").await.unwrap();
}

#[tokio::test]
async fn requests_without_one_token_are_refused() {
    let world = World::new().await;
    let good = world.issuer.sign(&claims("node-a"));
    let metadata = [
        vec![],
        vec![format!("Basic {good}")],
        vec![good.clone()],
        vec![String::new()],
        vec![format!("Bearer {good}"), format!("Bearer {good}")],
    ];
    for values in metadata {
        let request = requests::request(&identity("web"));
        let status = requests::send_with(&world, &values, request).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{values:?}");
    }
    let request = requests::request(&identity("web"));
    requests::send_with(&world, &[format!("bearer {good}")], request).await.unwrap();
}

#[tokio::test]
async fn rsa_and_ed25519_keys_sign_tokens_too_and_shared_secrets_and_short_keys_do_not() {
    let world = World::new().await;
    let dir = world.dir.path();
    for (file, args) in [
        ("rsa", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"][..]),
        ("short", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"]),
        ("ed", &["-algorithm", "ED25519"]),
    ] {
        openssl(dir, &[&["genpkey", "-outform", "DER", "-out", file], args].concat());
        openssl(
            dir,
            &[
                "pkey",
                "-inform",
                "DER",
                "-in",
                file,
                "-pubout",
                "-outform",
                "DER",
                "-out",
                &format!("{file}.pub"),
            ],
        );
    }
    openssl(
        dir,
        &["rsa", "-inform", "DER", "-in", "rsa", "-outform", "DER", "-out", "rsa.der", "-traditional"],
    );
    let read = |name: &str| fs::read(dir.join(name)).unwrap();
    let (rsa, ed) = (EncodingKey::from_rsa_der(&read("rsa.der")), EncodingKey::from_ed_der(&read("ed")));
    let rsa_jwk = |name: &str| {
        let der = read(&format!("{name}.pub"));
        let (_, key) = x509_parser::x509::SubjectPublicKeyInfo::from_der(&der).unwrap();
        let Ok(x509_parser::public_key::PublicKey::RSA(key)) = key.parsed() else { panic!("an RSA key") };
        let (modulus, exponent) =
            (base64url(key.modulus.strip_prefix(&[0]).unwrap_or(key.modulus)), base64url(key.exponent));
        json!({ "kty": "RSA", "use": "sig", "alg": "RS256", "kid": name, "n": modulus, "e": exponent })
    };
    // RFC 8410: the key is the last 32 bytes.
    let ed_public = read("ed.pub").split_off(12);
    let ed_jwk = json!({ "kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": base64url(&ed_public) });
    let secret = json!({ "kty": "oct", "kid": "secret", "alg": "HS256", "k": base64url(b"secret") });
    let set = json!({ "keys": [rsa_jwk("rsa"), ed_jwk, secret, { "kty": "of tomorrow", "kid": "new" }] });
    fs::write(world.path("jwks.json"), set.to_string()).unwrap();
    let token = |algorithm, id: Option<&str>, key: &EncodingKey| {
        let header = Header { kid: id.map(str::to_owned), ..Header::new(algorithm) };
        encode(&header, &claims("node-a"), key).unwrap()
    };
    let by_rsa = world.agent_with(&token(Algorithm::RS256, Some("rsa"), &rsa));
    until(async || world.ask(&by_rsa, "web").await.is_ok()).await;
    world.ask(&world.agent_with(&token(Algorithm::EdDSA, Some("ed"), &ed)), "web").await.unwrap();
    world.ask(&world.agent_with(&token(Algorithm::EdDSA, None, &ed)), "web").await.unwrap();
    refused(&world, &token(Algorithm::HS256, Some("secret"), &EncodingKey::from_secret(b"secret"))).await;
    // Another algorithm of the same family, and another key's name.
    refused(&world, &token(Algorithm::RS512, Some("rsa"), &rsa)).await;
    refused(&world, &token(Algorithm::PS256, Some("rsa"), &rsa)).await;
    refused(&world, &token(Algorithm::RS256, Some("ed"), &rsa)).await;
    refused(&world, &world.issuer.sign(&claims("node-a"))).await;

    // A key of 1024 bits proves nothing, and encryption keys sign nothing.
    let encryption = json!({ "kty": "OKP", "crv": "Ed25519", "use": "enc", "x": base64url(&ed_public) });
    for key in [rsa_jwk("short"), encryption] {
        fs::write(world.path("unusable.json"), json!({ "keys": [key] }).to_string()).unwrap();
        let error = Jwks::read(&world.path("unusable.json")).unwrap_err().to_string();
        assert!(error.contains("2048 bits"), "{error}");
    }
}

#[tokio::test]
async fn keys_are_read_again_and_a_broken_file_changes_nothing() {
    let world = World::new().await;
    let next = TokenIssuer::new("next");
    let (old, new) = (world.agent(&claims("node-a")), world.agent_with(&next.sign(&claims("node-a"))));
    world.ask(&old, "web").await.unwrap();
    world.ask(&new, "web").await.unwrap_err();
    fs::write(world.path("jwks.json"), next.jwks().to_string()).unwrap();
    until(async || world.ask(&new, "web").await.is_ok()).await;
    world.ask(&old, "web").await.unwrap_err();

    let callers = |name: &str| {
        SignedTokens::new(TokenRules {
            jwks: world.path(name),
            audience: String::new(),
            issuer: None,
            agents: vec![],
        })
    };
    fs::write(world.path("watched.json"), next.jwks().to_string()).unwrap();
    let watched = callers("watched.json").unwrap();
    fs::write(world.path("watched.json"), "{}").unwrap();
    watched.file().wait_for(|state| state.error.is_some()).await.unwrap();
    assert!(
        watched
            .authenticate(&next.sign(&claims("node-a")))
            .is_err_and(|error| !error.to_string().contains("key"))
    );

    for (content, says) in [("", "no JSON Web Key Set"), ("{\"keys\":[]}", "no key that can be used")] {
        fs::write(world.path("broken.json"), content).unwrap();
        let error = callers("broken.json").unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("broken.json"), "{error}");
    }
    assert!(callers("missing.json").unwrap_err().to_string().contains("missing.json"));
}

fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    bytes
        .chunks(3)
        .flat_map(|chunk| {
            let bits =
                chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
            (0..=chunk.len()).map(move |digit| char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize]))
        })
        .collect()
}
