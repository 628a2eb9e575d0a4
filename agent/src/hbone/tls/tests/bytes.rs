//! What is written is what is read, however it is cut on the way.

use std::{
    io::IoSlice,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf, duplex};
use tokio_rustls::TlsStream as Peer;

use super::{Mesh, ROLES, socket::Trickle};

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

/// Writes everything in pieces of random sizes, some of them in several slices, and closes.
async fn write<W: AsyncWrite + Unpin>(mut writer: W, all: &[u8], seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut left = all;
    while !left.is_empty() {
        let piece = &left[..left.len().min(random.random_range(1..100_000))];
        let (head, tail) = piece.split_at(piece.len().min(random.random_range(0..300)));
        let written = match random.random() {
            true => writer.write(piece).await.unwrap(),
            false => {
                let slices = [IoSlice::new(head), IoSlice::new(&[]), IoSlice::new(tail)];
                writer.write_vectored(&slices).await.unwrap()
            }
        };
        assert!(written > 0);
        left = &left[written..];
        if random.random_ratio(1, 4) {
            writer.flush().await.unwrap();
        }
    }
    writer.shutdown().await.unwrap();
}

/// Reads to the end, into buffers of random sizes.
async fn read<R: AsyncRead + Unpin>(mut reader: R, seed: u64) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut all = Vec::new();
    let mut buffer = vec![0; 100_000];
    loop {
        let size = match random.random_ratio(1, 2) {
            true => random.random_range(1..20),
            false => random.random_range(1..buffer.len()),
        };
        match reader.read(&mut buffer[..size]).await.unwrap() {
            0 => return all,
            len => all.extend_from_slice(&buffer[..len]),
        }
    }
}

/// Both ends write and read at the same time.
async fn exchange(
    ours: impl AsyncRead + AsyncWrite + Unpin,
    theirs: impl AsyncRead + AsyncWrite + Unpin,
    len: usize,
    seed: u64,
) {
    let (there, back) = (pattern(len, seed), pattern(len, seed + 1));
    let (our_reader, our_writer) = tokio::io::split(ours);
    let (their_reader, their_writer) = tokio::io::split(theirs);
    let (arrived_here, arrived_there, (), ()) = tokio::join!(
        read(our_reader, seed + 2),
        read(their_reader, seed + 3),
        write(our_writer, &there, seed + 4),
        write(their_writer, &back, seed + 5),
    );
    assert!(arrived_there == there, "seed {seed}: what we wrote arrived otherwise");
    assert!(arrived_here == back, "seed {seed}: what the peer wrote arrived otherwise");
}

#[tokio::test]
async fn bytes_of_random_sizes_go_both_ways_at_once_over_loopback() {
    let mesh = Mesh::new().await;
    for (role, seed) in ROLES.into_iter().zip([1, 100]) {
        let (ours, theirs) = mesh.over_loopback(role).await;
        exchange(ours, theirs, 4_000_000, seed).await;
    }
}

#[tokio::test]
async fn bytes_of_random_sizes_go_both_ways_at_once_over_narrow_pipes() {
    let mesh = Mesh::new().await;
    for role in ROLES {
        for (size, seed) in [(37, 200), (5_000, 300), (70_000, 400), (1_000_000, 500)] {
            let (ours, theirs) = mesh.over_pipe(role, size).await;
            exchange(ours, theirs, (size * 10).clamp(100_000, 2_000_000), seed).await;
        }
    }
}

#[tokio::test]
async fn a_socket_that_takes_and_gives_one_byte_carries_a_handshake_and_what_follows() {
    let mesh = Mesh::new().await;
    for role in ROLES {
        let (near, far) = duplex(10_000);
        let (ours, theirs) = mesh.join(role, Trickle(near), far).await;
        exchange(ours, theirs, 20_000, 600).await;
    }
}

#[tokio::test]
async fn two_of_ours_understand_each_other() {
    let mesh = Mesh::new().await;
    for size in [100, 1_000_000] {
        let (near, far) = duplex(size);
        let name = "192.0.2.1".try_into().unwrap();
        let config = mesh.client.client_config(&super::identity("server"));
        let (ours, theirs) =
            tokio::join!(super::connect(config, name, near), super::accept(mesh.server.server_config(), far));
        exchange(ours.unwrap(), theirs.unwrap(), 500_000, 700).await;
    }
}

#[tokio::test]
async fn a_record_that_arrives_byte_by_byte_is_read_while_others_are_written() {
    let mesh = Mesh::new().await;
    for role in ROLES {
        // Between the peer's pipe and ours there is the test.
        let (near, middle_near) = duplex(1_000_000);
        let (middle_far, far) = duplex(1_000_000);
        let relay = async move {
            let (mut near_reader, mut near_writer) = tokio::io::split(middle_near);
            let (mut far_reader, mut far_writer) = tokio::io::split(middle_far);
            let there = tokio::io::copy(&mut near_reader, &mut far_writer);
            let back = async {
                while let Ok(byte) = far_reader.read_u8().await {
                    near_writer.write_u8(byte).await.unwrap();
                    // Lets the readers look at it.
                    tokio::task::yield_now().await;
                }
            };
            let _ = tokio::join!(there, back);
        };
        let relay = tokio::spawn(relay);
        let (mut ours, mut theirs) = mesh.join(role, near, far).await;
        let message = pattern(3000, 800);
        theirs.write_all(&message).await.unwrap();
        theirs.flush().await.unwrap();
        let (mut arrived, mut written) = (Vec::new(), 0);
        while arrived.len() < message.len() {
            // A write while a part of a record has arrived: every step of the way.
            tokio::select! {
                biased;
                byte = ours.read_u8() => arrived.push(byte.unwrap()),
                () = tokio::task::yield_now() => {
                    ours.write_all(b"between").await.unwrap();
                    written += 7;
                }
            }
        }
        assert_eq!(arrived, message);
        let mut between = vec![0; written];
        theirs.read_exact(&mut between).await.unwrap();
        assert!(written > 1000 && between.chunks(7).all(|chunk| chunk == b"between"), "{written}");
        relay.abort();
    }
}

#[tokio::test]
async fn keys_that_the_peer_renews_are_followed_in_both_directions() {
    let mesh = Mesh::new().await;
    for role in ROLES {
        let (mut ours, mut theirs) = mesh.over_loopback(role).await;
        for round in 0..10_u8 {
            // The peer's, and with its request ours too (RFC 8446 §4.6.3).
            match &mut theirs {
                Peer::Client(stream) => stream.get_mut().1.refresh_traffic_keys().unwrap(),
                Peer::Server(stream) => stream.get_mut().1.refresh_traffic_keys().unwrap(),
            }
            let message = [round; 40_000];
            let mut arrived = [0; 40_000];
            tokio::join!(
                async {
                    theirs.write_all(&message).await.unwrap();
                    theirs.flush().await.unwrap();
                },
                async {
                    ours.read_exact(&mut arrived).await.unwrap();
                }
            );
            assert_eq!(arrived, message);
            tokio::join!(
                async {
                    ours.write_all(&message).await.unwrap();
                    ours.flush().await.unwrap();
                },
                async {
                    theirs.read_exact(&mut arrived).await.unwrap();
                }
            );
            assert_eq!(arrived, message);
        }
    }
}

#[tokio::test]
async fn tickets_that_a_server_sends_are_no_plaintext() {
    let mesh = Mesh::new().await;
    let (near, far) = duplex(1_000_000);
    let mut config = (*mesh.server.server_config()).clone();
    config.send_tls13_tickets = 4;
    config.session_storage = rustls::server::ServerSessionMemoryCache::new(10);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let name = "192.0.2.1".try_into().unwrap();
    let client = mesh.client.client_config(&super::identity("server"));
    let (ours, theirs) = tokio::join!(super::connect(client, name, near), acceptor.accept(far));
    exchange(ours.unwrap(), theirs.unwrap(), 10_000, 900).await;
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

#[tokio::test]
async fn who_reads_much_lets_others_run_in_between() {
    const SENT: usize = 512 * 1024;
    let mesh = Mesh::new().await;
    for role in ROLES {
        let (mut ours, mut peer) = mesh.over_pipe(role, 1 << 20).await;
        peer.write_all(&[7; SENT]).await.unwrap();
        peer.flush().await.unwrap();
        let (mut read, mut turns) = (0, 0);
        while read < SENT {
            let woken = Arc::new(Woken(AtomicBool::new(false)));
            let waker = woken.clone().into();
            let mut room = vec![0; 16 * 1024];
            let mut room = ReadBuf::new(&mut room);
            match Pin::new(&mut ours).poll_read(&mut Context::from_waker(&waker), &mut room) {
                Poll::Ready(outcome) => outcome.unwrap(),
                // It is its own turn again when the others have had theirs.
                Poll::Pending => assert!(woken.0.load(SeqCst), "all of it is there"),
            }
            if room.filled().is_empty() {
                turns += 1;
            }
            read += room.filled().len();
        }
        assert!((3..=SENT / (64 * 1024)).contains(&turns), "{role:?}: {turns} turns");
    }
}
