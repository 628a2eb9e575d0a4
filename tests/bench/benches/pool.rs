//! The cost of a tunnel from the pool, over loopback with both agents' work: `cargo bench -p bench --bench pool`.

use std::{
    cell::Cell,
    net::{self, SocketAddr},
    sync::Arc,
    thread,
};

use criterion::{Criterion, criterion_group, criterion_main};
use culvert::{
    hbone::{ConnectRequest, Handshakes, Pool, PoolConfig, PoolKey, ServerConnection, accept},
    identity::{LocalCa, Svid, SvidStore, ca::Lifetimes},
    mesh::Identity,
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
};

fn tunnels(criterion: &mut Criterion) {
    let runtime = runtime();
    let stage = runtime.block_on(Stage::set());
    let mut group = criterion.benchmark_group("a tunnel, and its end");
    let pool = pool();
    runtime.block_on(stage.tunnel(&pool));
    group.bench_function("on a connection that is there", |bencher| {
        bencher.iter(|| runtime.block_on(stage.tunnel(&pool)));
    });
    assert_eq!(stage.dialled.get(), 1, "connections");
    group.bench_function("on one that has to be made", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let pool = self::pool();
                stage.tunnel(&pool).await;
                pool.abort();
                pool.drain().await;
            });
        });
    });
    group.finish();
}

/// A client's certificate, and a server that ends each tunnel in good order.
struct Stage {
    svid: Arc<Svid>,
    server: SocketAddr,
    dialled: Cell<usize>,
}

impl Stage {
    async fn set() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path().join("ca");
        let domain = "cluster.local".parse().expect("a trust domain");
        LocalCa::init(&place, &domain, Lifetimes::default()).expect("an authority");
        let svids = SvidStore::new(Arc::new(LocalCa::open(&place).expect("the authority")));
        let svid = async |account| svids.svid(&identity(account)).await.expect("a certificate");
        let server = serve(svid("server").await);
        Self { svid: svid("client").await, server, dialled: Cell::new(0) }
    }

    async fn tunnel(&self, pool: &Pool) {
        let key = PoolKey {
            source_workload: "client-uid".into(),
            source: self.server.ip(),
            identity: self.svid.identity().clone(),
            peer: self.server,
            peer_workload: "server-uid".into(),
            expect: identity("server"),
        };
        let authority = SocketAddr::new(self.server.ip(), 80);
        let request = ConnectRequest { authority, forwarded: None, baggage: None };
        let dial = async || {
            self.dialled.set(self.dialled.get() + 1);
            let stream = TcpStream::connect(self.server).await?;
            // As the agent does: a small frame does not wait for the ACK of the one before.
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        let tunnel =
            pool.connect(key, Arc::clone(&self.svid), dial, (request, &mut ())).await.expect("a tunnel");
        let (sender, mut receiver) = tunnel.split();
        sender.finish();
        assert!(receiver.recv().await.is_none(), "something came");
    }
}

fn pool() -> Pool {
    Pool::new(PoolConfig::default(), Handshakes::default())
}

/// A thread to itself, as those are that carry an agent's connections.
fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Serves in such a thread, as long as the process lives.
fn serve(own: Arc<Svid>) -> SocketAddr {
    let listener = net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        runtime().block_on(async {
            let listener = TcpListener::from_std(listener).expect("a socket");
            while let Ok((tcp, _)) = listener.accept().await {
                let own = Arc::clone(&own);
                tokio::spawn(async move { answer(accept(tcp, own).await.expect("a client of ours")).await });
            }
        });
    });
    address
}

async fn answer(mut connection: ServerConnection) {
    while let Some(Ok(incoming)) = connection.next().await {
        let Ok(tunnel) = incoming.accept() else { continue };
        let (sender, mut receiver) = tunnel.split();
        sender.finish();
        tokio::spawn(async move { while receiver.recv().await.is_some() {} });
    }
}

fn identity(account: &str) -> Identity {
    let domain = "cluster.local".parse().expect("a trust domain");
    Identity::new(domain, "shop", account).expect("an identity")
}

criterion_group!(benches, tunnels);
criterion_main!(benches);
