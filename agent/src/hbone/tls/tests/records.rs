//! How plaintext becomes records, and how few system calls that takes.

use std::io::IoSlice;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

use super::{Mesh, ROLES, Role, TlsStream, socket::Watched};

/// The plaintext lengths of the records in `wire`: header, then one byte of content type and sixteen of tag in each.
fn records(mut wire: &[u8]) -> Vec<usize> {
    let mut lens = Vec::new();
    while let [23, 3, 3, high, low, rest @ ..] = wire {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        lens.push(len - 17);
        wire = &rest[len..];
    }
    assert!(wire.is_empty(), "{wire:?}");
    lens
}

/// Writes slices at once; returns how much was taken, and the records of each write to the socket.
async fn written(slices: &[&[u8]]) -> (usize, Vec<Vec<usize>>) {
    let mesh = Mesh::new().await;
    let (near, far) = duplex(10_000_000);
    let (near, seen) = Watched::new(near);
    let (mut ours, _theirs) = mesh.join(Role::Server, near, far).await;
    seen.lock().unwrap().writes.clear();
    let slices: Vec<_> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
    let taken = ours.write_vectored(&slices).await.unwrap();
    assert!(!ours.session.holds_memory());
    let writes = seen.lock().unwrap().writes.iter().map(|wire| records(wire)).collect();
    (taken, writes)
}

const FULL: usize = 16 * 1024;

#[tokio::test]
async fn a_frame_is_one_write_and_its_payload_begins_a_record() {
    let (taken, writes) = written(&[&[1; 9], &[2; 4 * FULL]]).await;
    assert_eq!((taken, writes), (9 + 4 * FULL, vec![vec![9, FULL, FULL, FULL, FULL]]));
    // As h2 does it: the first 256 bytes of a frame are with its head.
    let (taken, writes) = written(&[&[1; 256], &[2; 4 * FULL - 247]]).await;
    assert_eq!((taken, writes), (9 + 4 * FULL, vec![vec![256, FULL, FULL, FULL, FULL - 247]]));
}

#[tokio::test]
async fn what_fits_into_a_record_becomes_one() {
    let (taken, writes) = written(&[&[1; 256], &[2; 1000]]).await;
    assert_eq!((taken, writes), (1256, vec![vec![1256]]));
    let (taken, writes) = written(&[&[1; 9], &[], &[2; FULL - 9], &[3; 9], &[4; 100], &[5; FULL]]).await;
    assert_eq!((taken, writes), (2 * FULL + 109, vec![vec![FULL, 109, FULL]]));
}

#[tokio::test]
async fn more_than_a_write_takes_is_cut_into_full_records() {
    let (taken, writes) = written(&[&vec![1; 1_000_000]]).await;
    assert_eq!((taken, writes), (4 * FULL, vec![vec![FULL; 4]]));
    let (taken, writes) = written(&[&[0; 9], &vec![1; 1_000_000]]).await;
    assert_eq!((taken, writes), (4 * FULL, vec![vec![9, FULL, FULL, FULL, FULL - 9]]));
}

#[tokio::test]
async fn what_waits_in_the_socket_is_read_at_once_and_whole_records_where_they_are_wanted() {
    let mesh = Mesh::new().await;
    for role in ROLES {
        let (near, far) = duplex(10_000_000);
        let (near, seen) = Watched::new(near);
        let (mut ours, mut theirs) = mesh.join(role, near, far).await;
        theirs.write_all(&[7; 9]).await.unwrap();
        theirs.write_all(&[8; 3 * FULL]).await.unwrap();
        theirs.flush().await.unwrap();
        seen.lock().unwrap().reads.clear();
        let mut buffer = vec![0; 3 * FULL];
        // Room for the first record and a part of the second.
        assert_eq!(ours.read(&mut buffer[..8192]).await.unwrap(), 9);
        assert_eq!(ours.read(&mut buffer).await.unwrap(), 3 * FULL);
        assert!(buffer.iter().all(|byte| *byte == 8));
        assert_eq!(seen.lock().unwrap().reads, [9 + 22 + 3 * (FULL + 22)]);
        assert!(!ours.session.holds_memory());
    }
}

#[tokio::test]
async fn a_reader_with_little_room_gets_everything_and_nothing_is_held_then() {
    let mesh = Mesh::new().await;
    for role in ROLES {
        let (mut ours, mut theirs) = mesh.over_pipe(role, 1_000_000).await;
        theirs.write_all(&[9; 2 * FULL]).await.unwrap();
        theirs.flush().await.unwrap();
        for _ in 0..2 * FULL {
            assert_eq!(ours.read_u8().await.unwrap(), 9);
        }
        idle(&ours);
        // A write while a record waits that has no reader.
        theirs.write_all(b"unread").await.unwrap();
        theirs.flush().await.unwrap();
        assert_eq!(ours.read_u8().await.unwrap(), b'u');
        ours.write_all(b"written").await.unwrap();
        let mut rest = [0; 5];
        ours.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"nread");
        idle(&ours);
    }
}

fn idle<S>(stream: &TlsStream<S>) {
    assert!(!stream.session.holds_memory(), "an idle stream has memory");
}

#[tokio::test]
async fn records_that_wait_while_something_is_written_are_read_later() {
    let mesh = Mesh::new().await;
    for role in ROLES {
        let (mut ours, mut theirs) = mesh.over_pipe(role, 1_000_000).await;
        for piece in 0..4_u8 {
            theirs.write_all(&[piece; 10_000]).await.unwrap();
        }
        theirs.shutdown().await.unwrap();
        // The first record is read, the others were received with it.
        let mut first = [0; 10_000];
        assert_eq!(ours.read(&mut first).await.unwrap(), 10_000);
        ours.write_all(b"meanwhile").await.unwrap();
        let mut rest = Vec::new();
        ours.read_to_end(&mut rest).await.expect("a clean end");
        let expected: Vec<_> = (1..4_u8).flat_map(|piece| [piece; 10_000]).collect();
        assert!(first == [0; 10_000] && rest == expected);
        idle(&ours);
        let mut meanwhile = [0; 9];
        theirs.read_exact(&mut meanwhile).await.unwrap();
        assert_eq!(&meanwhile, b"meanwhile");
    }
}
