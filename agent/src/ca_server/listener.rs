//! The server's connections: TLS, HTTP/2, and bounds for what a stranger can hold.

use std::{collections::VecDeque, convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tonic::{
    Status,
    body::Body,
    codegen::BoxFuture,
    server::{Grpc, UnaryService},
};
use tonic_prost::ProstCodec;

use super::service::CaService;
use crate::{
    identity::ca::istio::{CREATE_CERTIFICATE, CertificateRequest, CertificateResponse},
    shutdown::Shutdown,
};

/// Serves until the shutdown drains; what is under way then is answered.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    service: Arc<CaService>,
    shutdown: Shutdown,
) {
    let acceptor = TlsAcceptor::from(tls);
    let mut connections = VecDeque::<AbortHandle>::with_capacity(MAX_CONNECTIONS);
    loop {
        let accepted = tokio::select! {
            () = shutdown.drain().cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                back_off(&error).await;
                continue;
            }
        };
        connections.retain(|connection| !connection.is_finished());
        // The oldest makes room: whoever holds connections open must not keep the others out, and a request is done
        // long before so many others have come.
        if connections.len() == MAX_CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        let connection = connection(stream, remote, acceptor.clone(), Arc::clone(&service), shutdown.clone());
        connections.push_back(shutdown.tasks().spawn(connection).abort_handle());
    }
}

async fn back_off(error: &io::Error) {
    tracing::warn!(%error, "a connection cannot be accepted: is the limit of open files too low?");
    sleep(Duration::from_millis(100)).await;
}

async fn connection(
    stream: TcpStream,
    remote: SocketAddr,
    acceptor: TlsAcceptor,
    service: Arc<CaService>,
    shutdown: Shutdown,
) {
    let _open = Open::new(&service);
    let handshake = async {
        stream.set_nodelay(true)?;
        acceptor.accept(stream).await
    };
    let stream = match timeout(HANDSHAKE_LIMIT, handshake).await {
        Ok(Ok(stream)) => stream,
        failed => {
            service.metrics.handshakes_failed.inc();
            let error = failed.map_or("it took too long".to_owned(), |failed| {
                failed.err().map(|error| error.to_string()).unwrap_or_default()
            });
            tracing::debug!(%remote, error, "no TLS");
            return;
        }
    };
    let answering = service_fn(move |request| answer(Arc::clone(&service), remote, request));
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), answering);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = &mut connection => return,
        () = shutdown.drain().cancelled() => {}
        () = sleep(MAX_AGE) => {}
    }
    // What has been asked is answered, and what is new goes over another connection, perhaps to another server.
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        _ = timeout(REQUEST_LIMIT, connection) => {}
        () = shutdown.abort().cancelled() => {}
    }
}

async fn answer(
    service: Arc<CaService>,
    remote: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    if request.uri().path() != CREATE_CERTIFICATE {
        return Ok(
            Status::unimplemented("there is only istio.v1.auth.IstioCertificateService here").into_http()
        );
    }
    let mut grpc = Grpc::new(ProstCodec::default())
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(usize::MAX);
    let answering = grpc.unary(Create { service, remote }, request);
    Ok(timeout(REQUEST_LIMIT, answering)
        .await
        .unwrap_or_else(|_| Status::deadline_exceeded("the request took too long").into_http()))
}

/// The service's one method as tonic wants it.
struct Create {
    service: Arc<CaService>,
    remote: SocketAddr,
}

impl UnaryService<CertificateRequest> for Create {
    type Response = CertificateResponse;
    type Future = BoxFuture<tonic::Response<CertificateResponse>, Status>;

    fn call(&mut self, request: tonic::Request<CertificateRequest>) -> Self::Future {
        let (service, remote) = (Arc::clone(&self.service), self.remote);
        Box::pin(async move { service.create(remote, request).await })
    }
}

/// Counts a connection for as long as it is there.
struct Open(prometheus_client::metrics::gauge::Gauge);

impl Open {
    fn new(service: &CaService) -> Self {
        service.metrics.connections.inc();
        Self(service.metrics.connections.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Connections that may be open at once: an agent has one, for half a minute at a time.
const MAX_CONNECTIONS: usize = 4096;
/// How long a caller may take to become TLS.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long a request may take, its last byte included.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// After this a caller is to connect anew, so that it finds other servers and shows that it is still welcome.
const MAX_AGE: Duration = Duration::from_secs(5 * 60);
/// How often callers are asked whether they live, and how long they may take to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Requests at once on one connection.
const MAX_STREAMS: u32 = 100;
/// The largest list of headers: a token is a kilobyte or two.
const MAX_HEADERS: u32 = 32 * 1024;
/// The largest request: one with the largest key that is taken has four kilobytes.
const MAX_MESSAGE: usize = 32 * 1024;
