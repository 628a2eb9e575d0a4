//! The connection to the authority: opened when it is needed, shared by what is asked at the same time.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{Request, Response, uri::PathAndQuery};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{ClientConfig, client::Resumption, pki_types::ServerName, version::TLS13};
use tokio::{net::TcpStream, sync::watch, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, body::Body, client::Grpc, codegen::Service};
use tonic_prost::ProstCodec;

use super::{
    CaAddress, GrpcError,
    istio::{CREATE_CERTIFICATE, CertificateRequest, CertificateResponse},
};
use crate::identity::{Followed, TrustBundle, tls::provider};

/// Opens connections, and holds the one in use.
pub(super) struct Links {
    address: CaAddress,
    server_name: ServerName<'static>,
    roots: Followed<TrustBundle>,
    slot: Mutex<Option<Slot>>,
}

/// A connection that is open or being opened.
struct Slot {
    roots: Arc<TrustBundle>,
    opening: Opening,
    used: Instant,
}

/// The outcome of opening a connection, once there is one. The attempt ends where nobody waits for it any more.
#[derive(Clone)]
struct Opening {
    outcome: watch::Receiver<Option<Result<Arc<Link>, GrpcError>>>,
    _task: Arc<AbortOnDropHandle<()>>,
}

/// An open connection, until its last request is answered.
pub(super) struct Link {
    sender: http2::SendRequest<Body>,
    address: CaAddress,
    _driver: AbortOnDropHandle<()>,
}

impl Links {
    pub(super) fn new(
        address: CaAddress,
        server_name: Option<ServerName<'static>>,
        roots: Followed<TrustBundle>,
    ) -> Self {
        let server_name = server_name.unwrap_or_else(|| address.server_name());
        Self { address, server_name, roots, slot: Mutex::default() }
    }

    /// Returns a connection: the one that is open or being opened, where that is fit for one more request.
    pub(super) async fn get(&self) -> Result<Arc<Link>, GrpcError> {
        let Opening { mut outcome, _task } = self.opening();
        match outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone()) {
            Ok(Some(outcome)) => outcome,
            _ => Err(broken(&self.address, &"the attempt to connect was given up")),
        }
    }

    /// Has the next request open a connection of its own, unless this one has been replaced already.
    pub(super) fn forget(&self, link: &Arc<Link>) {
        let mut slot = self.slot();
        if slot.as_ref().is_some_and(|slot| slot.opening.is(link)) {
            *slot = None;
        }
    }

    /// Has the next request open a connection of its own.
    pub(super) fn forget_current(&self) {
        *self.slot() = None;
    }

    fn opening(&self) -> Opening {
        let roots = self.roots.get();
        let mut slot = self.slot();
        let fit = slot.take().filter(|slot| slot.is_fit(&roots));
        let opening = fit.map_or_else(|| self.open(&roots), |slot| slot.opening);
        *slot = Some(Slot { roots, opening: opening.clone(), used: Instant::now() });
        opening
    }

    fn open(&self, roots: &TrustBundle) -> Opening {
        let (sender, outcome) = watch::channel(None);
        let (address, name, config) = (self.address.clone(), self.server_name.clone(), client_config(roots));
        let task = tokio::spawn(async move {
            sender.send_replace(Some(Link::open(address, name, config).await.map(Arc::new)));
        });
        Opening { outcome, _task: Arc::new(AbortOnDropHandle::new(task)) }
    }

    fn slot(&self) -> MutexGuard<'_, Option<Slot>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn is_fit(&self, roots: &Arc<TrustBundle>) -> bool {
        let works = match &*self.opening.outcome.borrow() {
            None => true,
            Some(Ok(link)) => !link.sender.is_closed(),
            Some(Err(_)) => false,
        };
        works && Arc::ptr_eq(&self.roots, roots) && self.used.elapsed() < MAX_REST
    }
}

impl Opening {
    fn is(&self, link: &Arc<Link>) -> bool {
        matches!(&*self.outcome.borrow(), Some(Ok(open)) if Arc::ptr_eq(open, link))
    }
}

impl Link {
    async fn open(
        address: CaAddress,
        name: ServerName<'static>,
        config: ClientConfig,
    ) -> Result<Self, GrpcError> {
        let connecting = timeout(CONNECT_LIMIT, connect(&address, name, config));
        let late = |_| GrpcError::Silent { address: address.clone(), limit: CONNECT_LIMIT };
        let stream = connecting.await.map_err(late)??;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .max_header_list_size(MAX_HEADERS)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&address, &error))?;
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, address, _driver: AbortOnDropHandle::new(driver) })
    }

    /// Asks for a certificate.
    pub(super) async fn call(
        &self,
        request: tonic::Request<CertificateRequest>,
    ) -> Result<tonic::Response<CertificateResponse>, Status> {
        let mut grpc = Grpc::with_origin(Sender(self.sender.clone()), self.address.origin())
            .max_decoding_message_size(MAX_ANSWER);
        grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let path = PathAndQuery::from_static(CREATE_CERTIFICATE);
        grpc.unary(request, path, ProstCodec::default()).await
    }
}

async fn connect(
    address: &CaAddress,
    name: ServerName<'static>,
    config: ClientConfig,
) -> Result<TlsStream<TcpStream>, GrpcError> {
    let unreachable = |source| GrpcError::Unreachable { address: address.clone(), source: Arc::new(source) };
    let stream = TcpStream::connect((address.host(), address.port())).await.map_err(unreachable)?;
    stream.set_nodelay(true).map_err(unreachable)?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|source| GrpcError::Tls { address: address.clone(), source: Arc::new(source) })?;
    match stream.get_ref().1.alpn_protocol() {
        Some(ALPN_H2) => Ok(stream),
        _ => Err(broken(address, &"it speaks no HTTP/2 (ALPN h2) there")),
    }
}

/// Public-key TLS as on the web: the server has a name, the client a token.
fn client_config(roots: &TrustBundle) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has suites and groups for TLS 1.3")
        .with_root_certificates(roots.store())
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.resumption = Resumption::disabled();
    config
}

fn broken(address: &CaAddress, problem: &dyn fmt::Display) -> GrpcError {
    GrpcError::Broken { address: address.clone(), problem: problem.to_string() }
}

/// The sending half of a connection as tonic wants it.
#[derive(Clone)]
struct Sender(http2::SendRequest<Body>);

impl Service<Request<Body>> for Sender {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links")
            .field("address", &self.address)
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}

/// How long it may take until the server's certificate is checked.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How often, while requests are under way, the server is asked whether it lives, and how long it may take to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// A connection that nobody used for so long is not used again: on the way to it somebody may have forgotten it, and
/// between two renewals are hours.
const MAX_REST: Duration = Duration::from_secs(30);
/// The largest answer: a chain of ten certificates takes a tenth of it.
const MAX_ANSWER: usize = 256 * 1024;
/// The largest list of headers or trailers.
const MAX_HEADERS: u32 = 16 * 1024;
/// HTTP/2 over TLS (RFC 9113 §3.2).
const ALPN_H2: &[u8] = b"h2";
