//! What a request may ask for.

use std::{pin::Pin, task};

use http::uri::PathAndQuery;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore, pki_types::pem::PemObject as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::{body::Body, client::Grpc, codegen::Service};
use tonic_prost::ProstCodec;

use super::*;
use crate::identity::{ca::istio::CREATE_CERTIFICATE, tls_provider};

/// A connection without any of the agent's manners.
pub(super) async fn connect(world: &World) -> Raw {
    let mut roots = RootCertStore::empty();
    let pem = fs::read(world.path("ca/root.pem")).unwrap();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(tls_provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(world.address).await.unwrap();
    let name = "localhost".try_into().unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let (sender, connection) =
        http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    Raw(sender)
}

#[derive(Clone)]
pub(super) struct Raw(http2::SendRequest<Body>);

impl Service<http::Request<Body>> for Raw {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, context: &mut task::Context<'_>) -> task::Poll<hyper::Result<()>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

pub(super) async fn send_to(
    connection: Raw,
    path: &'static str,
    authorization: &[String],
    message: CertificateRequest,
) -> Result<CertificateResponse, Status> {
    let mut grpc = Grpc::with_origin(connection, "https://localhost".parse().unwrap());
    let mut request = tonic::Request::new(message);
    for value in authorization {
        request.metadata_mut().append("authorization", value.parse().unwrap());
    }
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static(path);
    grpc.unary(request, path, ProstCodec::default()).await.map(tonic::Response::into_inner)
}

pub(super) async fn send_with(
    world: &World,
    authorization: &[String],
    message: CertificateRequest,
) -> Result<CertificateResponse, Status> {
    send_to(connect(world).await, CREATE_CERTIFICATE, authorization, message).await
}

pub(super) async fn send(
    world: &World,
    token: &str,
    message: CertificateRequest,
) -> Result<CertificateResponse, Status> {
    send_with(world, &[format!("Bearer {token}")], message).await
}

pub(super) fn csr_pem(identity: &Identity) -> String {
    let csr = Csr::new(identity, &KeyPair::generate().unwrap()).unwrap();
    pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", &csr.der()[..]))
}

pub(super) fn request(identity: &Identity) -> CertificateRequest {
    CertificateRequest { csr: csr_pem(identity), ..CertificateRequest::default() }.impersonating(identity)
}

/// Makes a request with OpenSSL: the arguments of its key, and the lines of its extensions.
fn openssl_request(dir: &Path, key: &[&str], subject: &str, extensions: &str) -> String {
    let config = format!("[req]\ndistinguished_name = dn\nreq_extensions = ext\n[dn]\n[ext]\n{extensions}\n");
    fs::write(dir.join("config"), config).unwrap();
    openssl(dir, &[&["genpkey", "-out", "key"], key].concat());
    // An empty section is no section to OpenSSL.
    let fixed = ["req", "-new", "-key", "key", "-out", "request", "-subj", subject, "-config", "config"];
    openssl(
        dir,
        &if extensions.is_empty() {
            [&fixed[..8], &["-config", "/dev/null"]].concat()
        } else {
            fixed.to_vec()
        },
    );
    fs::read_to_string(dir.join("request")).unwrap()
}

const P256: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
const WEB: &str = "subjectAltName = URI:spiffe://cluster.local/ns/shop/sa/web";

fn curve(name: &'static str) -> Vec<&'static str> {
    vec!["-algorithm", "EC", "-pkeyopt", name]
}

#[test]
fn requests_for_the_identity_or_for_no_name_are_taken_with_keys_that_are_strong() {
    let dir = tempfile::tempdir().unwrap();
    let rsa = |bits| vec!["-algorithm", "RSA", "-pkeyopt", bits];
    let cases = [
        ("P-256", P256.to_vec(), WEB),
        ("no name", P256.to_vec(), ""),
        (
            "a critical name",
            P256.to_vec(),
            "subjectAltName = critical, URI:spiffe://cluster.local/ns/shop/sa/web",
        ),
        ("CA:FALSE", P256.to_vec(), &format!("basicConstraints = CA:FALSE\n{WEB}")),
        ("Ed25519", vec!["-algorithm", "ED25519"], WEB),
        ("RSA 2048", rsa("rsa_keygen_bits:2048"), WEB),
    ];
    for (what, key, extensions) in cases {
        let pem = openssl_request(dir.path(), &key, "/", extensions);
        if let Err(refusal) = check_request(&pem, &identity("web")) {
            panic!("{what}: {refusal}");
        }
    }
    // OpenSSL signs with SHA-256 by default; rcgen with what goes with the key.
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let csr = Csr::new(&identity("web"), &key).unwrap();
    check_request(&pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", &csr.der()[..])), &identity("web"))
        .unwrap();
}

#[test]
fn requests_for_anything_else_are_refused_each_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let other = "subjectAltName = URI:spiffe://cluster.local/ns/shop/sa/db";
    let and = |more: &str| format!("{WEB}\n{more}");
    let named = |names: &str| format!("{WEB}, {names}");
    let p256 = P256.to_vec();
    let cases: Vec<(Vec<&str>, &str, String, &str)> = vec![
        (p256.clone(), "/", other.to_owned(), "asks for the identity"),
        (p256.clone(), "/", and("basicConstraints = critical, CA:TRUE"), "CA:TRUE"),
        (p256.clone(), "/", "basicConstraints = CA:TRUE, pathlen:0".to_owned(), "CA:TRUE"),
        (p256.clone(), "/", "subjectAltName = DNS:api.example.com".to_owned(), "api.example.com"),
        (p256.clone(), "/", "subjectAltName = IP:192.0.2.1".to_owned(), "for the name"),
        (p256.clone(), "/", named("DNS:api.example.com"), "2 subjectAltNames"),
        (p256.clone(), "/", named("URI:spiffe://cluster.local/ns/shop/sa/db"), "2 subjectAltNames"),
        (p256.clone(), "/", and("keyUsage = keyCertSign"), "2.5.29.15"),
        (p256.clone(), "/", and("extendedKeyUsage = serverAuth"), "2.5.29.37"),
        (p256.clone(), "/", and("nameConstraints = permitted;DNS:example.com"), "2.5.29.30"),
        (p256.clone(), "/", and("1.2.3.4 = ASN1:NULL"), "1.2.3.4"),
        (p256.clone(), "/CN=admin", WEB.to_owned(), "CN=admin"),
        (vec!["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"], "/", WEB.to_owned(), "1024 bits"),
        (curve("ec_paramgen_curve:P-521"), "/", WEB.to_owned(), "elliptic curve"),
        (curve("ec_paramgen_curve:secp256k1"), "/", WEB.to_owned(), "elliptic curve"),
        (curve("ec_paramgen_curve:P-224"), "/", WEB.to_owned(), "elliptic curve"),
        (curve("ec_paramgen_curve:P-384"), "/", WEB.to_owned(), "another algorithm"),
        (vec!["-algorithm", "ED448"], "/", WEB.to_owned(), "of a kind"),
        ([P256, &["-pkeyopt", "ec_param_enc:explicit"]].concat(), "/", WEB.to_owned(), "elliptic curve"),
    ];
    for (key, subject, extensions, says) in cases {
        let pem = openssl_request(dir.path(), &key, subject, &extensions);
        let refusal = check_request(&pem, &identity("web")).unwrap_err().to_string();
        assert!(refusal.contains(says), "{key:?} {subject} {extensions}: {refusal}");
    }
}

#[test]
fn texts_that_are_no_request_and_requests_that_were_changed_are_refused() {
    let web = identity("web");
    let good = csr_pem(&web);
    let block = pem::parse(&good).unwrap();
    let with_label = |label: &str, der: &[u8]| pem::encode(&pem::Pem::new(label, der));
    let mut changed = block.contents().to_vec();
    let name = changed.windows(4).position(|bytes| bytes == b"shop").unwrap();
    changed[name] = b'c';
    let longer = [block.contents(), b"\0"].concat();
    let shorter = &block.contents()[..block.contents().len() - 1];
    let cases = [
        (String::new(), CsrRefusal::NotPem),
        ("nonsense".to_owned(), CsrRefusal::NotPem),
        (format!("{good}{good}"), CsrRefusal::NotPem),
        (with_label("CERTIFICATE", block.contents()), CsrRefusal::NotPem),
        (with_label("CERTIFICATE REQUEST", b"nonsense"), CsrRefusal::Unreadable),
        (with_label("CERTIFICATE REQUEST", shorter), CsrRefusal::Unreadable),
        (with_label("CERTIFICATE REQUEST", &longer), CsrRefusal::Unreadable),
        (with_label("CERTIFICATE REQUEST", &changed), CsrRefusal::Signature),
    ];
    for (text, expected) in cases {
        assert_eq!(check_request(&text, &web).unwrap_err(), expected, "{text}");
    }
    check_request(&good, &web).unwrap();
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said_to_the_caller_and_in_the_audit() {
    let world = World::new().await;
    let token = world.issuer.sign(&claims("node-a"));
    let web = identity("web");
    let foreign: Identity = "spiffe://other.example/ns/shop/sa/web".parse().unwrap();
    let named = |name: &str| {
        let mut request = request(&web);
        let value = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(name.to_owned())) };
        request.metadata.as_mut().unwrap().fields.insert("ImpersonatedIdentity".to_owned(), value);
        request
    };
    let mut number = request(&web);
    let value = prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(1.0)) };
    number.metadata.as_mut().unwrap().fields.insert("ImpersonatedIdentity".to_owned(), value);
    let cases = [
        (
            CertificateRequest { csr: csr_pem(&identity("db")), ..request(&web) },
            "bad_request",
            "asks for the identity",
        ),
        (CertificateRequest { csr: String::new(), ..request(&web) }, "bad_request", "PEM"),
        (named("web"), "bad_identity", "spiffe://"),
        (named(""), "bad_identity", "spiffe://"),
        (number, "bad_identity", "spiffe://"),
        (request(&foreign), "bad_identity", "other.example"),
        (CertificateRequest { validity_duration: 3, ..request(&web) }, "bad_lifetime", "10 at least"),
        (CertificateRequest { validity_duration: -1, ..request(&web) }, "bad_lifetime", "10 at least"),
        (CertificateRequest { validity_duration: i64::MIN, ..request(&web) }, "bad_lifetime", "10 at least"),
    ];
    for (message, reason, says) in cases {
        let status = send(&world, &token, message.clone()).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{message:?}: {status}");
        assert!(status.message().contains(says), "{message:?}: {status}");
        let line = world.audited();
        assert_eq!(line["reason"], reason, "{line}");
        assert_eq!(line["error"], status.message());
        assert_eq!(line["node"], "node-a");
    }
    send(&world, &token, request(&web)).await.unwrap();
}

#[tokio::test]
async fn lifetimes_are_as_asked_for_and_bounded() {
    const HOUR: u64 = 3600;
    let world = World::with(|config| config.max_lifetime = Duration::from_secs(2 * HOUR)).await;
    let token = world.issuer.sign(&claims("node-a"));
    for (asked, expected) in
        [(0, 2 * HOUR), (i64::MAX, 2 * HOUR), (3 * 3600, 2 * HOUR), (3600, HOUR), (30, 30), (10, 10)]
    {
        let before = now();
        let request = CertificateRequest { validity_duration: asked, ..request(&identity("web")) };
        let answer = send(&world, &token, request).await.unwrap();
        let leaf = pem::parse(&answer.cert_chain[0]).unwrap();
        let (_, leaf) = x509_parser::parse_x509_certificate(leaf.contents()).unwrap();
        let until = u64::try_from(leaf.validity().not_after.timestamp()).unwrap();
        let range = before + expected..=now() + expected;
        assert!(range.contains(&until), "{asked} s: {until} is not in {range:?}");
    }
}

#[tokio::test]
async fn the_answer_is_leaf_intermediate_and_all_roots_last_and_takes_only_the_key_of_the_request() {
    let world = World::new().await;
    let token = world.issuer.sign(&claims("node-a"));
    let key = KeyPair::generate().unwrap();
    let csr = Csr::new(&identity("web"), &key).unwrap();
    let request = CertificateRequest {
        csr: pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", &csr.der()[..])),
        ..request(&identity("web"))
    };
    let answer = send(&world, &token, request).await.unwrap();
    let [leaf, intermediate, root] = &answer.cert_chain[..] else {
        panic!("{} elements", answer.cert_chain.len())
    };
    let der = |text: &str| pem::parse(text).unwrap().into_contents();
    let file = |name: &str| der(&fs::read_to_string(world.path("ca").join(name)).unwrap());
    assert_eq!(der(intermediate), file("intermediate.pem"));
    assert_eq!(der(root), file("root.pem"));
    let leaf = der(leaf);
    let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    assert_eq!(leaf.public_key().raw, rcgen::PublicKeyData::subject_public_key_info(&key));
}

#[tokio::test]
async fn what_is_no_request_is_answered_or_ended_and_others_are_served() {
    let world = World::new().await;
    let token = world.issuer.sign(&claims("node-a"));
    let bearer = [format!("Bearer {token}")];
    let web = identity("web");
    let status = send_to(connect(&world).await, "/grpc.health.v1.Health/Check", &bearer, request(&web)).await;
    assert_eq!(status.unwrap_err().code(), Code::Unimplemented);
    let large = CertificateRequest { csr: "x".repeat(40_000), ..request(&web) };
    let status = send(&world, &token, large).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert!(world.audit_lines().is_empty(), "neither is a request for a certificate");
    let long = [format!("Bearer {}", "x".repeat(40_000))];
    send_with(&world, &long, request(&web)).await.unwrap_err();
    // No TLS at all.
    let mut plain = TcpStream::connect(world.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut plain, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    drop(tokio::io::AsyncReadExt::read_to_end(&mut plain, &mut rest).await);
    world.ask(&world.agent(&claims("node-a")), "web").await.unwrap();
}
