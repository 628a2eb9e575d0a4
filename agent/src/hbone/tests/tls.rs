//! Who may speak to whom: real handshakes over loopback.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{Agent, Authority, Source, converse, echo, identity};
use crate::{
    hbone::{ConnectError, HANDSHAKE, PoolConfig, ServeError, accept},
    identity::Svid,
    mesh::Reason,
};

/// Accepts one connection as the agent does.
async fn accept_one(
    svid: Arc<Svid>,
) -> (std::net::SocketAddr, tokio::task::JoinHandle<Result<(), ServeError>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let connection = accept(tcp, svid).await?;
        echo(connection).await;
        Ok(())
    });
    (address, task)
}

#[tokio::test]
async fn a_tunnel_between_members_works_and_both_know_each_other() {
    let authority = Authority::new();
    let (sender, mut identities) = tokio::sync::mpsc::channel(1);
    let agent = Agent::start(authority.svid("server").await, move |connection| {
        sender.try_send(connection.peer_identity().clone()).unwrap();
        echo(connection)
    })
    .await;
    let source = Source::new(&authority, PoolConfig::default()).await;
    converse(source.connect(agent.address).await.unwrap(), "through the wall").await;
    assert_eq!(identities.recv().await.unwrap(), identity("client"));
}

#[tokio::test]
async fn a_server_of_another_identity_gets_no_request() {
    let authority = Authority::new();
    let (address, server) = accept_one(authority.svid("impostor").await).await;
    let source = Source::new(&authority, PoolConfig::default()).await;
    let error = source.connect(address).await.unwrap_err();
    assert_eq!(error.reason(), Reason::IdentityMismatch, "{error}");
    assert!(error.to_string().contains("sa/server"), "{error}");
    assert!(matches!(server.await.unwrap(), Err(ServeError::Tls(_))));
    assert_eq!(source.pool.stats(), Default::default());
}

#[tokio::test]
async fn a_client_of_another_root_is_refused_and_learns_why() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (address, server) = accept_one(ours.svid("server").await).await;
    // A client that trusts the server, with a certificate that the server does not trust.
    let tls = {
        let mut config = (*ours.svid("client").await.client_config(&identity("server"))).clone();
        let stranger = theirs.svid("client").await;
        config.client_auth_cert_resolver =
            stranger.client_config(&identity("server")).client_auth_cert_resolver.clone();
        TlsConnector::from(Arc::new(config))
    };
    let tcp = TcpStream::connect(address).await.unwrap();
    let mut stream = tls.connect(address.ip().into(), tcp).await.expect("the server judges later");
    // Unread by the server when it refuses: closing then would be a reset, and the next write, not the alert, would say
    // that something is wrong.
    stream.write_all(&[0; 60_000]).await.unwrap();
    stream.flush().await.unwrap();
    stream.get_ref().0.readable().await.unwrap();
    stream.write_all(&[0; 1000]).await.expect("no reset");
    stream.flush().await.expect("no reset");
    let error = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.unwrap_err();
    assert!(error.to_string().contains("alert"), "{error}");
    let refused = server.await.unwrap().unwrap_err();
    assert_eq!(refused.reason(), Reason::BadCertificate, "{refused}");
}

#[tokio::test]
async fn a_refused_client_certificate_is_the_reason_of_the_failed_connect() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (address, server) = accept_one(ours.svid("server").await).await;
    let source = Source::new(&theirs, PoolConfig::default()).await;
    let error = source.connect(address).await.unwrap_err();
    assert!(matches!(error, ConnectError::Tls { .. }), "{error}");
    assert_eq!(error.reason(), Reason::BadCertificate, "{error}");
    assert!(server.await.unwrap().is_err());
}

#[tokio::test]
async fn a_client_that_does_not_offer_h2_is_refused() {
    let authority = Authority::new();
    let (address, server) = accept_one(authority.svid("server").await).await;
    let mut config = (*authority.svid("client").await.client_config(&identity("server"))).clone();
    config.alpn_protocols.clear();
    let tcp = TcpStream::connect(address).await.unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(address.ip().into(), tcp).await.unwrap();
    // What would be HTTP/2 all the same: it is ALPN that decides.
    let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    let error = server.await.unwrap().unwrap_err();
    assert!(matches!(&error, ServeError::Protocol(detail) if detail.contains("ALPN")), "{error}");
}

#[tokio::test]
async fn a_server_that_does_not_choose_h2_gets_no_request() {
    let authority = Authority::new();
    let mut config = (*authority.svid("server").await.server_config()).clone();
    config.alpn_protocols.clear();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let agent = Agent::listen(move |tcp| {
        let acceptor = acceptor.clone();
        async move {
            let mut stream = acceptor.accept(tcp).await.unwrap();
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
    })
    .await;
    let source = Source::new(&authority, PoolConfig::default()).await;
    let error = source.connect(agent.address).await.unwrap_err();
    assert!(matches!(&error, ConnectError::Protocol { detail, .. } if detail.contains("ALPN")), "{error}");
    assert_eq!(source.pool.stats(), Default::default());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_silent_in_the_handshake_is_given_up() {
    let authority = Authority::new();
    let (address, server) = accept_one(authority.svid("server").await).await;
    let _silent = TcpStream::connect(address).await.unwrap();
    let error = server.await.unwrap().unwrap_err();
    assert!(matches!(error, ServeError::HandshakeTimeout(HANDSHAKE)), "{error}");
    assert_eq!(error.reason(), Reason::Timeout);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_silent_after_tls_is_given_up() {
    let authority = Authority::new();
    let (address, server) = accept_one(authority.svid("server").await).await;
    let svid = authority.svid("client").await;
    let tls = TlsConnector::from(svid.client_config(&identity("server")));
    let tcp = TcpStream::connect(address).await.unwrap();
    let _silent = tls.connect(address.ip().into(), tcp).await.unwrap();
    assert!(matches!(server.await.unwrap(), Err(ServeError::HandshakeTimeout(_))));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_silent_in_the_handshake_is_given_up() {
    let authority = Authority::new();
    let agent = Agent::listen(|tcp| async move {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        drop(tcp);
    })
    .await;
    let source = Source::new(&authority, PoolConfig::default()).await;
    let error = source.connect(agent.address).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { .. }), "{error}");
    assert_eq!(source.pool.stats(), Default::default());
}
