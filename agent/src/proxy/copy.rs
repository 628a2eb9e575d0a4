//! Moves bytes between two byte streams until both directions have ended, and keeps their endings apart: a half-close
//! stays a half-close, and everything else ends both sides as a reset.

use std::{future::Future, io, sync::atomic::AtomicU64, sync::atomic::Ordering::Relaxed};

use bytes::{Bytes, BytesMut};
use prometheus_client::metrics::counter::Counter;
use tokio::{io::Interest, net::TcpStream};

use crate::{
    hbone::{TunnelError, TunnelReceiver, TunnelSender},
    mesh::Reason,
};

/// Why a copy ended before both of its directions did.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    /// The near application's socket failed; mostly a reset.
    #[error("the local application's connection failed: {0}")]
    Local(#[source] io::Error),
    /// The far side failed.
    #[error("the connection to the destination failed: {0}")]
    Plain(#[source] io::Error),
    /// The tunnel failed, or its stream was reset.
    #[error("the tunnel failed: {0}")]
    Tunnel(#[from] TunnelError),
}

impl CopyError {
    /// Returns what the log and the metrics call it.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Local(_) | Self::Plain(_) => Reason::Reset,
            Self::Tunnel(error) => error.reason(),
        }
    }
}

/// Counts one direction, for the connection's log line and for the metric that all connections of its kind share.
#[derive(Debug, Default)]
pub(super) struct Meter {
    bytes: AtomicU64,
    total: std::sync::OnceLock<Counter>,
}

impl Meter {
    /// Adds to `total` from now on.
    pub(super) fn count_into(&self, total: Counter) {
        let _ = self.total.set(total);
    }

    /// Returns the bytes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
        if let Some(total) = self.total.get() {
            total.inc_by(bytes as u64);
        }
    }
}

/// Where bytes come from.
pub(super) trait Source {
    /// Returns the next bytes; none once the other side has ended its direction in good order.
    fn recv(&mut self) -> impl Future<Output = Result<Option<Bytes>, CopyError>> + Send;
    /// Returns when the other side is gone, so that a reset is noticed while nobody takes what it has sent.
    fn broken(&mut self) -> impl Future<Output = CopyError> + Send;
}

/// Where bytes go.
pub(super) trait Sink {
    /// Takes all of the bytes, waiting while the other side does.
    fn send(&mut self, bytes: Bytes) -> impl Future<Output = Result<(), CopyError>> + Send;
    /// Ends this direction in good order.
    fn finish(&mut self) -> impl Future<Output = Result<(), CopyError>> + Send;
    /// Returns when the other side is gone, so that a reset is noticed while there is nothing to send.
    fn broken(&mut self) -> impl Future<Output = CopyError> + Send;
}

/// Copies both ways between `near` and `far` until both directions have ended.
///
/// # Errors
/// The first failure of either side. The caller then drops both, which resets them.
pub(super) async fn copy(
    near: (impl Source, impl Sink),
    far: (impl Source, impl Sink),
    up: &Meter,
    down: &Meter,
) -> Result<(), CopyError> {
    let (near_source, near_sink) = near;
    let (far_source, far_sink) = far;
    tokio::try_join!(half(near_source, far_sink, up), half(far_source, near_sink, down))?;
    Ok(())
}

async fn half(mut source: impl Source, mut sink: impl Sink, meter: &Meter) -> Result<(), CopyError> {
    loop {
        let chunk = tokio::select! {
            biased;
            chunk = source.recv() => chunk?,
            error = sink.broken() => return Err(error),
        };
        let Some(chunk) = chunk else { return sink.finish().await };
        let bytes = chunk.len();
        // The other half watches this source too, as its sink, but only until it has finished.
        tokio::select! {
            biased;
            sent = sink.send(chunk) => sent?,
            error = source.broken() => return Err(error),
        }
        meter.add(bytes);
    }
}

/// Which side of a connection a TCP socket is, for the error's text.
#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    /// The application on this node.
    Local,
    /// A destination outside the mesh.
    Plain,
}

impl Side {
    fn error(self, error: io::Error) -> CopyError {
        match self {
            Self::Local => CopyError::Local(error),
            Self::Plain => CopyError::Plain(error),
        }
    }
}

/// Splits a TCP socket into the two halves of a copy.
pub(super) fn tcp(stream: &TcpStream, side: Side) -> (TcpSource<'_>, TcpSink<'_>) {
    (TcpSource { stream, side, size: MIN_READ }, TcpSink { stream, side })
}

/// The reading half of a TCP socket. Holds no buffer while there is nothing to read, so an idle connection costs none.
pub(super) struct TcpSource<'a> {
    stream: &'a TcpStream,
    side: Side,
    size: usize,
}

/// The writing half of a TCP socket.
pub(super) struct TcpSink<'a> {
    stream: &'a TcpStream,
    side: Side,
}

/// The smallest read: a request of a few hundred bytes must not cost the memory of a bulk transfer.
const MIN_READ: usize = 4 * 1024;
/// The largest read: 16 TLS records (RFC 8446 §5.1: 2^14 bytes each), beyond which larger reads no longer paid.
const MAX_READ: usize = 256 * 1024;

impl Source for TcpSource<'_> {
    async fn recv(&mut self) -> Result<Option<Bytes>, CopyError> {
        loop {
            self.stream.readable().await.map_err(|error| self.side.error(error))?;
            let mut buffer = BytesMut::with_capacity(self.size);
            match self.stream.try_read_buf(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(read) => {
                    if read == self.size {
                        self.size = (self.size * 4).min(MAX_READ);
                    } else if read < self.size / 4 {
                        self.size = (self.size / 4).max(MIN_READ);
                    }
                    return Ok(Some(buffer.freeze()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(self.side.error(error)),
            }
        }
    }

    async fn broken(&mut self) -> CopyError {
        broken(self.stream, self.side).await
    }
}

impl Sink for TcpSink<'_> {
    async fn send(&mut self, mut bytes: Bytes) -> Result<(), CopyError> {
        while !bytes.is_empty() {
            match self.stream.try_write(&bytes) {
                Ok(written) => drop(bytes.split_to(written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stream.writable().await.map_err(|error| self.side.error(error))?;
                }
                Err(error) => return Err(self.side.error(error)),
            }
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), CopyError> {
        socket2::SockRef::from(self.stream)
            .shutdown(std::net::Shutdown::Write)
            .map_err(|error| self.side.error(error))
    }

    async fn broken(&mut self) -> CopyError {
        broken(self.stream, self.side).await
    }
}

/// Returns when the socket is reset, also while nobody reads or writes it.
async fn broken(stream: &TcpStream, side: Side) -> CopyError {
    // EPOLLERR: the kernel sets it with `sk_err`, when a reset arrives.
    let error = match stream.ready(Interest::ERROR).await {
        Ok(_) => stream.take_error().ok().flatten(),
        Err(error) => Some(error),
    };
    side.error(error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()))
}

impl Source for TunnelReceiver {
    async fn recv(&mut self) -> Result<Option<Bytes>, CopyError> {
        Ok(Self::recv(self).await.transpose()?)
    }

    async fn broken(&mut self) -> CopyError {
        self.closed().await.into()
    }
}

/// The sending half of a tunnel, as a copy's sink: its good end takes it away.
pub(super) struct TunnelSink(pub(super) Option<TunnelSender>);

impl Sink for TunnelSink {
    async fn send(&mut self, bytes: Bytes) -> Result<(), CopyError> {
        match &mut self.0 {
            Some(sender) => Ok(sender.send(bytes).await?),
            None => unreachable!("a copy does not send after it has finished"),
        }
    }

    async fn finish(&mut self) -> Result<(), CopyError> {
        if let Some(sender) = self.0.take() {
            sender.finish();
        }
        Ok(())
    }

    async fn broken(&mut self) -> CopyError {
        match &mut self.0 {
            Some(sender) => sender.closed().await.into(),
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// Two ends of a TCP connection. The second has linger 0, as the agent's sockets have.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (agent, _) = listener.accept().await.unwrap();
        socket2::SockRef::from(&agent).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        (near, agent)
    }

    /// Carries two connections in a task, as a connection's own task does, and returns their outer ends.
    async fn carried() -> (TcpStream, TcpStream, tokio::task::JoinHandle<(Result<(), CopyError>, u64, u64)>) {
        let (client, near) = pair().await;
        let (server, far) = pair().await;
        let task = tokio::spawn(async move {
            let (up, down) = (Meter::default(), Meter::default());
            let ends = (tcp(&near, Side::Local), tcp(&far, Side::Plain));
            let result = copy(ends.0, ends.1, &up, &down).await;
            (result, up.bytes(), down.bytes())
        });
        (client, server, task)
    }

    #[tokio::test]
    async fn a_half_close_leaves_the_other_direction_open() {
        let (mut client, mut server, task) = carried().await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut text = String::new();
        server.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        server.write_all(b"a longer answer").await.unwrap();
        drop(server);
        text.clear();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "a longer answer");
        let (result, up, down) = task.await.unwrap();
        result.unwrap();
        assert_eq!((up, down), (8, 15));
    }

    #[tokio::test]
    async fn a_reset_reaches_the_other_side_as_a_reset_also_while_idle() {
        let (client, mut server, task) = carried().await;
        socket2::SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(client);
        let error = server.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(task.await.unwrap().0.unwrap_err().reason(), Reason::Reset);
    }

    #[tokio::test]
    async fn a_reset_after_a_half_close_is_noticed() {
        let (mut client, mut server, task) = carried().await;
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0);
        socket2::SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(client);
        assert_eq!(task.await.unwrap().0.unwrap_err().reason(), Reason::Reset);
    }

    #[tokio::test]
    async fn a_reset_is_noticed_while_the_other_side_does_not_read() {
        let (mut client, server, task) = carried().await;
        let flood = vec![7; 1 << 20];
        // Until nobody takes any more: the copy then waits for room toward the server.
        while tokio::time::timeout(std::time::Duration::from_millis(200), client.write_all(&flood))
            .await
            .is_ok()
        {}
        socket2::SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(client);
        assert_eq!(task.await.unwrap().0.unwrap_err().reason(), Reason::Reset);
        drop(server);
    }

    #[tokio::test]
    async fn a_reset_is_noticed_while_the_other_side_has_ended_and_does_not_read() {
        let (mut client, mut server, task) = carried().await;
        server.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0);
        let flood = vec![7; 1 << 20];
        while tokio::time::timeout(std::time::Duration::from_millis(200), client.write_all(&flood))
            .await
            .is_ok()
        {}
        socket2::SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(client);
        assert_eq!(task.await.unwrap().0.unwrap_err().reason(), Reason::Reset);
        drop(server);
    }
}
