//! Connections end with the certificates that they were made with, and take new tunnels in good time elsewhere.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::sync::{mpsc, watch};

use super::{Agent, Authority, Source, converse, echo_tunnel, identity};
use crate::{
    hbone::{ConnectError, Loss, PoolConfig, ServeError, ServerConnection, TunnelError},
    identity::{Lapse, SvidStore, Trust, TrustBundle, reached},
    mesh::Reason,
};

/// Serves as the agent does, and passes on how each connection ended.
async fn serve(mut connection: ServerConnection, ended: mpsc::Sender<Option<ServeError>>) {
    let end = loop {
        match connection.next().await {
            Some(Ok(incoming)) => {
                if let Ok(tunnel) = incoming.accept() {
                    tokio::spawn(echo_tunnel(tunnel));
                }
            }
            Some(Err(error)) => break Some(error),
            None => break None,
        }
    };
    let _ = ended.send(end).await;
}

async fn agent(svid: Arc<crate::identity::Svid>) -> (Agent, mpsc::Receiver<Option<ServeError>>) {
    let (sender, ended) = mpsc::channel(16);
    (Agent::start(svid, move |connection| serve(connection, sender.clone())).await, ended)
}

#[tokio::test]
async fn a_tunnel_ends_when_a_certificate_does_on_both_sides() {
    let (long, short) = (Authority::new(), Duration::from_secs(8));
    for brief in ["client", "server"] {
        let lifetime = |account| if account == brief { short } else { Duration::from_secs(3600) };
        let server = long.svid_for("server", lifetime("server")).await;
        let (agent, mut ended) = agent(server.clone()).await;
        let mut source = Source::new(&long, PoolConfig::default()).await;
        source.svid = long.svid_for("client", lifetime("client")).await;
        let (mut sender, mut receiver) = source.connect(agent.address).await.unwrap().split();
        sender.send("hello".into()).await.unwrap();
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "hello");

        let lost = receiver.recv().await.unwrap().unwrap_err();
        let own = brief == "client";
        let end = if own { source.svid.not_after() } else { server.not_after() };
        assert!(SystemTime::now() >= end, "cut before its time");
        let served = ended.recv().await.unwrap().unwrap();
        // Both ends' clocks are one here: either side may be the first to say it.
        let TunnelError::Lost(loss) = lost else { panic!("{lost}") };
        let expected = if own { Lapse::OwnExpired(end) } else { Lapse::PeerExpired(end) };
        assert!(matches!(loss, Loss::Io(_) | Loss::Closed) || loss == Loss::Lapsed(expected), "{loss:?}");
        let expected = if own { Lapse::PeerExpired(end) } else { Lapse::OwnExpired(end) };
        match &served {
            ServeError::Lapsed(lapsed) => assert_eq!(lapsed.lapse, expected),
            other => assert_eq!(
                loss,
                Loss::Lapsed(if own { Lapse::OwnExpired(end) } else { Lapse::PeerExpired(end) }),
                "{other}"
            ),
        }
    }
}

#[tokio::test]
async fn a_tunnel_takes_new_streams_for_half_of_what_its_certificates_leave_it() {
    let authority = Authority::new();
    let server = authority.svid_for("server", Duration::from_secs(60)).await;
    let (agent, _ended) = agent(server).await;
    let mut source = Source::new(&authority, PoolConfig::default()).await;
    source.svid = authority.svid_for("client", Duration::from_secs(20)).await;
    let (mut sender, mut receiver) = source.connect(agent.address).await.unwrap().split();
    let opened = SystemTime::now();
    converse(source.connect(agent.address).await.unwrap(), "at once").await;
    assert_eq!(source.dials(), 1);

    // It was opened before that, so that its half has ended by then.
    let left = source.svid.not_after().duration_since(opened).unwrap();
    reached(opened + left / 2).await;
    converse(source.connect(agent.address).await.unwrap(), "in the second half").await;
    assert_eq!(source.dials(), 2);
    sender.send("still here".into()).await.unwrap();
    assert_eq!(receiver.recv().await.unwrap().unwrap(), "still here");
}

/// A store whose trust the test holds.
fn store(authority: &Authority, trust: &Trust) -> SvidStore {
    SvidStore::with_trust(authority.ca.clone(), trust.clone())
}

#[tokio::test]
async fn a_tunnel_ends_when_its_peers_root_is_removed_and_others_stay() {
    use crate::identity::CertificateAuthority as _;
    let (ours, theirs) = (Authority::new(), Authority::new());
    let roots = |authorities: &[&Authority]| {
        let certificates =
            authorities.iter().flat_map(|authority| authority.ca.trust().borrow().certificates().to_vec());
        Arc::new(TrustBundle::new(certificates.collect()).unwrap())
    };
    let (sender, trust) = watch::channel(roots(&[&ours, &theirs]));
    let server = store(&ours, &trust).svid(&identity("server")).await.unwrap();
    let (agent, mut ended) = agent(server).await;
    let (_keep, everybody) = watch::channel(roots(&[&ours, &theirs]));
    let mut tunnels = Vec::new();
    for authority in [&ours, &theirs] {
        let mut source = Source::new(authority, PoolConfig::default()).await;
        source.svid = store(authority, &everybody).svid(&identity("client")).await.unwrap();
        let (mut sender, mut receiver) = source.connect(agent.address).await.unwrap().split();
        sender.send("hello".into()).await.unwrap();
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "hello");
        tunnels.push((source, sender, receiver));
    }
    sender.send_replace(roots(&[&ours]));
    let ServeError::Lapsed(lapsed) = ended.recv().await.unwrap().unwrap() else { panic!() };
    assert_eq!(lapsed.lapse, Lapse::PeerUntrusted);
    let (source, _, receiver) = &mut tunnels[1];
    assert!(matches!(receiver.recv().await, Some(Err(TunnelError::Lost(_)))));
    let error = source.connect(agent.address).await.unwrap_err();
    assert!(matches!(error, ConnectError::Tls { .. }), "{error}");
    assert_eq!(error.reason(), Reason::BadCertificate);

    let (_, sender, receiver) = &mut tunnels[0];
    sender.send("still here".into()).await.unwrap();
    assert_eq!(receiver.recv().await.unwrap().unwrap(), "still here");
    let mut registry = prometheus_client::registry::Registry::default();
    tunnels[1].0.pool.handshakes().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        "culvert_handshakes_total{side=\"client\",result=\"ok\",reason=\"none\"} 1",
        "culvert_handshakes_total{side=\"client\",result=\"failed\",reason=\"refused_by_peer\"} 1",
    ] {
        assert!(text.contains(line), "{text}");
    }
}
