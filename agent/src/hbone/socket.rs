//! A connection's socket, whose end loses nothing, whichever end is the first.
//!
//! HTTP/2 writes while it reads: windows are opened again for what has come, also once nothing more will. Where the peer has
//! closed its socket by then it answers with a reset, and what was on its way to us is lost, or lies unread in a socket that
//! reports an error (RFC 1122 §4.2.2.13). Hence both of these:
//!
//! - Who closes waits until the other end has closed too, for [`LINGER`] at the most, and takes what it still sends.
//! - What a peer that has closed does not take is dropped: it does not matter any more. Its last words are still read, and
//!   only then is the error reported.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

/// How long a socket that was closed for writing waits for its peer to do the same.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// A TCP socket of a tunnel's connection.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    /// Why nothing is written any more. The socket is dead then: what it has received can be read, and no more comes.
    deaf: Option<io::Error>,
    closing: Closing,
}

/// How far the socket's end has come.
#[derive(Debug)]
enum Closing {
    Open,
    Waiting(Pin<Box<Sleep>>),
    Over,
}

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, deaf: None, closing: Closing::Open }
    }

    /// Takes the outcome of a write of `len` bytes.
    fn written(&mut self, outcome: Poll<io::Result<usize>>, len: usize) -> Poll<io::Result<usize>> {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        Poll::Ready(match ready!(outcome) {
            Err(error) if matches!(error.kind(), BrokenPipe | ConnectionReset) => {
                self.deaf = Some(error);
                Ok(len)
            }
            outcome => outcome,
        })
    }

    /// Takes what still comes until the peer has closed.
    fn poll_peers_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let mut discarded = [0; 4096];
            let mut discarded = ReadBuf::new(&mut discarded);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut discarded)) {
                Ok(()) if !discarded.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
    }
}

#[cfg(test)]
impl Socket {
    /// Whether the peer takes what is written, for all that is known.
    pub(super) fn is_heard(&self) -> bool {
        self.deaf.is_none()
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let outcome = ready!(Pin::new(&mut this.stream).poll_read(cx, buf));
        let at_end = buf.filled().len() == before && buf.remaining() > 0;
        // The kernel tells the error once, and an end from then on.
        Poll::Ready(this.deaf.take_if(|_| outcome.is_ok() && at_end).map_or(outcome, Err))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.deaf.is_some() {
            return Poll::Ready(Ok(buf.len()));
        }
        let outcome = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.written(outcome, buf.len())
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // TCP holds nothing back
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Closing::Open = this.closing {
            let shutdown = ready!(Pin::new(&mut this.stream).poll_shutdown(cx));
            // Of a socket that is dead there is nothing to wait for.
            this.closing = match shutdown {
                Ok(()) => Closing::Waiting(Box::pin(sleep(LINGER))),
                Err(_) => Closing::Over,
            };
        }
        if let Closing::Waiting(patience) = &mut this.closing {
            if patience.as_mut().poll(cx).is_pending() {
                ready!(this.poll_peers_end(cx));
            }
            this.closing = Closing::Over;
        }
        Poll::Ready(Ok(()))
    }
}
