//! What is sent together with a CONNECT: only to who expects it there, and never twice.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::{Agent, Authority, FirstBytes, PoolConfig, Source, Tunnel, converse, read_all, request};
use crate::{
    hbone::ConnectError,
    identity::{ALPN_EARLY, ALPN_H2},
};

/// Says the same whenever it is asked.
struct First(&'static [u8]);

impl FirstBytes for First {
    async fn first(&mut self) -> Bytes {
        Bytes::from_static(self.0)
    }
}

async fn connect(source: &Source, agent: &Agent) -> Result<Tunnel, ConnectError> {
    let dial = || TcpStream::connect(agent.address);
    let (key, asked) = (source.key(agent.address), request("127.0.0.1:80"));
    source.pool.connect(key, source.svid.clone(), dial, (asked, &mut First(b"early "))).await
}

/// An agent that answers a CONNECT only once it has the early bytes, and then sends back what comes after them.
struct Expecting {
    agent: Agent,
    /// What came early.
    got: Arc<Mutex<Vec<Bytes>>>,
    /// So many of the next requests it refuses, unprocessed.
    refusals: Arc<AtomicUsize>,
}

async fn expecting(authority: &Authority) -> Expecting {
    let svid = authority.svid("server").await;
    let (refusals, got) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let (left, collected) = (refusals.clone(), got.clone());
    let agent = Agent::listen(move |tcp| {
        let (svid, left, got) = (svid.clone(), left.clone(), collected.clone());
        async move {
            let tls = TlsAcceptor::from(svid.server_config()).accept(tcp).await.unwrap();
            assert_eq!(tls.get_ref().1.alpn_protocol(), Some(ALPN_EARLY));
            let mut connection = h2::server::handshake(tls).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let (left, got) = (left.clone(), got.clone());
                tokio::spawn(async move {
                    let mut body = request.into_body();
                    let first = body.data().await.unwrap().unwrap();
                    got.lock().unwrap().push(first);
                    if left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
                        respond.send_reset(h2::Reason::REFUSED_STREAM);
                        return;
                    }
                    echo(body, respond).await;
                });
            }
        }
    });
    Expecting { agent: agent.await, got, refusals }
}

/// Answers, and sends back what comes.
async fn echo(mut body: h2::RecvStream, mut respond: h2::server::SendResponse<Bytes>) {
    let mut send = respond.send_response(http::Response::new(()), false).unwrap();
    while let Some(Ok(data)) = body.data().await {
        send.send_data(data, false).unwrap();
    }
    send.send_data(Bytes::new(), true).unwrap();
}

#[tokio::test]
async fn the_first_bytes_come_before_the_answer_and_are_counted() {
    let authority = Authority::new();
    let source = Source::new(&authority, PoolConfig::default()).await;
    let Expecting { agent, got, .. } = expecting(&authority).await;
    for _ in 0..2 {
        let tunnel = connect(&source, &agent).await.unwrap();
        assert_eq!(tunnel.early(), 6);
        converse(tunnel, "late").await;
    }
    assert_eq!(*got.lock().unwrap(), ["early ", "early "]);
}

#[tokio::test]
async fn an_attempt_elsewhere_has_the_first_bytes_too() {
    let authority = Authority::new();
    let source = Source::new(&authority, PoolConfig::default()).await;
    let Expecting { agent, got, refusals } = expecting(&authority).await;
    let _first = connect(&source, &agent).await.unwrap();
    refusals.store(1, SeqCst);
    let second = connect(&source, &agent).await.unwrap();
    assert_eq!((second.early(), agent.connections()), (6, 2));
    assert_eq!(*got.lock().unwrap(), ["early "; 3]);
    converse(second, "late").await;
}

#[tokio::test]
async fn a_peer_that_speaks_no_more_than_h2_is_sent_nothing_before_its_answer() {
    let authority = Authority::new();
    let svid = authority.svid("server").await;
    let agent = Agent::listen(move |tcp| {
        let mut config = (*svid.server_config()).clone();
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        async move {
            let tls = TlsAcceptor::from(Arc::new(config)).accept(tcp).await.unwrap();
            let mut connection = h2::server::handshake(tls).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(echo(request.into_body(), respond));
            }
        }
    });
    let agent = agent.await;
    let source = Source::new(&authority, PoolConfig::default()).await;
    let tunnel = connect(&source, &agent).await.unwrap();
    assert_eq!(tunnel.early(), 0);
    let (sender, mut receiver) = tunnel.split();
    sender.finish();
    assert_eq!(read_all(&mut receiver).await, b"");
}
