//! The commands as they are typed.

use std::fs;

use clap::Parser;
use tempfile::TempDir;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    ca: CaArgs,
}

fn culvert_ca(args: &[&str]) -> anyhow::Result<()> {
    run(Cli::try_parse_from([&["ca"], args].concat())?.ca)
}

/// `culvert ca` in a directory of its own: `{dir}` is the authority, `{tmp}` what is around it.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn run(&self, line: &str) -> anyhow::Result<()> {
        let line = line.replace("{dir}", &self.path("ca")).replace("{tmp}", &self.path(""));
        culvert_ca(&line.split_whitespace().collect::<Vec<_>>())
    }
}

#[tokio::test]
async fn init_makes_an_authority_for_the_trust_domain_and_does_so_once() {
    let place = Place::new();
    let init = "init {dir} --trust-domain example.org";
    place.run(init).unwrap();
    assert_eq!(LocalCa::open(place.path("ca").as_ref()).unwrap().trust_domain().as_str(), "example.org");
    assert!(place.run(init).is_err());
}

#[test]
fn init_refuses_what_is_no_trust_domain_or_no_duration() {
    assert!(culvert_ca(&["init", "/nowhere", "--trust-domain", "Example.org"]).is_err());
    assert!(culvert_ca(&["init", "/nowhere", "--root-lifetime", "long"]).is_err());
}

#[test]
fn intermediate_is_replaced_with_the_root_key_at_hand_or_elsewhere() {
    let place = Place::new();
    let intermediate = || fs::read(place.path("ca/intermediate.pem")).unwrap();
    place.run("init {dir} --root-key {tmp}/offline.key").unwrap();
    let first = intermediate();
    // The root's key is not where it is looked for.
    assert!(place.run("intermediate {dir}").is_err());
    place.run("intermediate {dir} --root-key {tmp}/offline.key --lifetime 30d").unwrap();
    let second = intermediate();
    assert_ne!(first, second);

    place.run("request {dir}").unwrap();
    let sign = "sign {dir}/intermediate.csr --root-key {tmp}/offline.key --root-certificate {dir}/root.pem --out {tmp}/new.pem";
    place.run(sign).unwrap();
    assert!(place.run(sign).is_err(), "the file is there");
    assert_eq!(intermediate(), second, "nothing happened here yet");
    place.run("install {dir} {tmp}/new.pem").unwrap();
    assert_eq!(intermediate(), fs::read(place.path("new.pem")).unwrap());
}

#[test]
fn roots_come_and_go() {
    let place = Place::new();
    place.run("init {dir}").unwrap();
    place.run("root list {dir}").unwrap();
    let old = CaDirectory::open(place.path("ca").as_ref()).unwrap().roots(&[]).unwrap()[0].fingerprint;
    place.run("root new {dir} --root-key {tmp}/new.key").unwrap();
    let refusal = place.run(&format!("root remove {{dir}} {old:.8}")).unwrap_err();
    assert!(format!("{refusal:#}").contains("signs in this directory"), "{refusal:#}");
    place.run("intermediate {dir} --root-key {tmp}/new.key").unwrap();
    let refusal = place.run(&format!("root remove {{dir}} {old:.8}")).unwrap_err();
    assert!(format!("{refusal:#}").contains("--signed"), "{refusal:#}");
    place.run(&format!("root remove {{dir}} {old:.8} --force")).unwrap();
    assert!(place.run("root add {dir} {dir}/root.pem").is_err(), "it is trusted already");
}

#[test]
fn a_server_answers_by_files_or_by_the_api_server_and_by_an_authority_that_is_named_once() {
    let parse = |line: &str| {
        let words = ["ca", "serve", "--dns-name", "localhost"].into_iter().chain(line.split_whitespace());
        Cli::try_parse_from(words).map(drop).map_err(|error| error.to_string())
    };
    parse("--kube").unwrap();
    parse("--kube --kubeconfig config --secret other").unwrap();
    parse("--kube --issuer-cert a --issuer-key b --ca-roots c").unwrap();
    parse("--ca-dir ca --jwks keys --manifests dir").unwrap();
    for (line, names) in [
        ("--ca-dir ca --manifests dir", "--jwks"),
        ("--ca-dir ca --jwks keys", "--manifests"),
        ("--kube --jwks keys", "--jwks"),
        ("--kube --manifests dir", "--manifests"),
        ("--kube --ca-dir ca --vault-address https://vault", "--vault-address"),
    ] {
        assert!(parse(line).unwrap_err().contains(names), "{line}");
    }
}
