//! Who refuses whom, and that both learn why.

use std::{io, sync::Arc};

use rustls::AlertDescription;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{Mesh, ROLES, Role, accept, connect, identity, tls_error};
use crate::{
    hbone::tests::Authority,
    identity::{TlsError, peer_identity},
    mesh::Reason,
};

#[tokio::test]
async fn both_ends_know_each_other_and_the_protocol() {
    let mesh = Mesh::new().await;
    for (role, peer) in [(Role::Client, "server"), (Role::Server, "client")] {
        let (ours, theirs) = mesh.over_loopback(role).await;
        let session = ours.session();
        assert_eq!(peer_identity(session).unwrap(), identity(peer));
        assert!(session.alpn_protocol().is_some());
        assert_eq!(session.alpn_protocol(), theirs.get_ref().1.alpn_protocol());
        let group = |session: &rustls::CommonState| session.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group(session), rustls::NamedGroup::X25519MLKEM768);
        assert_eq!(group(theirs.get_ref().1), rustls::NamedGroup::X25519MLKEM768);
        assert!(!ours.session.holds_memory());
    }
}

/// A client and a server of different roots.
async fn strangers() -> Mesh {
    let (ours, theirs) = (Authority::new(), Authority::new());
    Mesh { client: ours.svid("client").await, server: theirs.svid("server").await }
}

#[tokio::test]
async fn a_server_of_another_root_is_refused_and_learns_why() {
    let mesh = strangers().await;
    for pipe in [8, 1_000_000] {
        let (near, far) = duplex(pipe);
        let (ours, theirs) = mesh.shake_hands(Role::Client, near, far).await;
        let (ours, theirs) = (tls_error(&ours.unwrap_err()), tls_error(&theirs.unwrap_err()));
        assert!(matches!(ours, TlsError::UnknownIssuer), "{ours}");
        assert!(matches!(theirs, TlsError::Alert(AlertDescription::UnknownCA)), "{theirs}");
    }
}

#[tokio::test]
async fn a_server_of_another_identity_is_refused_and_learns_why() {
    let authority = Authority::new();
    let mesh = Mesh { client: authority.svid("client").await, server: authority.svid("impostor").await };
    let (near, far) = duplex(1_000_000);
    let (ours, theirs) = mesh.shake_hands(Role::Client, near, far).await;
    let (ours, theirs) = (tls_error(&ours.unwrap_err()), tls_error(&theirs.unwrap_err()));
    assert_eq!(ours.reason(), Reason::IdentityMismatch, "{ours}");
    assert!(ours.to_string().contains("sa/server"), "{ours}");
    assert!(matches!(theirs, TlsError::Alert(AlertDescription::CertificateUnknown)), "{theirs}");
}

/// A client that trusts the server, with a certificate that the server does not trust.
async fn unwelcome(server: &Authority) -> Arc<rustls::ClientConfig> {
    let mut config = (*server.svid("client").await.client_config(&identity("server"))).clone();
    let stranger = Authority::new().svid("client").await;
    config.client_auth_cert_resolver =
        stranger.client_config(&identity("server")).client_auth_cert_resolver.clone();
    Arc::new(config)
}

#[tokio::test]
async fn a_client_that_is_refused_learns_why_from_its_first_read() {
    let authority = Authority::new();
    let config = unwelcome(&authority).await;
    let server = authority.svid("server").await.server_config();
    let name = || "192.0.2.1".try_into().unwrap();
    for pipe in [8, 1_000_000] {
        // Ours is the server.
        let (near, far) = duplex(pipe);
        let theirs = async {
            let mut stream = TlsConnector::from(config.clone()).connect(name(), far).await.unwrap();
            stream.read_u8().await.unwrap_err()
        };
        let (ours, theirs) = tokio::join!(accept(server.clone(), near), theirs);
        let (ours, theirs) = (tls_error(&ours.unwrap_err().0), tls_error(&theirs));
        assert!(matches!(ours, TlsError::UnknownIssuer), "{ours}");
        assert!(matches!(theirs, TlsError::Alert(AlertDescription::UnknownCA)), "{theirs}");
    }
    // Ours is the client. (The peer does not wait for a pipe to take its alert.)
    let (near, far) = duplex(1_000_000);
    let ours = async {
        let mut stream = connect(config, name(), near).await.unwrap();
        stream.read_u8().await.unwrap_err()
    };
    let (ours, theirs) = tokio::join!(ours, TlsAcceptor::from(server).accept(far));
    let (ours, theirs) = (tls_error(&ours), tls_error(&theirs.unwrap_err()));
    assert!(matches!(ours, TlsError::Alert(AlertDescription::UnknownCA)), "{ours}");
    assert!(matches!(theirs, TlsError::UnknownIssuer), "{theirs}");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let authority = Authority::new();
    let mut config = (*authority.svid("client").await.client_config(&identity("server"))).clone();
    config.client_auth_cert_resolver = Arc::new(NoCertificate);
    let (near, far) = duplex(1_000_000);
    let name = "192.0.2.1".try_into().unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let server = authority.svid("server").await.server_config();
    let (ours, _theirs) = tokio::join!(accept(server, near), connector.connect(name, far));
    let ours = tls_error(&ours.unwrap_err().0);
    assert!(matches!(ours, TlsError::NoCertificate), "{ours}");
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// What becomes of our handshake with a peer that says `bytes`, for as long as it is listened to.
async fn met_with(role: Role, bytes: &'static [u8], times: usize) -> io::Error {
    let mesh = Mesh::new().await;
    let (near, far) = duplex(100_000);
    let (mut reader, mut writer) = tokio::io::split(far);
    let peer = tokio::spawn(async move {
        for _ in 0..times {
            if writer.write_all(bytes).await.is_err() {
                return;
            }
        }
        let _ = writer.shutdown().await;
    });
    let drain = tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
    let error = match role {
        Role::Client => {
            let config = mesh.client.client_config(&identity("server"));
            connect(config, "192.0.2.1".try_into().unwrap(), near).await.unwrap_err()
        }
        Role::Server => accept(mesh.server.server_config(), near).await.unwrap_err().0,
    };
    peer.abort();
    drain.abort();
    error
}

#[tokio::test]
async fn what_is_no_tls_gets_no_handshake() {
    for role in ROLES {
        for nonsense in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0; 100],
            &[22; 100],
            &[22, 3, 1, 0, 5, 99, 0, 0, 1, 0],
            &[21, 3, 1, 0, 2, 2, 40],
        ] {
            let error = met_with(role, nonsense, 1).await;
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{nonsense:?}: {error}");
        }
    }
}

#[tokio::test]
async fn a_peer_that_ends_the_handshake_early_is_an_error() {
    for role in ROLES {
        for beginning in [&b""[..], &[22, 3, 1], &[22, 3, 1, 1, 0, 1]] {
            let error = met_with(role, beginning, 1).await;
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{beginning:?}: {error}");
        }
    }
}

#[tokio::test]
async fn a_handshake_message_without_end_is_refused() {
    // The beginning of a message of 60,000 bytes, in records of one byte each.
    const HELLO: &[u8] = &[22, 3, 1, 0, 4, 1, 0, 0xea, 0x60];
    const MORE: &[u8] = &[22, 3, 1, 0, 1, 0];
    for role in ROLES {
        let mut bytes = HELLO.to_vec();
        bytes.extend(MORE.iter().copied().cycle().take(MORE.len() * 1_000_000));
        let error = met_with(role, bytes.leak(), 1).await;
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
}
