//! Moves bytes between two byte streams until both directions have ended, and keeps their endings apart: a half-close
//! stays a half-close, and everything else ends both sides as a reset.
//!
//! As with plain TCP, a side that has ended its direction well and then takes nothing more (it is closed; a reset answers
//! whatever is still sent to it) has said all it had to say: that is delivered, its end included, before the reset is.

use std::{
    future::{Future, pending, poll_fn},
    io,
    os::fd::AsRawFd as _,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::{Buf as _, Bytes, BytesMut};
use nix::{errno::Errno, sys::socket::MsgFlags};
use prometheus_client::metrics::counter::Counter;
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

use super::busy_poll;
use crate::{
    capture,
    hbone::{Finished, FirstBytes, TunnelError, TunnelReceiver, TunnelSender},
    mesh::Reason,
};

/// Why a copy ended before both of its directions did.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    /// The near application's socket failed; mostly a reset.
    #[error("the local application's connection failed: {0}")]
    Local(#[source] io::Error),
    /// The socket of the client of an application of this node failed.
    #[error("the client's connection failed: {0}")]
    Client(#[source] io::Error),
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
            Self::Local(_) | Self::Client(_) | Self::Plain(_) => Reason::Reset,
            Self::Tunnel(error) => error.reason(),
        }
    }

    /// Whether what the failing side said before may still have ended well; its own source knows then.
    fn spares_the_answer(&self) -> bool {
        match self {
            // What a reset is called that comes after the peer's FIN (net/ipv4/tcp_input.c, `tcp_reset`: CLOSE_WAIT).
            Self::Local(error) | Self::Client(error) | Self::Plain(error) => {
                error.kind() == io::ErrorKind::BrokenPipe
            }
            Self::Tunnel(TunnelError::Reset(_)) => true,
            Self::Tunnel(TunnelError::Lost(_)) => false,
        }
    }
}

/// Counts one direction, for the connection's log line and for the metric that all connections of its kind share: one of
/// each end that this agent reports.
#[derive(Debug, Default)]
pub(super) struct Meter {
    bytes: AtomicU64,
    totals: [OnceLock<Counter>; 2],
}

impl Meter {
    /// Adds to `total` from now on. There may be two.
    pub(super) fn count_into(&self, total: Counter) {
        let [first, second] = &self.totals;
        if let Err(total) = first.set(total) {
            let _ = second.set(total);
        }
    }

    /// Returns the bytes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.add_all(bytes as u64);
    }

    /// Adds what somebody else has counted.
    pub(super) fn add_all(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
        for total in self.totals.iter().filter_map(OnceLock::get) {
            total.inc_by(bytes);
        }
    }
}

/// Where bytes come from.
pub(super) trait Source {
    /// Returns the next bytes; none once the other side has ended its direction in good order.
    fn recv(&mut self) -> impl Future<Output = Result<Option<Bytes>, CopyError>> + Send;
    /// Returns when the other side is gone without having ended its direction, so that a reset is noticed while nobody
    /// takes what it has sent.
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
    /// Returns when dropping the sink, finished, takes nothing away from the other side.
    fn delivered(&mut self) -> impl Future<Output = ()> + Send;
}

/// Copies both ways between `near` and `far` until both directions have ended. Both are borrowed, for a future has room for an
/// argument and once more for what becomes of it: an idle connection mostly consists of that.
///
/// # Errors
/// The first failure of either side. The caller then drops both, which resets them.
pub(super) async fn copy(
    (near_source, near_sink): &mut (impl Source, impl Sink),
    (far_source, far_sink): &mut (impl Source, impl Sink),
    up: &Meter,
    down: &Meter,
) -> Result<(), CopyError> {
    let ended = tokio::try_join!(half(near_source, far_sink, up), half(far_source, near_sink, down))?;
    match ended {
        (Ok(()), Ok(())) => Ok(()),
        (Err(error), Ok(())) => {
            near_sink.delivered().await;
            Err(error)
        }
        (Ok(()), Err(error)) => {
            far_sink.delivered().await;
            Err(error)
        }
        (Err(error), Err(_)) => Err(error),
    }
}

/// Copies one direction. The inner error is the end of this direction alone.
async fn half(
    source: &mut impl Source,
    sink: &mut impl Sink,
    meter: &Meter,
) -> Result<Result<(), CopyError>, CopyError> {
    match pump(source, sink, meter).await? {
        Err(error) if !error.spares_the_answer() => Err(error),
        ended => Ok(ended),
    }
}

/// Moves bytes until the source has ended; the inner error is the sink's.
async fn pump(
    source: &mut impl Source,
    sink: &mut impl Sink,
    meter: &Meter,
) -> Result<Result<(), CopyError>, CopyError> {
    loop {
        let chunk = tokio::select! {
            biased;
            chunk = source.recv() => chunk?,
            error = sink.broken() => return Ok(Err(error)),
        };
        let Some(chunk) = chunk else { return Ok(sink.finish().await) };
        let bytes = chunk.len();
        // Apart from this future, most of which it would be, also while there is nothing to send.
        if let Err(error) = Box::pin(pass_on(source, sink, chunk)).await? {
            return Ok(Err(error));
        }
        meter.add(bytes);
        busy_poll::moved();
    }
}

/// Moves what the source had to the sink; the inner error is the sink's.
async fn pass_on(
    source: &mut impl Source,
    sink: &mut impl Sink,
    chunk: Bytes,
) -> Result<Result<(), CopyError>, CopyError> {
    // The other half watches this source too, as its sink, but only until it has finished.
    tokio::select! {
        biased;
        sent = sink.send(chunk) => Ok(sent),
        error = source.broken() => Err(error),
    }
}

/// Which side of a connection a TCP socket is, for the error's text.
#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    /// The application on this node.
    Local,
    /// The client of an application on this node.
    Client,
    /// A destination outside the mesh.
    Plain,
}

impl Side {
    fn error(self, error: io::Error) -> CopyError {
        match self {
            Self::Local => CopyError::Local(error),
            Self::Client => CopyError::Client(error),
            Self::Plain => CopyError::Plain(error),
        }
    }
}

/// Splits a TCP socket into the two halves of a copy.
pub(super) fn tcp(stream: &TcpStream, side: Side) -> (TcpSource<'_>, TcpSink<'_>) {
    let socket = Socket { stream, side, error: Arc::default() };
    (TcpSource { socket: socket.clone(), size: MIN_READ, ahead: None }, TcpSink { socket })
}

/// What both halves need: the kernel tells an error once only, to whoever asks first.
#[derive(Clone)]
struct Socket<'a> {
    stream: &'a TcpStream,
    side: Side,
    error: Arc<OnceLock<io::ErrorKind>>,
}

/// The reading half of a TCP socket. Holds no buffer while there is nothing to read, so an idle connection costs none.
pub(super) struct TcpSource<'a> {
    socket: Socket<'a>,
    size: usize,
    /// What was read before its turn.
    ahead: Option<Result<Option<Bytes>, CopyError>>,
}

/// The writing half of a TCP socket.
pub(super) struct TcpSink<'a> {
    socket: Socket<'a>,
}

/// The smallest read: a request of a few hundred bytes must not cost the memory of a bulk transfer.
const MIN_READ: usize = 4 * 1024;
/// The largest read: four TLS records (RFC 8446 §5.1: 2^14 bytes each). What is read in larger pieces leaves the processor's
/// cache before the next one in the chain takes it.
const MAX_READ: usize = 64 * 1024;

impl Socket<'_> {
    /// Says what an error means: the first is the cause, and what comes later its consequence.
    fn failed(&self, error: io::Error) -> CopyError {
        // The kernel says that there is no connection, and beside it why.
        let why = match error.kind() {
            io::ErrorKind::NotConnected => self.stream.take_error().ok().flatten(),
            _ => None,
        };
        let error = why.unwrap_or(error);
        let first = *self.error.get_or_init(|| error.kind());
        self.side.error(if first == error.kind() { error } else { first.into() })
    }

    /// Returns when the socket is reset, also while nobody reads or writes it.
    async fn broken(&self) -> CopyError {
        // EPOLLERR: the kernel sets it with `sk_err`, when a reset arrives.
        let error = match self.stream.ready(Interest::ERROR).await {
            Ok(_) => self.stream.take_error().ok().flatten(),
            Err(error) => Some(error),
        };
        self.failed(error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()))
    }
}

impl TcpSource<'_> {
    async fn read(&mut self) -> Result<Option<Bytes>, CopyError> {
        let socket = &self.socket;
        loop {
            // Not `readable`, whose future is three times as large, for a connection waits in it for most of its life.
            let readable = poll_fn(|cx| socket.stream.poll_read_ready(cx)).await;
            readable.map_err(|error| socket.failed(error))?;
            let mut buffer = BytesMut::with_capacity(self.size);
            let mut read = Err(io::ErrorKind::WouldBlock.into());
            // What is returned here only decides whether the socket is taken for readable still.
            let _ = socket.stream.try_io(Interest::READABLE, || {
                read = socket.stream.try_read_buf(&mut buffer);
                match read {
                    // Less than there was room for is all that there is (epoll(7)): no need to ask again for it.
                    Ok(read) if 0 < read && read < self.size => Err(io::ErrorKind::WouldBlock.into()),
                    _ => Ok(()),
                }
            });
            match read {
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
                Err(error) => return Err(socket.failed(error)),
            }
        }
    }

    /// Reads what is there already, also where tokio has not yet heard of it from the kernel: of a socket that has just been
    /// accepted.
    fn read_at_once(&self) -> Option<Result<Option<Bytes>, CopyError>> {
        let mut buffer = [0; MIN_READ];
        match nix::sys::socket::recv(self.socket.stream.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(0) => Some(Ok(None)),
            Ok(read) => Some(Ok(Some(Bytes::copy_from_slice(&buffer[..read])))),
            Err(Errno::EAGAIN | Errno::EINTR) => None,
            // Not to be asked again: the kernel tells it once.
            Err(error) => Some(Err(self.socket.failed(error.into()))),
        }
    }
}

impl FirstBytes for TcpSource<'_> {
    async fn first(&mut self) -> Bytes {
        if self.ahead.is_none() {
            self.ahead = Some(match self.read_at_once() {
                Some(read) => read,
                None => self.read().await,
            });
        }
        match &self.ahead {
            Some(Ok(Some(bytes))) => bytes.clone(),
            // For the copy to find.
            _ => pending().await,
        }
    }
}

impl Source for TcpSource<'_> {
    async fn recv(&mut self) -> Result<Option<Bytes>, CopyError> {
        match self.ahead.take() {
            Some(ahead) => ahead,
            None => self.read().await,
        }
    }

    async fn broken(&mut self) -> CopyError {
        let error = self.socket.broken().await;
        // The FIN came before: what is there can be read, and then the end.
        if error.spares_the_answer() { pending().await } else { error }
    }
}

impl Sink for TcpSink<'_> {
    async fn send(&mut self, mut bytes: Bytes) -> Result<(), CopyError> {
        let socket = &self.socket;
        while !bytes.is_empty() {
            match socket.stream.try_write(&bytes) {
                Ok(written) => drop(bytes.split_to(written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let writable = poll_fn(|cx| socket.stream.poll_write_ready(cx)).await;
                    writable.map_err(|error| socket.failed(error))?;
                }
                Err(error) => return Err(socket.failed(error)),
            }
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), CopyError> {
        SockRef::from(self.socket.stream)
            .shutdown(std::net::Shutdown::Write)
            .map_err(|error| self.socket.failed(error))
    }

    async fn broken(&mut self) -> CopyError {
        self.socket.broken().await
    }

    async fn delivered(&mut self) {
        // The kernel wakes whoever polls a socket when its FIN is acknowledged (net/ipv4/tcp_input.c,
        // `tcp_rcv_state_process`: FIN_WAIT1).
        let delivered = self.socket.stream.async_io(Interest::WRITABLE, || {
            match capture::is_delivered(self.socket.stream)? {
                true => Ok(()),
                false => Err(io::ErrorKind::WouldBlock.into()),
            }
        });
        tokio::select! {
            _ = delivered => {}
            _ = self.socket.broken() => {}
        }
    }
}

impl Source for TunnelReceiver {
    async fn recv(&mut self) -> Result<Option<Bytes>, CopyError> {
        Ok(Self::recv(self).await.transpose()?)
    }

    async fn broken(&mut self) -> CopyError {
        self.closed().await.into()
    }
}

/// The sending half of a tunnel, as a copy's sink.
pub(super) struct TunnelSink {
    sender: Option<TunnelSender>,
    finished: Option<Finished>,
    /// Bytes that the request has carried already: the first that come are those.
    early: usize,
}

impl TunnelSink {
    pub(super) fn new(sender: TunnelSender) -> Self {
        Self::after(sender, 0)
    }

    /// A sink of a tunnel that has sent the first `early` bytes already.
    pub(super) fn after(sender: TunnelSender, early: usize) -> Self {
        Self { sender: Some(sender), finished: None, early }
    }
}

impl Sink for TunnelSink {
    async fn send(&mut self, mut bytes: Bytes) -> Result<(), CopyError> {
        let early = self.early.min(bytes.len());
        self.early -= early;
        bytes.advance(early);
        match &mut self.sender {
            Some(sender) => Ok(sender.send(bytes).await?),
            None => unreachable!("a copy does not send after it has finished"),
        }
    }

    async fn finish(&mut self) -> Result<(), CopyError> {
        self.finished = self.sender.take().map(TunnelSender::finish);
        Ok(())
    }

    async fn broken(&mut self) -> CopyError {
        match &mut self.sender {
            Some(sender) => sender.closed().await.into(),
            None => pending().await,
        }
    }

    async fn delivered(&mut self) {
        if let Some(finished) = &mut self.finished {
            finished.sent().await;
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
        SockRef::from(&agent).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        (near, agent)
    }

    /// Carries two connections in a task, as a connection's own task does, and returns their outer ends.
    async fn carried() -> (TcpStream, TcpStream, tokio::task::JoinHandle<(Result<(), CopyError>, u64, u64)>) {
        let (client, near) = pair().await;
        let (server, far) = pair().await;
        let task = tokio::spawn(async move {
            let (up, down) = (Meter::default(), Meter::default());
            let mut ends = (tcp(&near, Side::Local), tcp(&far, Side::Plain));
            let result = copy(&mut ends.0, &mut ends.1, &up, &down).await;
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
    async fn what_was_read_ahead_is_read_again_in_its_turn() {
        let (mut client, agent) = pair().await;
        let (mut source, _sink) = tcp(&agent, Side::Local);
        client.write_all(b"first").await.unwrap();
        assert_eq!(source.first().await, "first");
        client.write_all(b"second").await.unwrap();
        assert_eq!(source.first().await, "first");
        client.shutdown().await.unwrap();
        for expected in ["first", "second"] {
            assert_eq!(source.recv().await.unwrap().unwrap(), expected);
        }
        assert!(source.recv().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn an_end_or_a_reset_that_was_met_while_reading_ahead_is_still_told() {
        for reset in [false, true] {
            let (client, agent) = pair().await;
            let (mut source, _sink) = tcp(&agent, Side::Local);
            if reset {
                SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
            }
            drop(client);
            agent.readable().await.unwrap();
            let nothing = tokio::time::timeout(std::time::Duration::from_millis(100), source.first()).await;
            assert!(nothing.is_err(), "there is no first byte");
            assert_eq!(source.recv().await.is_err(), reset);
        }
    }

    #[tokio::test]
    async fn a_reset_reaches_the_other_side_as_a_reset_also_while_idle() {
        let (client, mut server, task) = carried().await;
        SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
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
        SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
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
        SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
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
        SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(client);
        assert_eq!(task.await.unwrap().0.unwrap_err().reason(), Reason::Reset);
        drop(server);
    }

    #[tokio::test]
    async fn what_was_sent_and_ended_is_delivered_although_its_sender_takes_no_more() {
        for far_is_full in [false, true] {
            let (mut client, near) = pair().await;
            let (mut server, far) = small_pair().await;
            if far_is_full {
                // The copy then waits for room; else the kernel has all that the server does not take.
                SockRef::from(&far).set_send_buffer_size(1).unwrap();
            }
            let mut task = tokio::spawn(async move {
                let (up, down) = (Meter::default(), Meter::default());
                let result =
                    copy(&mut tcp(&near, Side::Local), &mut tcp(&far, Side::Plain), &up, &down).await;
                result.map_err(|error| error.reason())
            });
            // No more than the kernel takes at once, or the end would be held up behind it.
            let sent = vec![7; 48 * 1024];
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            wait_for_delivery(&client).await;
            drop(client);
            // Answered by a reset: nobody is there.
            server.write_all(b"answer").await.unwrap();
            let waiting = tokio::time::timeout(std::time::Duration::from_millis(200), &mut task).await;
            assert!(waiting.is_err(), "it ended before the server had all of it");
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            assert_eq!(got.len(), sent.len(), "full {far_is_full}");
            assert_eq!(task.await.unwrap(), Err(Reason::Reset));
        }
    }

    /// Two ends of a TCP connection, as [`pair`] makes them; the first takes little that it does not read.
    async fn small_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(8 * 1024).unwrap();
        let near = socket.connect(listener.local_addr().unwrap()).await.unwrap();
        let (agent, _) = listener.accept().await.unwrap();
        SockRef::from(&agent).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        (near, agent)
    }

    /// Waits until the other side's kernel has all that was sent, the end included.
    async fn wait_for_delivery(stream: &TcpStream) {
        while !capture::is_delivered(stream).unwrap() {
            tokio::task::yield_now().await;
        }
    }
}
