//! Real handshakes over an in-memory pipe: who is let in, who is refused, by which side, and for what stated reason.
//! Certificates that are wrong in some way are in the table of `openssl_tests`, but for those that OpenSSL does not make.

use std::sync::Arc;

use rcgen::{CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, SanType};
use rustls::{
    AlertDescription, ClientConfig, ConfigBuilder, HandshakeKind, NamedGroup, PeerIncompatible,
    ProtocolVersion, RootCertStore, ServerConfig,
    client::{Resumption, WantsClientCert},
    crypto::{
        CryptoProvider,
        aws_lc_rs::{cipher_suite, default_provider, kx_group},
    },
    pki_types::ServerName,
    server::ServerSessionMemoryCache,
    sign::SingleCertAndKey,
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    sync::watch,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{
    IdentityRefusal, Observed, TlsError, TrustBundle, peer_identity,
    spiffe::Expected,
    testing::{CLIENT, TestRoot, WEB, dns, identity, leaf, uri},
    tls,
    verify::SpiffeVerifier,
};
use crate::mesh::{Identity, Reason};

/// One end's view of a handshake that succeeded.
#[derive(Debug)]
struct Session {
    peer: Identity,
    version: Option<ProtocolVersion>,
    group: Option<NamedGroup>,
    alpn: Option<Vec<u8>>,
    kind: Option<HandshakeKind>,
}

impl Session {
    fn of(connection: &rustls::CommonState) -> Self {
        Self {
            peer: peer_identity(connection).unwrap(),
            version: connection.protocol_version(),
            group: connection.negotiated_key_exchange_group().map(|group| group.name()),
            alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
            kind: connection.handshake_kind(),
        }
    }
}

/// Both ends of one handshake.
struct Ends {
    client: Result<Session, TlsError>,
    server: Result<Session, TlsError>,
}

/// Runs a handshake, and one byte from the server: only its arrival tells a client of TLS 1.3 that it was accepted.
async fn handshake(client: ClientConfig, server: ServerConfig) -> Ends {
    let (near, far) = duplex(64 * 1024);
    let dial = async move {
        let name = ServerName::try_from("192.0.2.1").unwrap();
        let stream = TlsConnector::from(Arc::new(client)).connect(name, near).await;
        let mut stream = Observed::new(stream.map_err(|error| TlsError::from_io(&error))?);
        let failure = stream.failure();
        let read = stream.read_u8().await;
        match failure.get() {
            Some(failure) => Err(failure.clone()),
            None => read.map(|_| Session::of(stream.stream().get_ref().1)).map_err(|e| TlsError::from_io(&e)),
        }
    };
    let accept = async move {
        let stream = TlsAcceptor::from(Arc::new(server)).accept(far).await;
        let mut stream = stream.map_err(|error| TlsError::from_io(&error))?;
        stream.write_u8(1).await.map_err(|error| TlsError::from_io(&error))?;
        stream.flush().await.map_err(|error| TlsError::from_io(&error))?;
        Ok(Session::of(stream.get_ref().1))
    };
    let (client, server) = tokio::join!(dial, accept);
    Ends { client, server }
}

/// A mesh of two: `client` calls `web`, each with the given certificate.
struct Pair {
    root: TestRoot,
    client: Arc<SingleCertAndKey>,
    server: Arc<SingleCertAndKey>,
}

impl Pair {
    fn new() -> Self {
        let root = TestRoot::new("test root");
        let (client, server) = (root.issue(&leaf(CLIENT)), root.issue(&leaf(WEB)));
        Self { root, client, server }
    }

    fn client_config(&self) -> ClientConfig {
        tls::client_config(Arc::clone(&self.client), self.root.trust(), expect_web())
    }

    /// A client that checks servers as ours does, but has other cryptography.
    fn foreign_client(&self, provider: CryptoProvider) -> ConfigBuilder<ClientConfig, WantsClientCert> {
        ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(SpiffeVerifier::new(self.root.trust(), expect_web())))
    }

    fn server_config(&self) -> ServerConfig {
        let expected = Expected::TrustDomain(identity(WEB).trust_domain().clone());
        tls::server_config(Arc::clone(&self.server), self.root.trust(), expected)
    }

    async fn handshake(&self) -> Ends {
        handshake(self.client_config(), self.server_config()).await
    }
}

fn expect_web() -> Expected {
    let web = identity(WEB);
    Expected::Workload { ours: web.trust_domain().clone(), identity: Arc::new(web) }
}

/// Lets first the server, then the client present a certificate; the other side must refuse, with `reason` and an error
/// that `expected` recognizes, and the presenter must learn of it by an alert.
async fn refused(
    spoil: impl Fn(&mut CertificateParams),
    reason: Reason,
    expected: impl Fn(&TlsError) -> bool,
) {
    let spoiled = |id: &str| {
        let mut params = leaf(id);
        spoil(&mut params);
        params
    };

    let mut pair = Pair::new();
    pair.server = pair.root.issue(&spoiled(WEB));
    let Ends { client, server } = pair.handshake().await;
    let error = client.expect_err("the client took a bad server");
    assert!(expected(&error), "client: {error:?}");
    assert_eq!(error.reason(), reason, "client: {error}");
    assert_alerted(server);

    let mut pair = Pair::new();
    pair.client = pair.root.issue(&spoiled(CLIENT));
    let Ends { client, server } = pair.handshake().await;
    let error = server.expect_err("the server took a bad client");
    assert!(expected(&error), "server: {error:?}");
    assert_eq!(error.reason(), reason, "server: {error}");
    assert_alerted(client);
}

fn assert_alerted(presenter: Result<Session, TlsError>) {
    let error = presenter.expect_err("whoever presented a bad certificate was told nothing");
    assert!(matches!(error, TlsError::Alert(_)), "{error:?}");
    assert_eq!(error.reason(), Reason::BadCertificate, "{error}");
    assert!(error.to_string().starts_with("the peer refused our certificate: "), "{error}");
}

#[tokio::test]
async fn two_members_know_each_other_over_tls13_with_post_quantum_keys() {
    let Ends { client, server } = Pair::new().handshake().await;
    let (client, server) = (client.unwrap(), server.unwrap());
    assert_eq!(client.peer, identity(WEB));
    assert_eq!(server.peer, identity(CLIENT));
    for end in [client, server] {
        assert_eq!(end.version, Some(ProtocolVersion::TLSv1_3));
        assert_eq!(end.group, Some(NamedGroup::X25519MLKEM768));
        assert_eq!(end.alpn.as_deref(), Some(&b"culvert/1"[..]));
    }
}

#[tokio::test]
async fn malformed_spiffe_ids_are_refused() {
    let endless = format!("spiffe://cluster.local/ns/{}", "x".repeat(10_000));
    for id in ["https://example.org/", &endless] {
        refused(
            |params| params.subject_alt_names = vec![uri(id)],
            Reason::BadCertificate,
            |error| {
                assert!(error.to_string().len() < 1000, "a peer fills the log");
                matches!(error, TlsError::Identity(refusal) if matches!(**refusal, IdentityRefusal::Malformed(_)))
            },
        )
        .await;
    }
}

#[tokio::test]
async fn certificate_of_a_thousand_purposes_does_not_fill_the_log() {
    refused(
        |params| {
            params.extended_key_usages =
                (0..1000).map(|n| ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 4, 1, n])).collect();
        },
        Reason::BadCertificate,
        |error| error.to_string().len() < 1000,
    )
    .await;
}

/// Another implementation could read it as a second URI.
#[tokio::test]
async fn certificate_with_a_name_that_does_not_parse_is_refused() {
    let name = |bytes: &[u8]| [&[0x86, u8::try_from(bytes.len()).unwrap()], bytes].concat();
    refused(
        |params| {
            let SanType::URI(id) = params.subject_alt_names.remove(0) else { panic!("a URI comes first") };
            let names = [name(id.as_str().as_bytes()), name(b"spiffe://\xff")].concat();
            let names = [&[0x30, u8::try_from(names.len()).unwrap()], &names[..]].concat();
            // subjectAltName, RFC 5280 §4.2.1.6.
            params.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 17], names));
        },
        Reason::BadCertificate,
        |error| is_refusal(error, &IdentityRefusal::Unreadable),
    )
    .await;
}

#[tokio::test]
async fn certificate_without_its_key_is_refused() {
    let no_key = |end: Result<Session, TlsError>| {
        let error = end.expect_err("who has a certificate without its key was let in");
        assert!(matches!(error, TlsError::NotItsKey), "{error:?}");
    };
    let mut pair = Pair::new();
    pair.server = pair.root.issue_stolen(&leaf(WEB));
    no_key(pair.handshake().await.client);
    let mut pair = Pair::new();
    pair.client = pair.root.issue_stolen(&leaf(CLIENT));
    no_key(pair.handshake().await.server);
}

#[tokio::test]
async fn names_of_other_types_do_not_matter() {
    let mut pair = Pair::new();
    let mut params = leaf(WEB);
    let address = SanType::IpAddress([192, 0, 2, 9].into());
    params.subject_alt_names = vec![dns("web.example"), uri(WEB), address];
    pair.server = pair.root.issue(&params);
    assert_eq!(pair.handshake().await.client.unwrap().peer, identity(WEB));
}

/// Both with a root of another name and with one of the same name, which only the signature tells apart.
#[tokio::test]
async fn certificate_of_another_root_is_refused() {
    for name in ["other root", "test root"] {
        let other = TestRoot::new(name);
        let mut pair = Pair::new();
        pair.server = other.issue(&leaf(WEB));
        let Ends { client, server } = pair.handshake().await;
        assert!(matches!(client, Err(TlsError::UnknownIssuer)), "{client:?}");
        assert!(matches!(server, Err(TlsError::Alert(_))), "{server:?}");

        let mut pair = Pair::new();
        pair.client = other.issue(&leaf(CLIENT));
        let Ends { client, server } = pair.handshake().await;
        assert!(matches!(server, Err(TlsError::UnknownIssuer)), "{server:?}");
        assert!(matches!(client, Err(TlsError::Alert(_))), "{client:?}");
    }
}

#[tokio::test]
async fn server_of_another_identity_is_refused_and_both_are_named() {
    let mut pair = Pair::new();
    pair.server = pair.root.issue(&leaf(CLIENT));
    let Ends { client, server } = pair.handshake().await;
    let error = client.unwrap_err();
    let (expected, presented) = (identity(WEB), identity(CLIENT));
    assert!(is_refusal(&error, &IdentityRefusal::Mismatch { expected, presented }), "{error:?}");
    assert_eq!(error.reason(), Reason::IdentityMismatch);
    assert!(error.to_string().contains(WEB) && error.to_string().contains(CLIENT), "{error}");
    // The alert that ztunnel sends, too.
    assert!(matches!(server, Err(TlsError::Alert(AlertDescription::CertificateUnknown))), "{server:?}");
}

#[tokio::test]
async fn client_without_a_certificate_is_refused() {
    let pair = Pair::new();
    let client = pair.foreign_client((*tls::provider()).clone()).with_no_client_auth();
    let Ends { client, server } = handshake(client, pair.server_config()).await;
    assert!(matches!(server, Err(TlsError::NoCertificate)), "{server:?}");
    assert!(matches!(client, Err(TlsError::Alert(AlertDescription::CertificateRequired))), "{client:?}");
}

#[tokio::test]
async fn tls12_is_refused() {
    let pair = Pair::new();
    let mut client = ClientConfig::builder_with_provider(default_provider().into())
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec()];
    let Ends { client, server } = handshake(client, pair.server_config()).await;
    let incompatible = rustls::Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled);
    assert!(matches!(server, Err(TlsError::Protocol(error)) if error == incompatible));
    assert!(matches!(client, Err(TlsError::Alert(AlertDescription::ProtocolVersion))), "{client:?}");
}

#[tokio::test]
async fn peer_without_post_quantum_keys_is_served() {
    let pair = Pair::new();
    for group in [kx_group::X25519, kx_group::SECP256R1] {
        let provider = CryptoProvider { kx_groups: vec![group], ..(*tls::provider()).clone() };
        let client = pair.foreign_client(provider).with_client_cert_resolver(pair.client.clone());
        assert_eq!(handshake(client, pair.server_config()).await.server.unwrap().group, Some(group.name()));
    }
}

#[tokio::test]
async fn a_record_is_the_same_whichever_library_makes_it() {
    let pair = Pair::new();
    for suite in [tls::AWS_LC, tls::RING].concat() {
        let provider = CryptoProvider { cipher_suites: vec![suite], ..(*tls::provider()).clone() };
        let client = pair.foreign_client(provider).with_client_cert_resolver(pair.client.clone());
        let Ends { client, server } = handshake(client, pair.server_config()).await;
        client.unwrap();
        server.unwrap();
    }
}

#[tokio::test]
async fn suites_other_than_aes_gcm_are_refused() {
    let pair = Pair::new();
    let cipher_suites = vec![cipher_suite::TLS13_CHACHA20_POLY1305_SHA256];
    let provider = CryptoProvider { cipher_suites, ..(*tls::provider()).clone() };
    let client = pair.foreign_client(provider).with_client_cert_resolver(pair.client.clone());
    let Ends { client, server } = handshake(client, pair.server_config()).await;
    assert!(matches!(server, Err(TlsError::Protocol(_))), "{server:?}");
    assert!(matches!(client, Err(TlsError::Alert(AlertDescription::HandshakeFailure))), "{client:?}");
}

#[tokio::test]
async fn neither_side_resumes_a_session() {
    let pair = Pair::new();
    let (mut willing_client, mut willing_server) = (pair.client_config(), pair.server_config());
    willing_client.resumption = Resumption::in_memory_sessions(8);
    willing_server.session_storage = ServerSessionMemoryCache::new(8);
    willing_server.send_tls13_tickets = 2;

    let second = async |client: &ClientConfig, server: &ServerConfig| {
        handshake(client.clone(), server.clone()).await.client.unwrap();
        handshake(client.clone(), server.clone()).await.client.unwrap().kind
    };
    assert_eq!(second(&willing_client, &willing_server).await, Some(HandshakeKind::Resumed), "the control");
    assert_eq!(second(&willing_client, &pair.server_config()).await, Some(HandshakeKind::Full));
    assert_eq!(second(&pair.client_config(), &willing_server).await, Some(HandshakeKind::Full));
}

#[tokio::test]
async fn change_of_roots_reaches_configurations_that_exist() {
    let pair = Pair::new();
    let bundle = |root: &TestRoot| Arc::new(TrustBundle::new(vec![root.certificate.clone()]).unwrap());
    let (roots, trust) = watch::channel(bundle(&pair.root));
    let client = tls::client_config(Arc::clone(&pair.client), trust, expect_web());
    handshake(client.clone(), pair.server_config()).await.client.unwrap();
    roots.send_replace(bundle(&TestRoot::new("new root")));
    let refused = handshake(client, pair.server_config()).await.client;
    assert!(matches!(refused, Err(TlsError::UnknownIssuer)), "{refused:?}");
}

#[tokio::test]
async fn a_peer_that_speaks_no_tls_is_told_from_one_that_hangs_up() {
    let pair = Pair::new();
    let acceptor = TlsAcceptor::from(Arc::new(pair.server_config()));
    let (mut near, far) = duplex(1024);
    near.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").await.unwrap();
    let error = TlsError::from_io(&acceptor.accept(far).await.unwrap_err());
    assert!(matches!(error, TlsError::Protocol(_)), "{error:?}");

    let (near, far) = duplex(1024);
    drop(near);
    let error = TlsError::from_io(&acceptor.accept(far).await.unwrap_err());
    assert!(matches!(error, TlsError::Io { .. }), "{error:?}");
    assert_eq!(error.reason(), Reason::Tls);
}

fn is_refusal(error: &TlsError, expected: &IdentityRefusal) -> bool {
    matches!(error, TlsError::Identity(refusal) if **refusal == *expected)
}
