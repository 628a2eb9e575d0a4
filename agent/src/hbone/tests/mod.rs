//! Both sides together: over pipes in memory, and over loopback TCP with real TLS.

mod early;
mod hostile;
mod pool;
mod server;
mod socket;
mod standing;
mod tls;
mod tunnel;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::client::SendRequest;
use tempfile::TempDir;
use tokio::{
    io::{DuplexStream, duplex},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::AbortHandle,
};

use super::{
    ConnectError, ConnectRequest, FirstBytes, Handshakes, Incoming, Pool, PoolConfig, PoolKey,
    ServerConnection, Tunnel, TunnelReceiver, accept, client, link::Link, server::Http,
};
use crate::{
    identity::{LocalCa, Svid, SvidStore, ca::Lifetimes},
    mesh::Identity,
};

/// Where the pods of the tests over pipes believe to live.
const LOCAL: &str = "10.0.0.7:80";

/// What the pipe itself holds, each way.
const PIPE: usize = 64 * 1024;

/// A client and a server over a pipe: CONNECTs go in here and come out there.
struct Pair {
    requests: SendRequest<Bytes>,
    link: Arc<Link>,
    incoming: mpsc::Receiver<Incoming>,
    client: AbortHandle,
    server: AbortHandle,
}

impl Pair {
    async fn new() -> Self {
        let (near, far) = duplex(PIPE);
        let (incoming, server) = serve(far);
        let (requests, connection) = client::handshake(near).await.expect("a handshake over a pipe");
        let client = tokio::spawn(async move {
            let _ = connection.await;
        })
        .abort_handle();
        Self { requests, link: Link::new(), incoming, client, server }
    }

    /// Opens a tunnel and returns both of its ends.
    async fn tunnel(&mut self) -> (Tunnel, Tunnel) {
        let (near, far) = tokio::join!(self.connect(), async {
            self.incoming.recv().await.expect("a request").accept().expect("a live request")
        });
        (near, far)
    }
}

impl Pair {
    fn connect(&self) -> impl Future<Output = Tunnel> + use<> {
        let (requests, lease) = (self.requests.clone(), self.link.lease());
        async move { client::request(requests, lease, (&request(LOCAL), NOTHING)).await.expect("a tunnel") }
    }
}

/// Serves the far end of a pipe as the agent does.
fn serve(io: DuplexStream) -> (mpsc::Receiver<Incoming>, AbortHandle) {
    let (sender, receiver) = mpsc::channel(1000);
    let local: SocketAddr = LOCAL.parse().unwrap();
    let task = tokio::spawn(async move {
        let Ok(mut http) = Http::handshake(io, local.ip()).await else { return };
        while let Some(Ok(incoming)) = http.next().await {
            let _ = sender.send(incoming).await;
        }
    });
    (receiver, task.abort_handle())
}

/// No bytes that go first.
const NOTHING: Option<&mut ()> = None;

fn request(authority: &str) -> ConnectRequest {
    ConnectRequest { authority: authority.parse().unwrap(), forwarded: None, baggage: None }
}

/// Reads to the end of the stream, which must be clean.
async fn read_all(receiver: &mut TunnelReceiver) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(data) = receiver.recv().await {
        all.extend_from_slice(&data.expect("a clean end of the stream"));
    }
    all
}

/// Waits for a condition that nothing announces.
async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{what} did not come true");
}

/// A certificate authority in a directory of its own.
pub(super) struct Authority {
    ca: Arc<LocalCa>,
    dir: TempDir,
}

impl Authority {
    pub(super) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("ca");
        LocalCa::init(&path, &"cluster.local".parse().unwrap(), Lifetimes::default()).unwrap();
        Self { ca: Arc::new(LocalCa::open(&path).unwrap()), dir }
    }

    /// Issues a certificate that is valid for `lifetime`.
    async fn svid_for(&self, account: &str, lifetime: Duration) -> Arc<Svid> {
        let ca = LocalCa::open(&self.dir.path().join("ca")).unwrap().with_lifetime(lifetime);
        SvidStore::new(Arc::new(ca)).svid(&identity(account)).await.unwrap()
    }

    /// Issues a new certificate each time.
    pub(super) async fn svid(&self, account: &str) -> Arc<Svid> {
        SvidStore::new(self.ca.clone()).svid(&identity(account)).await.unwrap()
    }
}

pub(super) fn identity(account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

/// A destination's agent on loopback, with one connection at a time handed to the test.
struct Agent {
    address: SocketAddr,
    /// TCP connections that were accepted.
    connections: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Agent {
    /// Serves every connection with `serve`.
    async fn start<F>(svid: Arc<Svid>, serve: impl Fn(ServerConnection) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let serve = Arc::new(serve);
        Self::listen(move |tcp| {
            let (svid, serve) = (svid.clone(), serve.clone());
            async move {
                if let Ok(connection) = accept(tcp, svid).await {
                    serve(connection).await;
                }
            }
        })
        .await
    }

    /// Hands every TCP connection to `serve`.
    async fn listen<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let task = tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                tasks.spawn(serve(tcp));
            }
        });
        Self { address, connections, task: task.abort_handle() }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Accepts every tunnel and sends back what arrives, half-close for half-close.
async fn echo(mut connection: ServerConnection) {
    while let Some(Ok(incoming)) = connection.next().await {
        if let Ok(tunnel) = incoming.accept() {
            tokio::spawn(echo_tunnel(tunnel));
        }
    }
}

async fn echo_tunnel(tunnel: Tunnel) {
    let (mut sender, mut receiver) = tunnel.split();
    while let Some(data) = receiver.recv().await {
        let Ok(data) = data else { return };
        if sender.send(data).await.is_err() {
            return;
        }
    }
    sender.finish();
}

/// A source pod with a pool.
struct Source {
    pool: Pool,
    svid: Arc<Svid>,
    /// How often the pool asked for a TCP connection.
    dials: Arc<AtomicUsize>,
}

impl Source {
    async fn new(authority: &Authority, config: PoolConfig) -> Self {
        let svid = authority.svid("client").await;
        Self { pool: Pool::new(config, Handshakes::default()), svid, dials: Arc::default() }
    }

    fn key(&self, peer: SocketAddr) -> PoolKey {
        PoolKey {
            source_workload: "client-uid".into(),
            source: "10.0.0.1".parse().unwrap(),
            identity: self.svid.identity().clone(),
            peer,
            peer_workload: "server-uid".into(),
            expect: identity("server"),
        }
    }

    fn connect(&self, peer: SocketAddr) -> impl Future<Output = Result<Tunnel, ConnectError>> + Send + use<> {
        self.connect_as(self.key(peer))
    }

    fn connect_as(&self, key: PoolKey) -> impl Future<Output = Result<Tunnel, ConnectError>> + Send + use<> {
        let (pool, svid, dials, peer) = (self.pool.clone(), self.svid.clone(), self.dials.clone(), key.peer);
        async move {
            let dial = || {
                dials.fetch_add(1, Ordering::SeqCst);
                TcpStream::connect(peer)
            };
            pool.connect(key, svid, dial, (request(&format!("{}:80", peer.ip())), &mut ())).await
        }
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::SeqCst)
    }
}

/// Sends `text` through an echo and checks what comes back, to the end of the stream.
async fn converse(tunnel: Tunnel, text: &'static str) {
    let (mut sender, mut receiver) = tunnel.split();
    sender.send(Bytes::from_static(text.as_bytes())).await.unwrap();
    sender.finish();
    assert_eq!(read_all(&mut receiver).await, text.as_bytes());
}
