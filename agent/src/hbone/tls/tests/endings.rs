//! How a connection ends: well, not at all well, and by whose fault.

use std::{future::poll_fn, io, pin::Pin};

use rustls::AlertDescription;
use tokio::io::{AsyncReadExt as _, AsyncWrite as _, AsyncWriteExt as _};

use super::{Mesh, ROLES, TlsStream, tls_error};
use crate::identity::TlsError;

#[tokio::test]
async fn a_peer_that_has_closed_its_half_still_receives() {
    let mesh = Mesh::new().await;
    for role in ROLES {
        let (mut ours, mut theirs) = mesh.over_loopback(role).await;
        theirs.write_all(b"last words").await.unwrap();
        theirs.shutdown().await.unwrap();
        let mut read = Vec::new();
        ours.read_to_end(&mut read).await.expect("a clean end");
        assert_eq!(read, b"last words");
        assert_eq!(ours.read(&mut [0]).await.unwrap(), 0, "the end is the end");
        assert!(!ours.session.holds_memory());
        ours.write_all(b"an answer").await.unwrap();
        ours.shutdown().await.unwrap();
        let mut read = Vec::new();
        theirs.read_to_end(&mut read).await.expect("a clean end");
        assert_eq!(read, b"an answer");
    }
}

#[tokio::test]
async fn what_closed_its_half_still_receives_and_writes_no_more() {
    let mesh = Mesh::new().await;
    for role in ROLES {
        let (mut ours, mut theirs) = mesh.over_loopback(role).await;
        ours.write_all(b"last words").await.unwrap();
        ours.shutdown().await.unwrap();
        ours.shutdown().await.expect("nothing to be done twice");
        assert_eq!(ours.write(b"more").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let mut read = Vec::new();
        theirs.read_to_end(&mut read).await.expect("a clean end");
        assert_eq!(read, b"last words");
        theirs.write_all(b"an answer").await.unwrap();
        theirs.shutdown().await.unwrap();
        let mut read = Vec::new();
        ours.read_to_end(&mut read).await.expect("a clean end");
        assert_eq!(read, b"an answer");
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_is_no_clean_end() {
    let mesh = Mesh::new().await;
    for role in ROLES {
        let (mut ours, mut theirs) = mesh.over_pipe(role, 100_000).await;
        theirs.write_all(&[7; 50_000]).await.unwrap();
        theirs.flush().await.unwrap();
        drop(theirs);
        let mut read = Vec::new();
        let error = ours.read_to_end(&mut read).await.unwrap_err();
        assert_eq!((read.len(), error.kind()), (50_000, io::ErrorKind::UnexpectedEof), "{error}");
        assert_eq!(ours.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_within_a_record_is_no_clean_end() {
    let mesh = Mesh::new().await;
    for role in ROLES {
        let (mut ours, mut theirs) = mesh.over_pipe(role, 100_000).await;
        theirs.get_mut().0.write_all(&[23, 3, 3, 0x10, 0, 1, 2, 3]).await.unwrap();
        drop(theirs);
        assert_eq!(ours.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}

/// Puts bytes into a connection that no peer should send, and returns what both ends say of it.
async fn broken_by(bytes: &[u8]) -> Vec<(TlsError, TlsError)> {
    let mesh = Mesh::new().await;
    let mut outcomes = Vec::new();
    for role in ROLES {
        let (mut ours, mut theirs) = mesh.over_pipe(role, 1_000_000).await;
        theirs.write_all(b"before").await.unwrap();
        theirs.flush().await.unwrap();
        theirs.get_mut().0.write_all(bytes).await.unwrap();
        let mut before = [0; 100];
        let len = ours.read(&mut before).await.expect("what came before it is read");
        assert_eq!(&before[..len], b"before");
        let error = ours.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        fails_for_ever(&mut ours).await;
        let alert = theirs.read(&mut [0]).await.unwrap_err();
        outcomes.push((tls_error(&error), tls_error(&alert)));
    }
    outcomes
}

/// Neither a hang nor a panic, and nothing held.
async fn fails_for_ever<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(ours: &mut TlsStream<S>) {
    for _ in 0..3 {
        assert_eq!(ours.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(ours.write(b"more").await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(ours.flush().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
    assert_eq!(ours.shutdown().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert!(!ours.session.holds_memory());
}

fn alert(outcomes: &[(TlsError, TlsError)], expected: AlertDescription) {
    for (ours, theirs) in outcomes {
        assert!(matches!(ours, TlsError::Protocol(_)), "{ours}");
        assert!(matches!(theirs, TlsError::Alert(alert) if *alert == expected), "{theirs}");
    }
}

#[tokio::test]
async fn a_record_of_a_stranger_ends_the_connection_and_the_peer_learns_why() {
    let mut record = vec![23, 3, 3, 0, 100];
    record.extend_from_slice(&[0xa5; 100]);
    alert(&broken_by(&record).await, AlertDescription::BadRecordMac);
}

#[tokio::test]
async fn a_record_that_is_too_large_ends_the_connection_and_the_peer_learns_why() {
    let mut record = vec![23, 3, 3, 0xff, 0xff];
    record.extend_from_slice(&[0xa5; 0xffff]);
    let outcomes = broken_by(&record).await;
    for (ours, theirs) in &outcomes {
        assert!(matches!(ours, TlsError::Protocol(_)), "{ours}");
        assert!(matches!(theirs, TlsError::Alert(_)), "{theirs}");
    }
}

#[tokio::test]
async fn what_is_no_tls_ends_the_connection_and_the_peer_learns_why() {
    let outcomes = broken_by(b"GET / HTTP/1.1\r\nhost: culvert\r\n\r\n").await;
    for (ours, theirs) in &outcomes {
        assert!(matches!(ours, TlsError::Protocol(_)), "{ours}");
        assert!(matches!(theirs, TlsError::Alert(_)), "{theirs}");
    }
}

#[tokio::test]
async fn an_alert_of_the_peers_is_the_reason() {
    let mesh = Mesh::new().await;
    for role in ROLES {
        let (mut ours, mut theirs) = mesh.over_pipe(role, 1_000_000).await;
        ours.socket.write_all(b"GET / HTTP/1.1\r\nhost: culvert\r\n\r\n").await.unwrap();
        theirs.read(&mut [0]).await.unwrap_err();
        let error = ours.read(&mut [0]).await.unwrap_err();
        assert!(matches!(tls_error(&error), TlsError::Alert(_)), "{error}");
        fails_for_ever(&mut ours).await;
    }
}

#[tokio::test]
async fn an_alert_is_read_after_writes_have_failed() {
    let mesh = Mesh::new().await;
    for role in ROLES {
        let (mut ours, mut theirs) = mesh.over_pipe(role, 1_000_000).await;
        ours.socket.write_all(b"GET / HTTP/1.1\r\nhost: culvert\r\n\r\n").await.unwrap();
        theirs.read(&mut [0]).await.unwrap_err();
        drop(theirs);
        let error = ours.write_all(b"into the void").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        let error = ours.read(&mut [0]).await.unwrap_err();
        assert!(matches!(tls_error(&error), TlsError::Alert(_)), "{error}");
    }
}

#[tokio::test]
async fn what_a_peer_does_not_read_bounds_what_is_taken() {
    let mesh = Mesh::new().await;
    for role in ROLES {
        const PIPE: usize = 10_000;
        let (mut ours, mut theirs) = mesh.over_pipe(role, PIPE).await;
        let mut taken = 0;
        let flood = [1; 300_000];
        // Until nothing more is taken.
        poll_fn(|cx| {
            while let std::task::Poll::Ready(written) = Pin::new(&mut ours).poll_write(cx, &flood) {
                taken += written.unwrap();
            }
            std::task::Poll::Ready(())
        })
        .await;
        assert_eq!(taken, 64 * 1024, "one write's worth");
        let mut read = vec![0; taken];
        let (flushed, all) = tokio::join!(ours.flush(), theirs.read_exact(&mut read));
        flushed.unwrap();
        all.unwrap();
        assert!(read.iter().all(|byte| *byte == 1));
        assert!(!ours.session.holds_memory());
    }
}
