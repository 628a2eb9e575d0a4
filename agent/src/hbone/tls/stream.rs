//! A socket with TLS on it, as h2 knows one.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustls::CommonState;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::session::{Read, Session};

/// A stream whose handshake is over. Dropped, it ends without close_notify.
pub(in crate::hbone) struct TlsStream<S> {
    pub(super) socket: S,
    pub(super) session: Session,
    /// Bytes that the socket gave since it last had no more.
    turn: usize,
}

/// Bytes that are read before whoever they are for must have had a turn. Who reads on for as long as there is something to
/// read fills the window of a tunnel, and its sender waits until all of that has left the processor's cache again.
const TURN: usize = 64 * 1024;

impl<S> TlsStream<S> {
    pub(super) fn new(socket: S, session: Session) -> Self {
        Self { socket, session, turn: 0 }
    }

    /// Returns what the handshake came to: the peer's certificates, ALPN.
    pub(in crate::hbone) fn session(&self) -> &CommonState {
        self.session.state()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Has the socket take what is unsent.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.session.unsent().is_empty() {
            let sent = ready!(Pin::new(&mut self.socket).poll_write(cx, self.session.unsent()))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.session.sent(sent);
        }
        Poll::Ready(Ok(()))
    }

    /// Has the socket give more; `false` where it has ended.
    pub(super) fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut room = ReadBuf::new(self.session.room()?);
        let outcome = Pin::new(&mut self.socket).poll_read(cx, &mut room);
        let received = room.filled().len();
        self.session.receive(received);
        outcome.map_ok(|()| received > 0)
    }

    /// As [`Self::poll_receive`], in turns with the other tasks of the thread.
    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.turn >= TURN {
            self.turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = self.session.waiting();
        let outcome = self.poll_receive(cx);
        self.turn = match outcome {
            Poll::Ready(_) => self.turn + self.session.waiting().saturating_sub(before),
            Poll::Pending => 0,
        };
        outcome
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let read = this.session.read(buf);
            // An alert, or the answer to a request of the peer's. What is wrong with the socket, a reader need not know:
            // the alert that says why the peer closed it may still be there to be read.
            let _ = this.poll_send(cx);
            match read? {
                Read::Some | Read::End => return Poll::Ready(Ok(())),
                Read::Starved if ready!(this.poll_take(cx))? => {}
                // RFC 8446 §6.1: what was read may be only a part of what was sent.
                Read::Starved => return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, CUT))),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.session.check()?;
        // What was taken before comes first, and there is never more than one write's worth of it.
        ready!(this.poll_send(cx))?;
        let written = this.session.write(bufs);
        match (this.poll_send(cx), written) {
            (_, Err(error)) | (Poll::Ready(Err(error)), Ok(_)) => Poll::Ready(Err(error)),
            (_, Ok(written)) => Poll::Ready(Ok(written)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.session.check()?;
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let closed = this.session.close();
        let sent = ready!(this.poll_send(cx));
        let shutdown = match ready!(Pin::new(&mut this.socket).poll_shutdown(cx)) {
            // The peer was faster.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            shutdown => shutdown,
        };
        Poll::Ready(closed.and(sent).and(shutdown))
    }
}

impl<S> fmt::Debug for TlsStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream").finish_non_exhaustive()
    }
}

const CUT: &str = "the peer closed the connection without TLS's close_notify";
