//! The server's side: TLS, HTTP/2, and the CONNECT requests that may be answered at all.
//!
//! What a hostile client can make the agent hold is bounded, a connection at a time: [`MAX_STREAMS`] tunnels and as
//! many again whose reset the agent is still dealing with (CVE-2023-44487: a reset frees the client's stream at once,
//! but not the agent's work), windows as in the [module's documentation](super), 64 KiB of header, a deadline for the
//! handshake, and a PING that must be answered.

use std::{
    future::{Future, pending, poll_fn},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream,
    server::{Builder, Connection, SendResponse},
};
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, header::FORWARDED};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{
    Loss, MAX_FRAME, RECENT_RESETS, SEND_BUFFER, STREAM_WINDOW, ServeError, Tunnel, TunnelError,
    dialect::Dialect,
    keepalive,
    link::{Lease, Link},
    request::{self, BAGGAGE, Target},
    socket::Socket,
    tls::{self, TlsStream},
};
use crate::{
    identity::{Ground, Lapsed, Standing, Svid, TlsError, Usage, peer_identity, reached},
    mesh::Identity,
};

/// One client's connection, authenticated. It lives only while [`Self::next`] is polled.
pub struct ServerConnection {
    peer: Identity,
    http: Http<TlsStream<Socket>>,
}

/// A CONNECT that waits for its answer. Dropped without one, it is reset.
#[derive(Debug)]
pub struct Incoming {
    request: Request<()>,
    target: Target,
    respond: SendResponse<Bytes>,
    body: RecvStream,
    lease: Lease,
}

/// Does the TLS handshake, takes the client's identity from its certificate, and begins HTTP/2, all under one deadline
/// of [`HANDSHAKE`].
///
/// # Errors
/// Where the client has no certificate of this trust domain, does not speak HTTP/2, or takes too long.
pub async fn accept(stream: TcpStream, svid: Arc<Svid>) -> Result<ServerConnection, ServeError> {
    let handshake = async {
        let local = stream.local_addr().map_err(ServeError::Io)?.ip();
        // Without it a small frame may wait for the ACK of the one before.
        stream.set_nodelay(true).map_err(ServeError::Io)?;
        let ground = Ground::new(&svid, Usage::Client);
        let tls = match tls::accept(svid.server_config(), Socket::new(stream)).await {
            Ok(tls) => tls,
            Err((error, mut socket)) => {
                // It is to read why, and no stranger is waited for as long as a peer.
                let _ = timeout(LINGER, socket.shutdown()).await;
                return Err(ServeError::Tls(TlsError::from_io(&error)));
            }
        };
        let session = tls.session();
        let peer = peer_identity(session).map_err(ServeError::Tls)?;
        // A server serves both dialects alike.
        if Dialect::of(session.alpn_protocol()).is_none() {
            return Err(ServeError::Protocol("it did not offer h2 by ALPN".to_owned()));
        }
        let standing = ground.stand(session);
        let mut http = Http::handshake(tls, local).await?;
        http.stand_on(standing);
        Ok(ServerConnection { peer, http })
    };
    timeout(HANDSHAKE, handshake).await.unwrap_or(Err(ServeError::HandshakeTimeout(HANDSHAKE)))
}

impl ServerConnection {
    /// Returns who the client is, by its certificate.
    pub fn peer_identity(&self) -> &Identity {
        &self.peer
    }

    /// Returns the next CONNECT; `None` once the connection is over. Requests that are no HBONE are answered here.
    ///
    /// This drives the whole connection, its tunnels and its PINGs included: poll it until it returns `None` or an
    /// error. It may be cancelled and called again.
    ///
    /// # Errors
    /// Where the client broke HTTP/2, was lost, is silent, or one of the two certificates is no longer good. The
    /// connection is over then, and so are its tunnels.
    pub async fn next(&mut self) -> Option<Result<Incoming, ServeError>> {
        self.http.next().await
    }

    /// Tells the client to open no further tunnels here (GOAWAY, RFC 9113 §6.8); [`Self::next`] goes on until the
    /// tunnels that exist have ended.
    pub fn graceful_shutdown(&mut self) {
        self.http.graceful_shutdown();
    }

    /// Ends the connection at once; its tunnels end with `loss`.
    pub fn abort(&mut self, loss: Loss) {
        self.http.close(loss);
    }

    /// Returns the number of tunnels, those included that are not yet answered.
    pub fn tunnels(&self) -> usize {
        self.http.link.tunnels()
    }
}

impl Incoming {
    /// Returns the authority as the client wrote it.
    pub fn authority(&self) -> &str {
        self.request.uri().authority().map_or("", |authority| authority.as_str())
    }

    /// Returns the address that is asked for: the pod's own, canonical; `None` where the authority is a name.
    pub fn target(&self) -> Option<SocketAddr> {
        match self.target {
            Target::Address(address) => Some(address),
            Target::Name => None,
        }
    }

    /// Returns what the client says of its workload. Not authenticated.
    pub fn baggage(&self) -> Option<&str> {
        text(self.request.headers(), &BAGGAGE)
    }

    /// Returns who the client says the original client is. Not authenticated.
    pub fn forwarded(&self) -> Option<&str> {
        text(self.request.headers(), &FORWARDED)
    }

    /// Returns the original client's address, where [`Self::forwarded`] names one (RFC 7239 §4). Not authenticated.
    pub fn forwarded_for(&self) -> Option<SocketAddr> {
        request::forwarded_for(self.forwarded()?)
    }

    /// Waits until the client gives the request up. May be cancelled and called again.
    pub async fn cancelled(&mut self) -> TunnelError {
        let outcome = poll_fn(|cx| self.respond.poll_reset(cx)).await;
        match (outcome, self.lease.link().loss()) {
            (_, Some(loss)) => TunnelError::Lost(loss),
            (Ok(code), None) => TunnelError::Reset(code),
            (Err(error), None) => TunnelError::of(&error, None),
        }
    }

    /// Answers 200.
    ///
    /// # Errors
    /// Where the client has given the request up, or is lost.
    pub fn accept(self) -> Result<Tunnel, TunnelError> {
        let Self { request: _, target: _, mut respond, body, lease } = self;
        let send = respond.send_response(Response::new(()), false);
        match send {
            Ok(send) => Ok(Tunnel::new(send, body, lease)),
            Err(error) => Err(TunnelError::of(&error, lease.link().loss())),
        }
    }

    /// Answers with `status` and ends the stream: 401 where policy denies, 503 where the application cannot be reached.
    pub fn refuse(self, status: StatusCode) {
        let Self { request: _, target: _, respond, body: _body, lease: _lease } = self;
        answer(respond, status);
    }
}

/// The HTTP/2 part, over any transport.
pub(super) struct Http<IO> {
    local: IpAddr,
    link: Arc<Link>,
    /// `None` once the connection is over.
    open: Option<Open<IO>>,
}

struct Open<IO> {
    connection: Connection<IO, Bytes>,
    silent: Pin<Box<dyn Future<Output = ()> + Send>>,
    lapsed: Pin<Box<dyn Future<Output = Lapsed> + Send>>,
    /// Half of what the certificates leave it is over; none once the client was told.
    stale: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Http<IO> {
    /// Waits for the client's preface; the caller sets the deadline.
    pub(super) async fn handshake(io: IO, local: IpAddr) -> Result<Self, ServeError> {
        let mut connection = Builder::new()
            .max_concurrent_streams(MAX_STREAMS)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(STREAM_WINDOW * MAX_STREAMS)
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(HEADER_LIST)
            .max_send_buffer_size(SEND_BUFFER)
            // h2 ends the connection for 20 otherwise: a client whose application gives up that many at once is no
            // attacker, and its other tunnels are innocent.
            .max_pending_accept_reset_streams(MAX_STREAMS as usize)
            .max_concurrent_reset_streams(RECENT_RESETS)
            .max_local_error_reset_streams(Some(RECENT_RESETS))
            .handshake(io)
            .await?;
        let silent = Box::pin(keepalive::lost(connection.ping_pong()));
        let open = Open { connection, silent, lapsed: Box::pin(pending()), stale: None };
        Ok(Self { local, link: Link::new(), open: Some(open) })
    }

    /// Ends the connection when what it stands on is no longer good, and takes no new tunnels when half of that time is
    /// over.
    fn stand_on(&mut self, standing: Standing) {
        let Some(open) = &mut self.open else { return };
        open.stale = Some(Box::pin(reached(standing.fresh_until())));
        open.lapsed = Box::pin(standing.lapsed());
    }

    /// See [`ServerConnection::next`].
    pub(super) async fn next(&mut self) -> Option<Result<Incoming, ServeError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Incoming, ServeError>>> {
        loop {
            let Some(open) = &mut self.open else { return Poll::Ready(None) };
            let step = open.connection.poll_accept(cx);
            let over = match step {
                Poll::Pending => match open.poll_end(cx) {
                    Poll::Ready(over) => Some(over),
                    Poll::Pending if open.is_stale(cx) => {
                        open.connection.graceful_shutdown();
                        continue;
                    }
                    Poll::Pending => return Poll::Pending,
                },
                Poll::Ready(Some(Err(error))) => Some((Loss::of(&error), error.into())),
                Poll::Ready(Some(Ok((request, respond)))) => match self.admit(request, respond) {
                    Some(incoming) => return Poll::Ready(Some(Ok(incoming))),
                    None => continue,
                },
                Poll::Ready(None) => None,
            };
            self.close(over.as_ref().map_or(Loss::Closed, |(loss, _)| *loss));
            return Poll::Ready(over.map(|(_, error)| Err(error)));
        }
    }

    /// Answers what is no HBONE, and refuses what is too much; returns the rest.
    fn admit(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Option<Incoming> {
        let lease = self.link.lease();
        if self.link.tunnels() > MAX_WORK {
            // A client may send it again elsewhere or later (RFC 9113 §8.7).
            respond.send_reset(Reason::REFUSED_STREAM);
            return None;
        }
        let (head, body) = request.into_parts();
        let request = Request::from_parts(head, ());
        let Some(target) = request::target(&request, self.local) else {
            answer(respond, StatusCode::BAD_REQUEST);
            return None;
        };
        Some(Incoming { request, target, respond, body, lease })
    }

    fn graceful_shutdown(&mut self) {
        if let Some(open) = &mut self.open {
            open.connection.graceful_shutdown();
        }
    }

    fn close(&mut self, loss: Loss) {
        self.link.lose(loss);
        self.open = None;
    }
}

impl<IO> Open<IO> {
    /// Whether the connection is over for a reason that HTTP/2 does not know of.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<(Loss, ServeError)> {
        if let Poll::Ready(lapsed) = self.lapsed.as_mut().poll(cx) {
            return Poll::Ready((Loss::Lapsed(lapsed.lapse), lapsed.into()));
        }
        self.silent.as_mut().poll(cx).map(|()| (Loss::Silent, ServeError::Silent(keepalive::ANSWER)))
    }

    /// Whether the client is to be told now that it is to open no more tunnels; once.
    fn is_stale(&mut self, cx: &mut Context<'_>) -> bool {
        let stale = self.stale.as_mut().is_some_and(|stale| stale.as_mut().poll(cx).is_ready());
        if stale {
            self.stale = None;
        }
        stale
    }
}

impl<IO> Drop for Http<IO> {
    fn drop(&mut self) {
        // Tunnels that outlive the connection are told why they end.
        self.link.lose(Loss::Closed);
    }
}

/// Answers and ends the stream; h2 then resets what the client might still send (RFC 9113 §8.1).
fn answer(mut respond: SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    // It fails only where the client has given the request up.
    let _ = respond.send_response(response, true);
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// For TCP accepted to HTTP/2's preface read.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a client that was refused is listened to.
const LINGER: Duration = Duration::from_millis(500);

/// Concurrent tunnels of one connection (hbone.md: ztunnel's server says the same).
pub const MAX_STREAMS: u32 = 200;

/// Requests of one connection that the agent works on at once, those included that the client has reset.
const MAX_WORK: usize = 2 * MAX_STREAMS as usize;

/// Bytes of header fields that a request may have (hbone.md).
const HEADER_LIST: u32 = 64 * 1024;
