//! Peers that are silent, talk nonsense, or mean harm. None may make this side panic, wait for ever, or hold more than
//! its bounds.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Version};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::Instant,
};

use super::{LOCAL, NOTHING, PIPE, Pair, client, request};
use crate::hbone::{
    Loss, MAX_STREAMS, ServeError, TunnelError, client::RequestError, keepalive, link::Link, server::Http,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame as it is on the wire (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A server whose client writes raw bytes; returns how the connection ended.
async fn serve_bytes(feed: impl AsyncFnOnce(&mut DuplexStream)) -> Result<(), ServeError> {
    let (mut near, far) = duplex(PIPE);
    let server = tokio::spawn(async move {
        let mut http = Http::handshake(far, "10.0.0.7".parse().unwrap()).await?;
        let mut held = Vec::new();
        while let Some(incoming) = http.next().await {
            held.push(incoming?);
            assert!(held.len() < 10_000, "the server hands out without bound");
        }
        Ok(())
    });
    feed(&mut near).await;
    // What the server says must be read, or it could not say more.
    let (mut reader, writer) = tokio::io::split(near);
    let sink = tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
    drop(writer);
    let end = server.await.expect("no panic");
    let _ = sink.await;
    end
}

#[tokio::test(start_paused = true)]
async fn garbage_ends_the_connection_and_nothing_else() {
    let mut state = 1u64;
    let mut noise = |size: usize| -> Vec<u8> {
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u8
        };
        (0..size).map(|_| next()).collect()
    };
    for round in 0..200 {
        let mut bytes = if round % 4 == 0 { Vec::new() } else { PREFACE.to_vec() };
        if round % 4 > 1 {
            bytes.extend(frame(4, 0, 0, &[]));
        }
        if round % 4 > 2 {
            // Well-formed frames of every kind, with nonsense inside.
            for _ in 0..20 {
                let head = noise(4);
                let payload = noise(usize::from(head[0]));
                bytes.extend(frame(head[1] % 11, head[2], u32::from(head[3] % 6), &payload));
            }
        }
        bytes.extend(noise(500));
        let _ = serve_bytes(async |client| {
            let _ = client.write_all(&bytes).await;
            let _ = client.shutdown().await;
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_with_headers_beyond_the_bound_is_not_handed_out() {
    let mut pair = Pair::new().await;
    let mut requests = pair.requests.clone().ready().await.unwrap();
    let mut request = Request::builder().method(Method::CONNECT).uri(LOCAL).version(Version::HTTP_2);
    for number in 0..100 {
        request = request.header(format!("x-{number}"), "v".repeat(1000));
    }
    let (response, _stream) = requests.send_request(request.body(()).unwrap(), false).unwrap();
    let answer = response.await;
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == 431));
    assert!(pair.incoming.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn endless_headers_end_the_connection() {
    let end = serve_bytes(async |client| {
        client.write_all(PREFACE).await.unwrap();
        client.write_all(&frame(4, 0, 0, &[])).await.unwrap();
        // HEADERS and CONTINUATION without END_HEADERS: literal fields, for ever.
        let mut field = vec![0x00, 0x01, b'a', 0x7f, 0x81, 0x07];
        field.extend(vec![b'v'; 1024]);
        let block = field.repeat(10);
        let mut write = client.write_all(&frame(1, 0, 1, &block)).await;
        for _ in 0..10_000 {
            if write.is_err() {
                return;
            }
            write = client.write_all(&frame(9, 0, 1, &block)).await;
        }
        panic!("the server reads headers without end");
    })
    .await;
    assert!(matches!(end, Err(ServeError::Protocol(_))), "{end:?}");
}

#[tokio::test(start_paused = true)]
async fn rapid_resets_make_no_more_work_than_the_bound() {
    let (near, far) = duplex(PIPE);
    let server = tokio::spawn(async move {
        let mut http = Http::handshake(far, "10.0.0.7".parse().unwrap()).await?;
        let mut held = Vec::new();
        // As an agent that is slow to deal with each: what is held is its work.
        while let Some(incoming) = http.next().await {
            match incoming {
                Ok(incoming) => held.push(incoming),
                Err(error) => return Ok::<_, ServeError>((held.len(), Some(error))),
            }
        }
        Ok((held.len(), None))
    });
    let (requests, connection) = h2::client::handshake(near).await.unwrap();
    let driver = tokio::spawn(connection);
    for _ in 0..5000 {
        let Ok(mut ready) = requests.clone().ready().await else { break };
        let request = Request::builder().method(Method::CONNECT).uri(LOCAL).version(Version::HTTP_2);
        let Ok((_response, mut stream)) = ready.send_request(request.body(()).unwrap(), false) else { break };
        // Let the server see the request before the reset.
        tokio::task::yield_now().await;
        stream.send_reset(h2::Reason::CANCEL);
    }
    drop(requests);
    let _ = driver.await;
    let (held, _error) = server.await.unwrap().unwrap();
    assert!(held <= 2 * MAX_STREAMS as usize, "{held} requests were worked on at once");
    assert!(held > 0, "no request arrived at all");
}

#[tokio::test(start_paused = true)]
async fn many_requests_given_up_at_once_cost_no_other_tunnel() {
    let (near, far) = duplex(PIPE);
    let (requests, connection) = client::handshake(near).await.unwrap();
    tokio::spawn(connection);
    let mut http = Http::handshake(far, "10.0.0.7".parse().unwrap()).await.unwrap();
    let link = Link::new();
    let ask = |link: &std::sync::Arc<Link>| {
        let (requests, lease) = (requests.clone(), link.lease());
        tokio::spawn(async move { client::request(requests, lease, (&request(LOCAL), NOTHING)).await })
    };
    let asking = ask(&link);
    let (_sender, mut receiver) = http.next().await.unwrap().unwrap().accept().unwrap().split();
    // The server does not look while these come and go.
    let hasty: Vec<_> = (0..99).map(|_| ask(&link)).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    hasty.iter().for_each(tokio::task::JoinHandle::abort);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let server = tokio::spawn(async move {
        let mut given_up = 0;
        while let Some(Ok(incoming)) = http.next().await {
            given_up += usize::from(incoming.accept().is_err());
        }
        given_up
    });
    let (mut sender, near_receiver) = asking.await.unwrap().unwrap().split();
    sender.send(Bytes::from_static(b"unharmed")).await.unwrap();
    assert_eq!(receiver.recv().await.unwrap().unwrap(), "unharmed");
    drop((sender, near_receiver, receiver, _sender, requests));
    assert!(server.await.unwrap() > 20, "the requests were not given up before the server saw them");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_falls_silent_is_lost_after_a_ping() {
    let (mut near, far) = duplex(PIPE);
    near.write_all(PREFACE).await.unwrap();
    near.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    let mut http = Http::handshake(far, "10.0.0.7".parse().unwrap()).await.unwrap();
    let start = Instant::now();
    assert!(matches!(http.next().await, Some(Err(ServeError::Silent(_)))));
    assert_eq!(start.elapsed().as_secs(), (keepalive::INTERVAL + keepalive::ANSWER).as_secs());
    assert!(http.next().await.is_none());
    drop(near);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stops_reading_is_lost_however_much_waits_for_it() {
    let (near, far) = duplex(PIPE);
    let (requests, connection) =
        h2::client::Builder::new().initial_window_size(1 << 20).handshake::<_, Bytes>(near).await.unwrap();
    let mut connection = Box::pin(connection);
    let mut http = Http::handshake(far, "10.0.0.7".parse().unwrap()).await.unwrap();
    let mut ready = requests.ready().await.unwrap();
    let request = Request::builder().method(Method::CONNECT).uri(LOCAL).version(Version::HTTP_2);
    let (_response, _stream) = ready.send_request(request.body(()).unwrap(), false).unwrap();
    let incoming = tokio::select! {
        incoming = http.next() => incoming.unwrap().unwrap(),
        _ = &mut connection => panic!("the connection ended"),
    };
    let (mut sender, _receiver) = incoming.accept().unwrap().split();
    let sending = tokio::spawn(async move {
        loop {
            if let Err(error) = sender.send(Bytes::from_static(&[1; 10_000])).await {
                return error;
            }
        }
    });
    assert!(matches!(http.next().await, Some(Err(ServeError::Silent(_)))));
    assert_eq!(sending.await.unwrap(), TunnelError::Lost(Loss::Silent));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_pings_stays() {
    let mut pair = Pair::new().await;
    let (mut near, far) = {
        let (near, far) = pair.tunnel().await;
        (near.split(), far.split())
    };
    tokio::time::sleep(Duration::from_secs(3600)).await;
    near.0.send(Bytes::from_static(b"still here")).await.unwrap();
    let (_sender, mut receiver) = far;
    assert_eq!(receiver.recv().await.unwrap().unwrap(), "still here");
}

#[tokio::test(start_paused = true)]
async fn tunnels_of_a_silent_client_are_told_why_they_end() {
    let (near, far) = duplex(PIPE);
    let (requests, connection) = h2::client::handshake(near).await.unwrap();
    let mut connection = Box::pin(connection);
    let mut http = Http::handshake(far, "10.0.0.7".parse().unwrap()).await.unwrap();
    let mut ready = requests.ready().await.unwrap();
    let request = Request::builder().method(Method::CONNECT).uri(LOCAL).version(Version::HTTP_2);
    let (response, _stream) = ready.send_request(request.body(()).unwrap(), false).unwrap();
    let incoming = tokio::select! {
        incoming = http.next() => incoming.unwrap().unwrap(),
        _ = &mut connection => panic!("the connection ended"),
    };
    // From here on nobody drives the client.
    let (_sender, mut receiver) = incoming.accept().unwrap().split();
    assert!(matches!(http.next().await, Some(Err(ServeError::Silent(_)))));
    assert_eq!(receiver.recv().await, Some(Err(TunnelError::Lost(Loss::Silent))));
    drop(response);
}

#[tokio::test]
async fn a_server_that_talks_nonsense_is_an_error_to_the_client() {
    let answers = [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        &frame(4, 0, 0, &[]),
        &[0xff; 100],
        // A push, although push is off (RFC 9113 §8.4).
        &[frame(4, 0, 0, &[]), frame(5, 4, 1, &[0, 0, 0, 2, 0x82])].concat(),
        // An answer without a status.
        &[frame(4, 0, 0, &[]), frame(1, 4, 1, &[0x82])].concat(),
    ];
    for (case, answer) in answers.into_iter().enumerate() {
        let (near, mut far) = duplex(PIPE);
        let (requests, connection) = client::handshake(near).await.unwrap();
        tokio::spawn(connection);
        let answering = async {
            let mut seen = [0; 64];
            let _ = far.read(&mut seen).await;
            far.write_all(answer).await.unwrap();
            far.shutdown().await.unwrap();
            let _ = tokio::io::copy(&mut far, &mut tokio::io::sink()).await;
        };
        let asked = request(LOCAL);
        let asking = client::request(requests, Link::new().lease(), (&asked, NOTHING));
        let (outcome, ()) = tokio::join!(asking, answering);
        assert!(
            matches!(outcome, Err(RequestError::Failed(_) | RequestError::Unprocessed(_))),
            "case {case}: {outcome:?}"
        );
    }
}
