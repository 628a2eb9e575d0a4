//! The ends of connections' sockets, over loopback.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};

use crate::hbone::socket::{LINGER, Socket};

const PATIENCE: Duration = Duration::from_secs(30);

async fn pair() -> (Socket, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dial = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(dial, listener.accept());
    (Socket::new(near.unwrap()), far.unwrap().0)
}

#[tokio::test]
async fn last_words_of_a_peer_are_read_although_it_takes_nothing_any_more() {
    let (mut ours, mut theirs) = pair().await;
    theirs.write_all(&[7; 100_000]).await.unwrap();
    drop(theirs);
    // The first is answered with a reset, the next is refused; how soon is the kernel's.
    while ours.is_heard() {
        ours.write_all(b"a window").await.expect("not what a writer needs to know");
        tokio::task::yield_now().await;
    }
    let mut read = Vec::new();
    let error = timeout(PATIENCE, ours.read_to_end(&mut read)).await.unwrap().unwrap_err();
    assert_eq!(read, [7; 100_000]);
    assert!(matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{error}");
}

#[tokio::test]
async fn who_closes_first_leaves_the_peer_time_to_read() {
    let (mut ours, mut theirs) = pair().await;
    ours.write_all(&[7; 300_000]).await.unwrap();
    let closing = tokio::spawn(async move { ours.shutdown().await });
    let mut read = vec![0; 300_000];
    for piece in read.chunks_mut(1000) {
        theirs.write_all(b"a window").await.expect("the socket is still there");
        theirs.read_exact(piece).await.expect("nothing is lost");
    }
    assert!(read.iter().all(|byte| *byte == 7));
    assert_eq!(theirs.read(&mut [0]).await.expect("a clean end"), 0);
    assert!(!closing.is_finished());
    drop(theirs);
    timeout(PATIENCE, closing).await.unwrap().unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_close_is_waited_for_only_so_long() {
    let (mut ours, _theirs) = pair().await;
    let before = Instant::now();
    ours.shutdown().await.unwrap();
    assert!((LINGER..LINGER * 2).contains(&before.elapsed()), "{:?}", before.elapsed());
}
