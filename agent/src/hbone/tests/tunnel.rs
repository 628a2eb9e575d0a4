//! Tunnels over pipes: bytes, half-close, reset, loss, and who waits for whom.

use std::{
    future::poll_fn,
    hash::{DefaultHasher, Hasher},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::Response;
use tokio::time::{sleep, timeout};

use super::{LOCAL, NOTHING, PIPE, Pair, client, read_all, request};
use crate::hbone::{Loss, SEND_BUFFER, STREAM_WINDOW, TunnelError, TunnelReceiver, TunnelSender, link::Link};

async fn halves(pair: &mut Pair) -> ((TunnelSender, TunnelReceiver), (TunnelSender, TunnelReceiver)) {
    let (near, far) = pair.tunnel().await;
    (near.split(), far.split())
}

/// Sends without end; returns how much was taken before the tunnel blocked. The clock must be paused: time passes
/// only when nothing else can.
async fn send_until_blocked(sender: &mut TunnelSender) -> usize {
    let block = Bytes::from(vec![7; 32 * 1024]);
    let mut sent = 0;
    while let Ok(result) = timeout(Duration::from_secs(1), sender.send(block.clone())).await {
        result.expect("an open tunnel");
        sent += block.len();
    }
    sent
}

#[tokio::test]
async fn bytes_go_round_and_both_ends_close() {
    let mut pair = Pair::new().await;
    let ((mut sender, mut receiver), (mut far_sender, mut far_receiver)) = halves(&mut pair).await;
    sender.send(Bytes::from_static(b"question")).await.unwrap();
    sender.finish();
    assert_eq!(read_all(&mut far_receiver).await, b"question");
    far_sender.send(Bytes::from_static(b"answer")).await.unwrap();
    far_sender.finish();
    assert_eq!(read_all(&mut receiver).await, b"answer");
    assert!(receiver.recv().await.is_none(), "the end stays the end");
}

#[tokio::test]
async fn the_server_may_speak_first() {
    let mut pair = Pair::new().await;
    let ((sender, mut receiver), (mut far_sender, mut far_receiver)) = halves(&mut pair).await;
    far_sender.send(Bytes::from_static(b"220 ready")).await.unwrap();
    assert_eq!(receiver.recv().await.unwrap().unwrap(), "220 ready");
    sender.finish();
    assert_eq!(read_all(&mut far_receiver).await, b"");
}

#[tokio::test]
async fn a_client_that_has_half_closed_still_receives() {
    let mut pair = Pair::new().await;
    let ((sender, mut receiver), (mut far_sender, mut far_receiver)) = halves(&mut pair).await;
    sender.finish();
    assert_eq!(read_all(&mut far_receiver).await, b"");
    for _ in 0..100 {
        far_sender.send(Bytes::from(vec![1; 50_000])).await.unwrap();
        let mut received = 0;
        while received < 50_000 {
            received += receiver.recv().await.unwrap().unwrap().len();
        }
    }
    far_sender.finish();
    assert_eq!(read_all(&mut receiver).await, b"");
}

#[tokio::test]
async fn a_server_that_has_half_closed_still_receives() {
    let mut pair = Pair::new().await;
    let ((mut sender, mut receiver), (far_sender, mut far_receiver)) = halves(&mut pair).await;
    far_sender.finish();
    assert_eq!(read_all(&mut receiver).await, b"");
    sender.send(Bytes::from_static(b"late")).await.unwrap();
    sender.finish();
    assert_eq!(read_all(&mut far_receiver).await, b"late");
}

#[tokio::test]
async fn a_reset_reaches_the_other_end_as_a_reset() {
    for from_client in [true, false] {
        let mut pair = Pair::new().await;
        let (near, far) = halves(&mut pair).await;
        let ((sender, _kept), (mut far_sender, mut far_receiver)) =
            if from_client { (near, far) } else { (far, near) };
        sender.reset();
        let reset = TunnelError::Reset(h2::Reason::CANCEL);
        assert_eq!(far_receiver.recv().await, Some(Err(reset)));
        assert_eq!(far_receiver.recv().await, None);
        assert_eq!(far_sender.closed().await, reset);
        assert_eq!(far_sender.send(Bytes::from_static(b"x")).await, Err(reset));
    }
}

#[tokio::test]
async fn a_half_that_is_dropped_early_resets_the_tunnel() {
    for case in ["sender", "receiver", "receiver, the sender finished"] {
        for from_client in [true, false] {
            let mut pair = Pair::new().await;
            let (near, far) = halves(&mut pair).await;
            let ((sender, receiver), (mut far_sender, _far_receiver)) =
                if from_client { (near, far) } else { (far, near) };
            let _kept = match case {
                "sender" => {
                    drop(sender);
                    (None, Some(receiver))
                }
                "receiver" => {
                    drop(receiver);
                    (Some(sender), None)
                }
                _ => {
                    sender.finish();
                    drop(receiver);
                    (None, None)
                }
            };
            // RFC 9113 §8.1: what a server says that has answered in full and wants no more.
            let code = match (case, from_client) {
                ("receiver, the sender finished", false) => h2::Reason::NO_ERROR,
                _ => h2::Reason::CANCEL,
            };
            assert_eq!(far_sender.closed().await, TunnelError::Reset(code), "{case}, client {from_client}");
        }
    }
}

#[tokio::test]
async fn what_was_finished_before_a_reset_is_received_in_full_and_ends_well() {
    for from_client in [true, false] {
        let mut pair = Pair::new().await;
        let (near, far) = halves(&mut pair).await;
        let ((mut sender, receiver), (mut far_sender, mut far_receiver)) =
            if from_client { (near, far) } else { (far, near) };
        // Nothing of it has left when the receiver goes: more than the pipe holds, less than the window.
        sender.send(Bytes::from(vec![3; 400_000])).await.unwrap();
        let mut finished = sender.finish();
        // A server's reset waits for what is queued; a client has to.
        if from_client {
            finished.sent().await;
        }
        drop((finished, receiver));
        assert!(matches!(far_sender.closed().await, TunnelError::Reset(_)));
        let closed = timeout(Duration::ZERO, far_receiver.closed()).await;
        assert!(closed.is_err(), "nothing that whoever receives must know: {closed:?}");
        assert_eq!(read_all(&mut far_receiver).await.len(), 400_000, "client {from_client}");
        assert!(far_receiver.recv().await.is_none());
    }
}

#[tokio::test]
async fn a_reset_in_the_middle_is_told_to_whoever_waits_and_to_whoever_receives() {
    let mut pair = Pair::new().await;
    let ((mut sender, _receiver), (_far_sender, mut far_receiver)) = halves(&mut pair).await;
    sender.send(Bytes::from_static(b"half of it")).await.unwrap();
    // Received first: a reset discards what is underway.
    assert_eq!(far_receiver.recv().await.unwrap().unwrap(), "half of it");
    sender.reset();
    let reset = TunnelError::Reset(h2::Reason::CANCEL);
    assert_eq!(far_receiver.closed().await, reset);
    assert_eq!(far_receiver.closed().await, reset, "told as often as asked");
    assert_eq!(far_receiver.recv().await, Some(Err(reset)));
    assert_eq!(far_receiver.recv().await, None);
}

#[tokio::test]
async fn halves_dropped_after_a_clean_end_reset_nothing() {
    let mut pair = Pair::new().await;
    let ((mut sender, mut receiver), (far_sender, mut far_receiver)) = halves(&mut pair).await;
    sender.send(Bytes::from(vec![3; 200_000])).await.unwrap();
    sender.finish();
    far_sender.finish();
    assert_eq!(read_all(&mut receiver).await, b"");
    // The near end is gone altogether while its bytes are still underway.
    drop(receiver);
    assert_eq!(read_all(&mut far_receiver).await.len(), 200_000);
    assert_eq!(pair.link.tunnels(), 0);
}

#[tokio::test]
async fn a_tunnel_whose_connection_is_lost_never_ends_cleanly() {
    for kill_client in [true, false] {
        let mut pair = Pair::new().await;
        let (near, far) = halves(&mut pair).await;
        let ((mut sender, _receiver), (mut far_sender, mut far_receiver)) =
            if kill_client { (near, far) } else { (far, near) };
        sender.send(Bytes::from_static(b"half of it")).await.unwrap();
        assert_eq!(far_receiver.recv().await.unwrap().unwrap(), "half of it");
        if kill_client {
            pair.client.abort();
        } else {
            pair.server.abort();
        }
        let end = far_receiver.recv().await;
        assert!(matches!(end, Some(Err(TunnelError::Lost(_)))), "killed client {kill_client}: {end:?}");
        assert!(matches!(far_sender.closed().await, TunnelError::Lost(Loss::Io(_) | Loss::Closed)));
        assert!(far_sender.send(Bytes::from_static(b"x")).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn large_transfers_both_ways_at_once_arrive_unchanged() {
    const SIZE: usize = 64 << 20;
    let mut pair = Pair::new().await;
    let (near, far) = halves(&mut pair).await;
    let send = |mut sender: TunnelSender, seed: u64| async move {
        let (mut hash, mut sent, mut state) = (DefaultHasher::new(), 0, seed);
        while sent < SIZE {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let size = (1 + (state >> 40) as usize % 300_000).min(SIZE - sent);
            let block: Vec<u8> = (0..size).map(|i| (state >> (i % 57)) as u8).collect();
            hash.write(&block);
            sent += size;
            sender.send(block.into()).await.unwrap();
        }
        sender.finish();
        hash.finish()
    };
    let receive = |mut receiver: TunnelReceiver| async move {
        let (mut hash, mut received) = (DefaultHasher::new(), 0);
        while let Some(data) = receiver.recv().await {
            let data = data.unwrap();
            received += data.len();
            hash.write(&data);
        }
        assert_eq!(received, SIZE);
        hash.finish()
    };
    let (there, at_far, back, at_near) =
        tokio::join!(send(near.0, 1), receive(far.1), send(far.0, 2), receive(near.1));
    assert_eq!((there, back), (at_far, at_near));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_does_not_read_bounds_what_is_taken() {
    let mut pair = Pair::new().await;
    let ((mut sender, _receiver), (_far_sender, mut far_receiver)) = halves(&mut pair).await;
    let bound = STREAM_WINDOW as usize + SEND_BUFFER + PIPE;
    let sent = send_until_blocked(&mut sender).await;
    assert!(sent <= bound, "{sent} bytes were taken, more than {bound}");
    assert!(sent >= STREAM_WINDOW as usize / 2, "only {sent} bytes were taken: was the reader asked at all?");
    // What is taken from the stream but not dealt with counts still.
    let held = far_receiver.recv().await.unwrap().unwrap();
    assert_eq!(send_until_blocked(&mut sender).await, 0, "{} bytes were given back too early", held.len());
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_does_not_read_holds_up_no_neighbour() {
    let mut pair = Pair::new().await;
    let mut stuck = Vec::new();
    for _ in 0..99 {
        let mut tunnel = halves(&mut pair).await;
        let (near, far) = &mut tunnel;
        send_until_blocked(&mut near.0).await;
        send_until_blocked(&mut far.0).await;
        stuck.push(tunnel);
    }
    let ((mut sender, mut receiver), (mut far_sender, mut far_receiver)) = halves(&mut pair).await;
    for _ in 0..50 {
        sender.send(Bytes::from(vec![1; 100_000])).await.unwrap();
        far_sender.send(Bytes::from(vec![2; 100_000])).await.unwrap();
        for receiver in [&mut receiver, &mut far_receiver] {
            let mut received = 0;
            while received < 100_000 {
                received += receiver.recv().await.unwrap().unwrap().len();
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_send_that_is_given_up_keeps_no_room_from_others() {
    const WINDOW: usize = 65_535; // a connection's, where nobody says otherwise (RFC 9113 §6.9.2)
    let (near, far) = tokio::io::duplex(PIPE);
    let (read, mut reads) = tokio::sync::mpsc::channel::<()>(1);
    tokio::spawn(async move {
        let mut connection = h2::server::handshake(far).await.unwrap();
        let mut streams = Vec::new();
        loop {
            tokio::select! {
                request = connection.accept() => {
                    let (request, mut respond) = request.unwrap().unwrap();
                    streams.push((respond.send_response(Response::new(()), false).unwrap(), request));
                }
                Some(()) = reads.recv() => {
                    let control = streams[0].1.body_mut().flow_control();
                    control.release_capacity(control.used_capacity()).unwrap();
                }
            }
        }
    });
    let (requests, connection) = client::handshake(near).await.unwrap();
    tokio::spawn(connection);
    let link = Link::new();
    let open = async || {
        let tunnel = client::request(requests.clone(), link.lease(), (&request(LOCAL), NOTHING)).await;
        tunnel.unwrap().split()
    };
    let ((mut first, _a), (mut second, _b), (mut third, _c)) = (open().await, open().await, open().await);
    first.send(Bytes::from(vec![0; WINDOW])).await.unwrap();
    let mut given_up = Box::pin(second.send(Bytes::from(vec![1; WINDOW])));
    let waits = poll_fn(|cx| Poll::Ready(given_up.as_mut().poll(cx).is_pending())).await;
    assert!(waits, "the window of the connection is used up");
    // All of the first has arrived before it is read; then the room arrives, and nobody asks for it any more.
    sleep(Duration::from_secs(1)).await;
    read.send(()).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    drop(given_up);
    let sent = timeout(Duration::from_secs(1), third.send(Bytes::from(vec![2; WINDOW]))).await;
    sent.expect("room for another tunnel").unwrap();
}
