//! `culvert certs inspect`: each kind of file, and each thing that can be wrong with one.

use std::{fs, process::Command};

use lab::culvert;

use crate::pki::{AUTHORITY, P256, Pki, WEB, Wish};

/// What the command says and ends with.
fn inspect(pki: &Pki, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(culvert().unwrap());
    command.args(["certs", "inspect"]).args(args).current_dir(pki.path(""));
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// Checks that a file is good, and what is said of it.
fn good(pki: &Pki, args: &[&str], wanted: &[&str]) {
    let (code, text) = inspect(pki, args);
    assert_eq!(code, Some(0), "{args:?}: {text}");
    for wanted in wanted {
        assert!(text.contains(wanted), "{args:?} does not say {wanted:?}:\n{text}");
    }
}

/// Checks that exactly this is wrong with a file.
fn wrong(pki: &Pki, args: &[&str], wanted: &[&str]) {
    let (code, text) = inspect(pki, args);
    assert_eq!(code, Some(1), "{args:?}: {text}");
    let said: Vec<_> = text.lines().filter_map(|line| line.trim().strip_prefix("WRONG: ")).collect();
    assert_eq!(said.len(), wanted.len(), "{args:?}: {text}");
    for (said, wanted) in said.iter().zip(wanted) {
        assert!(said.contains(wanted), "{args:?} says {said:?}, not {wanted:?}");
    }
}

#[test]
fn a_good_chain_is_explained_and_found_good() {
    let pki = Pki::new();
    pki.issue("web", &Wish::default());
    let chain = pki.join("chain.pem", &["web.pem", "intermediate.pem"]);
    let facts = [
        "1. workload certificate",
        WEB,
        "namespace        shop",
        "service account  web",
        "ECDSA, P-256",
        "expires          in 1day",
        "signed by        certificate 2",
        "2. intermediate certificate of an authority",
        "trust domain     cluster.local",
        "may sign         workloads only",
        "nothing is wrong with it",
    ];
    good(&pki, &[&chain], &facts);
    good(&pki, &[&chain, "--roots", "root.pem"], &["signed by        the root CN=root"]);
    good(&pki, &["root.pem"], &["1. root certificate of an authority", "issuer           itself"]);
    let bundle = pki.join("bundle.pem", &["root.pem", "stranger.pem"]);
    good(&pki, &[&bundle], &["2. root certificate of an authority"]);
}

#[test]
fn each_fault_of_a_workload_certificate_is_named() {
    let pki = Pki::new();
    let web = Wish::default;
    let rows: &[(&str, Wish<'_>, &str)] = &[
        ("dns", Wish { names: "DNS:web.shop.svc", ..web() }, "no SPIFFE ID among its names"),
        ("nameless", Wish { names: "", ..web() }, "it has no subjectAltName"),
        (
            "two",
            Wish {
                names: "URI:spiffe://cluster.local/ns/shop/sa/web, URI:spiffe://cluster.local/ns/shop/sa/db",
                ..web()
            },
            "it has 2 URIs",
        ),
        ("https", Wish { names: "URI:https://web.shop", ..web() }, "its URI is not a SPIFFE ID"),
        ("domain", Wish { names: "URI:spiffe://cluster.local", ..web() }, "names a trust domain"),
        ("extra", Wish { names: "URI:spiffe://cluster.local/ns/shop/sa/web/x", ..web() }, "not a workload's"),
        (
            "upper",
            Wish { names: "URI:spiffe://cluster.local/ns/Shop/sa/web", ..web() },
            "not a Kubernetes namespace name",
        ),
        (
            "odd",
            Wish { names: "URI:spiffe://cluster.local/ns/shop/sa/w%20b", ..web() },
            "not a Kubernetes service account name",
        ),
        ("server", Wish { extended: "serverAuth", ..web() }, "lacks clientAuth"),
        ("mail", Wish { extended: "emailProtection", ..web() }, "lacks serverAuth and clientAuth"),
        ("agreement", Wish { usage: "critical, keyAgreement", ..web() }, "lacks digitalSignature"),
        (
            "signer",
            Wish { usage: "critical, digitalSignature, keyCertSign", ..web() },
            "lets it sign certificates",
        ),
        (
            "authority",
            Wish { constraints: "critical, CA:true", usage: "critical, keyCertSign", ..web() },
            "is an authority at once",
        ),
        ("old", Wish { days: (-9, -2), ..web() }, "it expired 2days"),
        ("young", Wish { days: (3, 4), ..web() }, "it is not valid yet"),
        (
            "rsa",
            Wish { key: &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"], ..web() },
            "RSA of 1024 bits",
        ),
        (
            "curve",
            Wish { key: &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"], ..web() },
            "a curve that TLS 1.3 does not use",
        ),
        ("sha1", Wish { digest: "sha1", ..web() }, "SHA-1 or MD5"),
    ];
    for (name, wish, wanted) in rows {
        let file = pki.issue(name, wish);
        wrong(&pki, &[&file], &[wanted]);
    }
}

#[test]
fn what_is_unusual_and_does_no_harm_is_a_note() {
    let pki = Pki::new();
    let web = Wish::default;
    let rows: &[(&str, Wish<'_>, &str)] = &[
        (
            "both",
            Wish { names: "URI:spiffe://cluster.local/ns/shop/sa/web, DNS:web, IP:10.0.0.1", ..web() },
            "not at DNS:web, IP:10.0.0.1",
        ),
        ("usages", Wish { extended: "", ..web() }, "peers take that for all usages"),
        ("long", Wish { days: (-1, 365), ..web() }, "can use it for"),
        ("late", Wish { days: (-5, 1), ..web() }, "more than half of its life is over"),
        ("ed25519", Wish { key: &["-algorithm", "ED25519"], ..web() }, "Ed25519"),
        (
            "p384",
            Wish { key: &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"], ..web() },
            "ECDSA, P-384",
        ),
        (
            "rsa2048",
            Wish { key: &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], ..web() },
            "RSA, 2048 bits",
        ),
    ];
    for (name, wish, wanted) in rows {
        let file = pki.issue(name, wish);
        good(&pki, &[&file], &[wanted]);
    }
    pki.issue("ending", &Wish { issuer: "ending", days: (-1, 30), ..AUTHORITY });
    good(&pki, &["ending.pem"], &["it expires soon, and with it everything below it"]);
}

#[test]
fn each_fault_of_a_chain_is_named() {
    let pki = Pki::new();
    pki.issue("web", &Wish::default());
    pki.issue("db", &Wish { names: "URI:spiffe://cluster.local/ns/shop/sa/db", ..Wish::default() });
    let chain = |name: &str, parts: &[&str]| pki.join(name, parts);

    let first = chain("first.pem", &["intermediate.pem", "web.pem"]);
    wrong(&pki, &[&first], &["the order is wrong: it signed certificate 2", "must be the first certificate"]);
    let alone = chain("alone.pem", &["web.pem"]);
    good(&pki, &[&alone], &["signed by CN=intermediate, who is not in this file"]);
    wrong(&pki, &[&alone, "--roots", "root.pem"], &["an intermediate is missing here"]);
    let whole = chain("whole.pem", &["web.pem", "intermediate.pem", "root.pem"]);
    good(&pki, &[&whole, "--roots", "root.pem"], &["the root is in the chain"]);
    wrong(&pki, &[&whole, "--roots", "stranger.pem"], &["none of the roots that were given"]);
    let chained = chain("chained.pem", &["web.pem", "intermediate.pem"]);
    wrong(&pki, &[&chained, "--roots", "stranger.pem"], &["the roots are those of another mesh"]);
    let shuffled = chain("shuffled.pem", &["web.pem", "root.pem", "intermediate.pem"]);
    wrong(
        &pki,
        &[&shuffled],
        &["the order is wrong: it signed certificate 3", "the order is wrong: it signed certificate 1"],
    );
    let several = chain("several.pem", &["web.pem", "db.pem", "intermediate.pem"]);
    wrong(&pki, &[&several], &["a second workload's", "the order is wrong"]);
    let unrelated = chain("unrelated.pem", &["web.pem", "intermediate.pem", "stranger.pem"]);
    good(&pki, &[&unrelated], &["it is no part of the chain of certificate 1"]);
    let twice = chain("twice.pem", &["web.pem", "intermediate.pem", "intermediate.pem"]);
    good(&pki, &[&twice], &["it is the same as certificate 2"]);
}

#[test]
fn a_root_of_the_same_name_and_another_key_is_told_apart() {
    let pki = Pki::new();
    pki.issue("web", &Wish::default());
    let chain = pki.join("chain.pem", &["web.pem", "intermediate.pem"]);
    fs::rename(pki.path("root.pem"), pki.path("old.pem")).unwrap();
    pki.issue("root", &Wish { issuer: "root", ..AUTHORITY });
    wrong(&pki, &[&chain, "--roots", "root.pem"], &["by another key than that of the root of this name"]);
    good(&pki, &[&chain, "--roots", "old.pem"], &[]);
}

#[test]
fn what_only_the_check_of_a_peer_finds_is_said_too() {
    let pki = Pki::new();
    // Below an intermediate that may sign workloads only.
    pki.issue("second", &Wish { issuer: "intermediate", ..AUTHORITY });
    pki.issue("web", &Wish { issuer: "second", ..Wish::default() });
    let chain = pki.join("chain.pem", &["web.pem", "second.pem", "intermediate.pem"]);
    good(&pki, &[&chain], &[]);
    wrong(
        &pki,
        &[&chain, "--roots", "root.pem"],
        &["a peer refuses it, and says: the peer's chain has more authorities"],
    );
}

#[test]
fn a_key_is_named_with_what_it_belongs_to_and_never_shown() {
    let pki = Pki::new();
    pki.issue("web", &Wish::default());
    let both = pki.join("both.pem", &["web.pem", "web.key"]);
    good(&pki, &[&both], &["2. private key", "belongs to       certificate 1", "it is secret"]);
    let other = pki.join("other.pem", &["web.pem", "root.key"]);
    good(&pki, &[&other], &["belongs to       nothing in this file"]);
    let asked = pki.join("asked.pem", &["web.csr", "web.key"]);
    let (_, text) = inspect(&pki, &[&asked]);
    assert!(text.contains("belongs to       request 1"), "{text}");

    let pem = fs::read_to_string(pki.path("web.key")).unwrap();
    let (_, text) = inspect(&pki, &[&both]);
    for line in pem.lines().filter(|line| !line.starts_with("-----")) {
        assert!(!text.contains(line), "{text}");
    }

    let openssl = |args: &[&str]| {
        assert!(
            Command::new("openssl").args(args).current_dir(pki.path("")).output().unwrap().status.success()
        );
    };
    openssl(&["ec", "-in", "web.key", "-out", "sec1.key"]);
    good(&pki, &["sec1.key"], &["1. ec private key", "ECDSA, P-256"]);
    openssl(&["pkcs8", "-topk8", "-in", "web.key", "-passout", "pass:secret", "-out", "locked.key"]);
    wrong(&pki, &["locked.key"], &["it is encrypted"]);
}

#[test]
fn a_request_is_read_as_an_authority_of_the_mesh_would() {
    let pki = Pki::new();
    let key = |name: &str, key: &[&str]| {
        pki.issue(name, &Wish { key, ..Wish::default() });
        name.to_owned()
    };
    let web = key("web", P256);
    let name = format!("subjectAltName = URI:{WEB}");
    good(&pki, &[&pki.request(&web, &name)], &["certificate signing request", WEB, "ECDSA, P-256"]);
    let rows = [
        ("subjectAltName = DNS:web".to_owned(), "no SPIFFE ID among its names"),
        (format!("{name}\nbasicConstraints = CA:true"), "asks for an authority's certificate"),
        (format!("{name}\nkeyUsage = keyCertSign"), "asks to be let sign certificates"),
    ];
    for (extensions, wanted) in rows {
        wrong(&pki, &[&pki.request(&web, &extensions)], &[wanted]);
    }
    let weak = key("weak", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"]);
    wrong(&pki, &[&pki.request(&weak, &name)], &["RSA of 1024 bits"]);
}

#[test]
fn a_revocation_list_says_whom_it_revokes_and_whether_it_is_outdated() {
    let pki = Pki::new();
    pki.issue("web", &Wish::default());
    let list = pki.revoke("list", "intermediate", &["web.pem"], (-1, 7));
    good(
        &pki,
        &[&list],
        &["issuer           CN=intermediate", "revokes          1 certificates", "next one due"],
    );
    let all = pki.join("all.pem", &["web.pem", "intermediate.pem", "list.crl"]);
    wrong(&pki, &[&all], &["it is revoked by the list in part 3"]);
    let old = pki.revoke("old", "intermediate", &[], (-9, -2));
    wrong(&pki, &[&old], &["it is outdated: the next one was due"]);
    // One that says that it is the intermediate's, and is signed by another key.
    fs::rename(pki.path("intermediate.pem"), pki.path("true.pem")).unwrap();
    pki.issue("intermediate", &AUTHORITY);
    let forged = pki.revoke("forged", "intermediate", &[], (-1, 7));
    let forged = pki.join("with.pem", &["true.pem", &forged]);
    wrong(&pki, &[&forged], &["its signature is not by the authority that it names"]);
}

#[test]
fn what_cannot_be_read_is_an_error_of_its_own() {
    let pki = Pki::new();
    let unreadable = |args: &[&str], wanted: &str| {
        let (code, text) = inspect(&pki, args);
        assert_eq!(code, Some(2), "{args:?}: {text}");
        assert!(text.contains(wanted), "{args:?}: {text}");
    };
    fs::write(pki.path("text"), "no certificate").unwrap();
    unreadable(&["text"], "there is no PEM in it");
    unreadable(&["absent.pem"], "reading absent.pem");
    unreadable(&["root.pem", "--roots", "text"], "--roots");
    let der = Command::new("openssl")
        .args(["x509", "-in", "root.pem", "-outform", "DER", "-out", "root.der"])
        .current_dir(pki.path(""))
        .status();
    assert!(der.unwrap().success());
    unreadable(&["root.der"], "it is DER, not PEM");
    let broken = fs::read_to_string(pki.path("root.pem")).unwrap().replacen("MII", "M*I", 1);
    fs::write(pki.path("broken.pem"), broken).unwrap();
    wrong(&pki, &["broken.pem"], &["it cannot be read"]);
    fs::write(pki.path("empty.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        .unwrap();
    wrong(&pki, &["empty.pem"], &["not a certificate that can be parsed"]);
}
