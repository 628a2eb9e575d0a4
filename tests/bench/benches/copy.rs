//! The cost of the agent's copy between two sockets, beside none: `cargo bench -p bench --bench copy`. Over loopback, so
//! half of every figure is the kernel's and the two ends'.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread::{self, JoinHandle},
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use culvert::proxy;
use tokio::runtime;

const MESSAGE: usize = 64;
const BULK: usize = 8 << 20;
/// What an application writes and reads at once.
const PIECE: usize = 64 << 10;

fn round_trips(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("64 bytes there and back");
    for (name, connect) in PATHS {
        let Path { mut client, mut server, copy } = connect();
        let echo = thread::spawn(move || {
            let mut message = [0; MESSAGE];
            while server.read_exact(&mut message).is_ok() {
                server.write_all(&message).expect("an open connection");
            }
        });
        let mut message = [7; MESSAGE];
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                client.write_all(&message).expect("an open connection");
                client.read_exact(&mut message).expect("an echo");
            });
        });
        end(client, [Some(echo), copy]);
    }
    group.finish();
}

fn bulk(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("8 MiB one way");
    group.throughput(Throughput::Bytes(BULK as u64));
    for (name, connect) in PATHS {
        let Path { mut client, mut server, copy } = connect();
        let sink = thread::spawn(move || {
            let (mut piece, mut left) = (vec![0; PIECE], BULK);
            while let Ok(read @ 1..) = server.read(&mut piece[..PIECE.min(left)]) {
                left -= read;
                if left == 0 {
                    // All of it is here: the client waits for that.
                    server.write_all(&[1]).expect("an open connection");
                    left = BULK;
                }
            }
        });
        let piece = vec![7; PIECE];
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                for _ in 0..BULK / PIECE {
                    client.write_all(&piece).expect("an open connection");
                }
                client.read_exact(&mut [0]).expect("word that all has come");
            });
        });
        end(client, [Some(sink), copy]);
    }
    group.finish();
}

/// The two ends of a connection, and the thread that copies between them where one does.
struct Path {
    client: TcpStream,
    server: TcpStream,
    copy: Option<JoinHandle<()>>,
}

type Connect = fn() -> Path;
const PATHS: [(&str, Connect); 2] = [("no copy", straight), ("copied", copied)];

fn straight() -> Path {
    let (client, server) = pair();
    Path { client, server, copy: None }
}

/// Two connections, the inner ends of which the agent's copy joins, in a thread like those that an agent has for it.
fn copied() -> Path {
    let ((client, near), (far, server)) = (pair(), pair());
    let copy = thread::spawn(move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let [near, far] = [near, far].map(|stream| {
                stream.set_nonblocking(true).expect("a socket");
                tokio::net::TcpStream::from_std(stream).expect("a socket")
            });
            proxy::carry(&near, &far).await.expect("two ends in good order");
        });
    });
    Path { client, server, copy: Some(copy) }
}

/// What a client and a server have.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let client = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
    let (server, _) = listener.accept().expect("the connection");
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("a socket");
    }
    (client, server)
}

/// Ends the connection from the client's side, and sees everybody else end with it.
fn end(client: TcpStream, others: [Option<JoinHandle<()>>; 2]) {
    drop(client);
    for other in others.into_iter().flatten() {
        other.join().expect("an end in good order");
    }
}

criterion_group!(benches, round_trips, bulk);
criterion_main!(benches);
