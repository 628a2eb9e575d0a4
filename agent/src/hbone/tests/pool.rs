//! The pool over loopback with real TLS: sharing, bounds, retirement, retries, and what is left afterwards.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use tokio::{
    net::TcpStream,
    sync::{Notify, oneshot},
    task::JoinSet,
};

use super::{Agent, Authority, Source, converse, echo, request, until};
use crate::{
    hbone::{
        ConnectError, Loss, Pool, PoolConfig, PoolStats, STREAMS_PER_CONNECTION, ServerConnection, Stage,
        Tunnel, TunnelError,
    },
    mesh::Reason,
};

const FULL: usize = STREAMS_PER_CONNECTION as usize;

async fn server(authority: &Authority) -> Agent {
    Agent::start(authority.svid("server").await, echo).await
}

async fn nothing_is_left(pool: &Pool) {
    until("an empty pool", || pool.stats() == PoolStats::default()).await;
}

async fn connect_many(source: &Source, agent: &Agent, count: usize) -> Vec<Tunnel> {
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        tasks.spawn(source.connect(agent.address));
    }
    tasks.join_all().await.into_iter().map(|tunnel| tunnel.expect("a tunnel")).collect()
}

#[tokio::test]
async fn tunnels_of_one_key_share_a_connection() {
    let authority = Authority::new();
    let agent = server(&authority).await;
    let source = Source::new(&authority, PoolConfig::default()).await;
    for tunnel in connect_many(&source, &agent, FULL).await {
        converse(tunnel, "shared").await;
    }
    for _ in 0..FULL {
        converse(source.connect(agent.address).await.unwrap(), "one after another").await;
    }
    assert_eq!((agent.connections(), source.dials()), (1, 1));
    let stats = source.pool.stats();
    assert_eq!((stats.connections, stats.opening, stats.tasks), (1, 0, 1));
}

#[tokio::test]
async fn the_101st_tunnel_opens_a_second_connection() {
    let authority = Authority::new();
    let agent = server(&authority).await;
    let source = Source::new(&authority, PoolConfig::default()).await;
    let mut tunnels = connect_many(&source, &agent, FULL).await;
    assert_eq!(source.dials(), 1);
    tunnels.push(source.connect(agent.address).await.unwrap());
    assert_eq!(source.dials(), 2);
    assert_eq!(source.pool.stats().streams, FULL + 1);
    for tunnel in tunnels {
        converse(tunnel, "both carry").await;
    }
    until("tunnels counted down", || source.pool.stats().streams == 0).await;
}

#[tokio::test]
async fn any_difference_in_the_key_is_another_connection() {
    let authority = Authority::new();
    let agent = server(&authority).await;
    let source = Source::new(&authority, PoolConfig::default()).await;
    let key = source.key(agent.address);
    let mut other_pod = key.clone();
    other_pod.source_workload = "another-uid".into();
    let mut other_address = key.clone();
    other_address.source = "10.0.0.2".parse().unwrap();
    for key in [key, other_pod, other_address] {
        converse(source.connect_as(key).await.unwrap(), "hello").await;
    }
    assert_eq!(agent.connections(), 3);
}

#[tokio::test]
async fn a_refusal_by_status_says_who_refused() {
    let authority = Authority::new();
    for (status, reason) in [
        (StatusCode::UNAUTHORIZED, Reason::PeerDenied),
        (StatusCode::SERVICE_UNAVAILABLE, Reason::PeerUnavailable),
        (StatusCode::BAD_REQUEST, Reason::Protocol),
    ] {
        let refuse = move |mut connection: ServerConnection| async move {
            while let Some(Ok(incoming)) = connection.next().await {
                incoming.refuse(status);
            }
        };
        let agent = Agent::start(authority.svid("server").await, refuse).await;
        let source = Source::new(&authority, PoolConfig::default()).await;
        for _ in 0..2 {
            let error = source.connect(agent.address).await.unwrap_err();
            assert_eq!(error.reason(), reason, "{error}");
            assert!(error.to_string().contains(&agent.address.to_string()), "{error}");
        }
        assert_eq!(source.dials(), 1, "a refusal is no reason for another connection");
    }
}

#[tokio::test]
async fn a_failure_to_dial_is_shared_and_does_not_last() {
    let authority = Authority::new();
    let agent = server(&authority).await;
    let source = Source::new(&authority, PoolConfig::default()).await;
    let attempts = Arc::new(AtomicUsize::new(0));
    let go = Arc::new(Notify::new());
    let mut callers = JoinSet::new();
    for _ in 0..10 {
        let (pool, svid, key) = (source.pool.clone(), source.svid.clone(), source.key(agent.address));
        let (attempts, go) = (attempts.clone(), go.clone());
        callers.spawn(async move {
            let dial = || async move {
                attempts.fetch_add(1, Ordering::SeqCst);
                go.notified().await;
                Err::<TcpStream, _>(io::ErrorKind::ConnectionRefused.into())
            };
            pool.connect(key, svid, dial, (request("127.0.0.1:80"), &mut ())).await
        });
    }
    until("an attempt", || attempts.load(Ordering::SeqCst) == 1).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    go.notify_one();
    for outcome in callers.join_all().await {
        assert_eq!(outcome.unwrap_err().reason(), Reason::DialFailed);
    }
    assert_eq!(attempts.load(Ordering::SeqCst), 1);
    converse(source.connect(agent.address).await.unwrap(), "well again").await;
}

#[tokio::test]
async fn an_opener_that_is_cancelled_strands_nobody() {
    let authority = Authority::new();
    let agent = server(&authority).await;
    let source = Source::new(&authority, PoolConfig::default()).await;
    let (pool, svid, key) = (source.pool.clone(), source.svid.clone(), source.key(agent.address));
    let opener = tokio::spawn(async move {
        let never = || std::future::pending::<io::Result<TcpStream>>();
        let _ = pool.connect(key, svid, never, (request("127.0.0.1:80"), &mut ())).await;
    });
    until("an attempt", || source.pool.stats().opening == 1).await;
    let waiters: Vec<_> = (0..5).map(|_| tokio::spawn(source.connect(agent.address))).collect();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(source.dials(), 0, "one attempt at a time");
    opener.abort();
    for waiter in waiters {
        converse(waiter.await.unwrap().unwrap(), "not stranded").await;
    }
    assert_eq!(source.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_does_not_wait_for_ever_for_the_attempts_of_others() {
    let authority = Authority::new();
    let source = Source::new(&authority, PoolConfig::default()).await;
    let peer = "127.0.0.1:9".parse().unwrap();
    let (pool, svid, key) = (source.pool.clone(), source.svid.clone(), source.key(peer));
    tokio::spawn(async move {
        let never = || std::future::pending::<io::Result<TcpStream>>();
        let error = pool.connect(key, svid, never, (request("127.0.0.1:80"), &mut ())).await.unwrap_err();
        assert!(matches!(error, ConnectError::Timeout { stage: Stage::Handshake, .. }), "{error}");
    });
    until("an attempt", || source.pool.stats().opening == 1).await;
    let error = source.connect(peer).await.unwrap_err();
    assert_eq!(error.reason(), Reason::Timeout);
    nothing_is_left(&source.pool).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_answer_connect_is_given_up() {
    let authority = Authority::new();
    let agent = Agent::start(authority.svid("server").await, |mut connection| async move {
        let mut held = Vec::new();
        while let Some(Ok(incoming)) = connection.next().await {
            held.push(incoming);
        }
    })
    .await;
    let source = Source::new(&authority, PoolConfig::default()).await;
    let error = source.connect(agent.address).await.unwrap_err();
    assert!(matches!(error, ConnectError::Timeout { stage: Stage::Reply, .. }), "{error}");
    assert_eq!(source.pool.stats().streams, 0);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_falls_silent_is_lost_and_its_tunnels_end() {
    let authority = Authority::new();
    let agent = Agent::start(authority.svid("server").await, |mut connection| async move {
        let _tunnel = connection.next().await.unwrap().unwrap().accept().unwrap();
        // The 200 leaves, and then nobody drives the connection.
        let _ = tokio::time::timeout(Duration::from_millis(100), connection.next()).await;
        std::future::pending::<()>().await;
    })
    .await;
    let source = Source::new(&authority, PoolConfig::default()).await;
    let (_sender, mut receiver) = source.connect(agent.address).await.unwrap().split();
    assert_eq!(receiver.recv().await, Some(Err(TunnelError::Lost(Loss::Silent))));
    nothing_is_left(&source.pool).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_closed_when_it_has_been_unused_for_long() {
    let authority = Authority::new();
    let agent = server(&authority).await;
    let source = Source::new(&authority, PoolConfig::default()).await;
    let tunnel = source.connect(agent.address).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(source.pool.stats().connections, 1, "a connection with an idle tunnel is used");
    drop(tunnel);
    tokio::time::sleep(Duration::from_secs(295)).await;
    assert_eq!(source.pool.stats().connections, 1);
    converse(source.connect(agent.address).await.unwrap(), "used again").await;
    tokio::time::sleep(Duration::from_secs(295)).await;
    assert_eq!(source.pool.stats().connections, 1);
    tokio::time::sleep(Duration::from_secs(10)).await;
    nothing_is_left(&source.pool).await;
    assert_eq!(source.dials(), 1);
}

#[tokio::test]
async fn a_renewed_certificate_moves_new_tunnels_and_leaves_old_ones() {
    let authority = Authority::new();
    let agent = server(&authority).await;
    let mut source = Source::new(&authority, PoolConfig::default()).await;
    let old = source.connect(agent.address).await.unwrap();
    source.svid = authority.svid("client").await;
    let new = source.connect(agent.address).await.unwrap();
    assert_eq!(source.dials(), 2);
    assert_eq!(source.pool.stats().connections, 2);
    converse(old, "to its end").await;
    converse(new, "on another connection").await;
    until("the old connection's end", || source.pool.stats().connections == 1).await;
    converse(source.connect(agent.address).await.unwrap(), "and no third").await;
    assert_eq!(source.dials(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn goaway_moves_new_tunnels_and_leaves_old_ones() {
    let authority = Authority::new();
    let shut = Arc::new(Notify::new());
    let trigger = shut.clone();
    let agent = Agent::start(authority.svid("server").await, move |mut connection| {
        let shut = shut.clone();
        async move {
            let mut stopping = std::pin::pin!(shut.notified());
            let mut stopped = false;
            loop {
                tokio::select! {
                    () = &mut stopping, if !stopped => {
                        stopped = true;
                        connection.graceful_shutdown();
                    }
                    incoming = connection.next() => match incoming {
                        Some(Ok(incoming)) => {
                            tokio::spawn(super::echo_tunnel(incoming.accept().unwrap()));
                        }
                        _ => return,
                    }
                }
            }
        }
    })
    .await;
    let source = Source::new(&authority, PoolConfig::default()).await;
    let old = source.connect(agent.address).await.unwrap();
    trigger.notify_one();
    // Without a pause: whether GOAWAY arrives before, while or after the requests leave, none of them fails.
    let mut new = connect_many(&source, &agent, 50).await;
    while agent.connections() < 2 {
        new.push(source.connect(agent.address).await.unwrap());
        assert!(new.len() < 99, "GOAWAY has no effect");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for tunnel in new {
        converse(tunnel, "not one is lost").await;
    }
    converse(old, "to its end").await;
    until("the old connection's end", || source.pool.stats().connections == 1).await;
}

#[tokio::test]
async fn a_stream_that_the_peer_refused_unprocessed_is_sent_once_more() {
    let authority = Authority::new();
    for (refusals, expected) in [(1, true), (2, false)] {
        let left = Arc::new(AtomicUsize::new(refusals));
        let agent = Agent::listen({
            let (left, svid) = (left.clone(), authority.svid("server").await);
            move |tcp| {
                let (left, svid) = (left.clone(), svid.clone());
                async move {
                    let tls =
                        tokio_rustls::TlsAcceptor::from(svid.server_config()).accept(tcp).await.unwrap();
                    let mut connection = h2::server::handshake(tls).await.unwrap();
                    let mut held = Vec::new();
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        if held.len() == 1 && left.load(Ordering::SeqCst) > 0
                            || held.is_empty() && refusals == 2
                        {
                            left.fetch_sub(1, Ordering::SeqCst);
                            respond.send_reset(h2::Reason::REFUSED_STREAM);
                        } else {
                            let answer = http::Response::new(());
                            held.push((respond.send_response(answer, false).unwrap(), request));
                        }
                    }
                }
            }
        })
        .await;
        let source = Source::new(&authority, PoolConfig::default()).await;
        if expected {
            let _first = source.connect(agent.address).await.unwrap();
            let _second = source.connect(agent.address).await.unwrap();
            assert_eq!(left.load(Ordering::SeqCst), 0);
            assert_eq!(source.dials(), 2);
        } else {
            let error = source.connect(agent.address).await.unwrap_err();
            assert!(matches!(error, ConnectError::Reset { .. }), "{error}");
            assert_eq!(source.dials(), 1, "what one call may dial");
        }
    }
}

#[tokio::test]
async fn a_connect_that_may_have_been_processed_is_not_sent_again() {
    let authority = Authority::new();
    let requests = Arc::new(AtomicUsize::new(0));
    let dies = Arc::new(AtomicBool::new(false));
    let agent = Agent::start(authority.svid("server").await, {
        let (requests, dies) = (requests.clone(), dies.clone());
        move |mut connection| {
            let (requests, dies) = (requests.clone(), dies.clone());
            async move {
                while let Some(Ok(incoming)) = connection.next().await {
                    requests.fetch_add(1, Ordering::SeqCst);
                    if dies.load(Ordering::SeqCst) {
                        return;
                    }
                    tokio::spawn(super::echo_tunnel(incoming.accept().unwrap()));
                }
            }
        }
    })
    .await;
    let source = Source::new(&authority, PoolConfig::default()).await;
    converse(source.connect(agent.address).await.unwrap(), "pooled").await;
    dies.store(true, Ordering::SeqCst);
    let error = source.connect(agent.address).await.unwrap_err();
    assert_eq!(error.reason(), Reason::TunnelLost, "{error}");
    assert_eq!(requests.load(Ordering::SeqCst), 2);
    dies.store(false, Ordering::SeqCst);
    converse(source.connect(agent.address).await.unwrap(), "a new connection").await;
}

#[tokio::test]
async fn a_pod_that_leaves_takes_its_tunnels_and_attempts_with_it() {
    let authority = Authority::new();
    let agent = server(&authority).await;
    let source = Source::new(&authority, PoolConfig::default()).await;
    let mut stays = source.key(agent.address);
    stays.source_workload = "another-uid".into();
    let staying = source.connect_as(stays).await.unwrap();
    let (mut sender, mut receiver) = source.connect(agent.address).await.unwrap().split();
    let (pool, svid) = (source.pool.clone(), source.svid.clone());
    let (started, begun) = oneshot::channel();
    let key = source.key("127.0.0.1:9".parse().unwrap());
    let attempt = tokio::spawn(async move {
        let never = || {
            let _ = started.send(());
            std::future::pending::<io::Result<TcpStream>>()
        };
        pool.connect(key, svid, never, (request("127.0.0.1:80"), &mut ())).await
    });
    begun.await.unwrap();

    source.pool.drop_source("client-uid");
    let gone = TunnelError::Lost(Loss::PodGone);
    assert_eq!(receiver.recv().await, Some(Err(gone)));
    assert_eq!(sender.closed().await, gone);
    assert_eq!(sender.send(Bytes::from_static(b"x")).await, Err(gone));
    assert_eq!(attempt.await.unwrap().unwrap_err().reason(), Reason::PodGone);
    converse(staying, "another pod").await;
    until("one connection", || source.pool.stats().tasks == 1).await;
    assert_eq!(source.pool.stats(), PoolStats { connections: 1, tasks: 1, ..PoolStats::default() });
}

#[tokio::test]
async fn an_address_that_changes_hands_loses_its_old_tunnels() {
    let authority = Authority::new();
    let agent = server(&authority).await;
    let source = Source::new(&authority, PoolConfig::default()).await;
    let (_sender, mut receiver) = source.connect(agent.address).await.unwrap().split();
    source.pool.retain_peers(|key| key.peer == agent.address && &*key.peer_workload == "server-uid");
    assert_eq!(source.pool.stats().connections, 1);
    source.pool.retain_peers(|key| &*key.peer_workload == "successor-uid");
    assert_eq!(receiver.recv().await, Some(Err(TunnelError::Lost(Loss::PeerGone))));
    nothing_is_left(&source.pool).await;
}

#[tokio::test]
async fn draining_waits_for_tunnels_and_still_opens_some() {
    let authority = Authority::new();
    let agent = server(&authority).await;
    let source = Source::new(&authority, PoolConfig::default()).await;
    let tunnel = source.connect(agent.address).await.unwrap();
    let pool = source.pool.clone();
    let drained = tokio::spawn(async move { pool.drain().await });
    tokio::task::yield_now().await;
    converse(source.connect(agent.address).await.unwrap(), "accepted before").await;
    assert!(!drained.is_finished());
    converse(tunnel, "to its end").await;
    drained.await.unwrap();
    assert_eq!(source.pool.stats(), PoolStats::default());
}

#[tokio::test]
async fn draining_waits_for_an_attempt_too() {
    let authority = Authority::new();
    let agent = server(&authority).await;
    let source = Source::new(&authority, PoolConfig::default()).await;
    let (pool, svid, key, peer) =
        (source.pool.clone(), source.svid.clone(), source.key(agent.address), agent.address);
    let (go, wait) = oneshot::channel::<()>();
    let connecting = tokio::spawn(async move {
        let dial = || async move {
            let _ = wait.await;
            TcpStream::connect(peer).await
        };
        pool.connect(key, svid, dial, (request("127.0.0.1:80"), &mut ())).await
    });
    until("an attempt", || source.pool.stats().opening == 1).await;
    let pool = source.pool.clone();
    let drained = tokio::spawn(async move { pool.drain().await });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!drained.is_finished(), "a caller still waits for its connection");
    go.send(()).unwrap();
    converse(connecting.await.unwrap().unwrap(), "in time").await;
    drained.await.unwrap();
}

#[tokio::test]
async fn an_aborted_pool_ends_everything_and_opens_nothing() {
    let authority = Authority::new();
    let agent = server(&authority).await;
    let source = Source::new(&authority, PoolConfig::default()).await;
    let (_sender, mut receiver) = source.connect(agent.address).await.unwrap().split();
    source.pool.abort();
    assert_eq!(receiver.recv().await, Some(Err(TunnelError::Lost(Loss::Shutdown))));
    assert_eq!(source.connect(agent.address).await.unwrap_err().reason(), Reason::Shutdown);
    nothing_is_left(&source.pool).await;
}

#[tokio::test]
async fn beyond_its_bounds_the_pool_closes_what_is_unused_and_then_refuses() {
    let authority = Authority::new();
    let (first, second, third) =
        (server(&authority).await, server(&authority).await, server(&authority).await);
    let config = PoolConfig { max_connections: 2, max_connections_per_key: 1, ..PoolConfig::default() };
    let source = Source::new(&authority, config).await;
    let held = connect_many(&source, &first, FULL).await;
    let error = source.connect(first.address).await.unwrap_err();
    assert!(matches!(error, ConnectError::Overload { limit: 1, .. }), "{error}");

    converse(source.connect(second.address).await.unwrap(), "and then unused").await;
    until("no tunnel to the second", || source.pool.stats().streams == FULL).await;
    let kept = source.connect(third.address).await.unwrap();
    let error = source.connect(second.address).await.unwrap_err();
    assert!(matches!(error, ConnectError::Overload { limit: 2, .. }), "{error}");
    converse(kept, "carried").await;
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_short_tunnels_leave_nothing() {
    let authority = Authority::new();
    let agent = server(&authority).await;
    let source = Source::new(&authority, PoolConfig::default()).await;
    for _ in 0..20 {
        let mut tasks = JoinSet::new();
        for number in 0..250 {
            let connecting = source.connect(agent.address);
            tasks.spawn(async move {
                let tunnel = connecting.await.unwrap();
                match number % 3 {
                    0 => converse(tunnel, "short").await,
                    1 => drop(tunnel),
                    _ => tunnel.split().0.reset(),
                }
            });
        }
        tasks.join_all().await;
    }
    until("no tunnels", || source.pool.stats().streams == 0).await;
    assert!(source.dials() < 10, "{} connections for 5000 tunnels", source.dials());
    source.pool.drain().await;
    assert_eq!(source.pool.stats(), PoolStats::default());
}
