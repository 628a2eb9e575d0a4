//! The handshakes of both ends. Their deadline is the caller's.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    session::{Session, wrap},
    stream::TlsStream,
};

/// Does the handshake of a client. It is over before the server has judged the client's certificate: a refusal is an
/// error of the first read (RFC 8446 §4.4.4).
///
/// # Errors
/// Where this end refuses the server, the server refuses the handshake, or the socket fails. What rustls says is in the
/// error, as `tokio_rustls` would have it.
pub(in crate::hbone) async fn connect<S>(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    socket: S,
) -> io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let session = Session::client(config, name).map_err(wrap)?;
    run(TlsStream::new(socket, session)).await.map_err(|(error, _)| error)
}

/// Does the handshake of a server.
///
/// # Errors
/// As [`connect`], with the socket: the client is still to read the alert.
pub(in crate::hbone) async fn accept<S>(
    config: Arc<ServerConfig>,
    socket: S,
) -> Result<TlsStream<S>, (io::Error, S)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match Session::server(config) {
        Ok(session) => run(TlsStream::new(socket, session)).await,
        Err(error) => Err((wrap(error), socket)),
    }
}

async fn run<S>(mut stream: TlsStream<S>) -> Result<TlsStream<S>, (io::Error, S)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Err(error) = poll_fn(|cx| stream.poll_handshake(cx)).await else { return Ok(stream) };
    // The alert. Where it cannot be sent, that is the lesser of the two errors.
    let _ = poll_fn(|cx| stream.poll_send(cx)).await;
    Err((error, stream.socket))
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let over = self.session.shake_hands()?;
            ready!(self.poll_send(cx))?;
            if over {
                return Pin::new(&mut self.socket).poll_flush(cx);
            }
            ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
            if !ready!(self.poll_receive(cx))? {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the peer ended the TLS handshake",
                )));
            }
        }
    }
}
