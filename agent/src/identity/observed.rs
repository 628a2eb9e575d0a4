//! A stream that remembers why TLS failed.
//!
//! In TLS 1.3 the client's handshake is over before the server has seen the client's certificate: a refusal arrives as
//! an alert in the first read (RFC 8446 §4.4.4). By then `h2` owns the stream, and it keeps only the text of an I/O
//! error. This wrapper keeps the error itself.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::TlsError;

/// A TLS stream whose first failure in TLS (not in TCP) can be read from a [`TlsFailure`].
#[derive(Debug)]
pub struct Observed<S> {
    stream: S,
    failure: TlsFailure,
}

/// Why TLS failed on an [`Observed`] stream, if it did. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct TlsFailure(Arc<OnceLock<TlsError>>);

impl TlsFailure {
    /// Returns the first failure.
    pub fn get(&self) -> Option<&TlsError> {
        self.0.get()
    }

    fn note<T>(&self, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &result {
            let error = TlsError::from_io(error);
            // A write that fails on a closed connection says less than the alert that the next read finds.
            if !matches!(error, TlsError::Io { .. }) {
                self.0.get_or_init(|| error);
            }
        }
        result
    }
}

impl<S> Observed<S> {
    /// Wraps a TLS stream, whose errors have those of rustls in them.
    pub fn new(stream: S) -> Self {
        Self { stream, failure: TlsFailure::default() }
    }

    /// Returns where the failure is to be found once the stream is given away.
    pub fn failure(&self) -> TlsFailure {
        self.failure.clone()
    }

    /// Returns the stream itself.
    pub fn stream(&self) -> &S {
        &self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Observed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.failure.note(result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Observed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.failure.note(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.failure.note(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.failure.note(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.failure.note(result)
    }
}
