//! One CONNECT stream, as either side sees it: bytes each way, half-close, reset.
//!
//! Half-close is END_STREAM and nothing else. A tunnel whose connection ends without it is an error to whoever reads,
//! for a peer that was killed must never look like a file that is complete. One that came stays good, whatever comes
//! after it: RST_STREAM then only says that the peer takes nothing more (RFC 9113 §8.1).

use std::{
    collections::VecDeque,
    future::{pending, poll_fn},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use tokio::sync::oneshot;

use super::{Loss, TunnelError, link::Lease};

/// A tunnel that both sides have agreed on.
#[derive(Debug)]
pub struct Tunnel {
    sender: TunnelSender,
    receiver: TunnelReceiver,
    early: usize,
}

/// The half that sends. Dropped without [`TunnelSender::finish`], it resets the tunnel.
#[derive(Debug)]
pub struct TunnelSender {
    stream: Arc<Stream>,
    ended: bool,
}

/// The half that receives. Dropped before the end of the stream was read, it resets the tunnel.
#[derive(Debug)]
pub struct TunnelReceiver {
    stream: Arc<Stream>,
    body: RecvStream,
    /// Bytes that were handed out and not yet given back to the peer's window.
    held: usize,
    /// What had come when the tunnel ended and was not received yet, and how it ended; no more than the window.
    rest: VecDeque<Bytes>,
    end: Option<Result<(), TunnelError>>,
}

/// What both halves need: either may have to reset the stream, and both keep the connection in use.
#[derive(Debug)]
struct Stream {
    send: Mutex<SendStream<Bytes>>,
    /// The sender has finished.
    finished: AtomicBool,
    lease: Lease,
}

impl Tunnel {
    pub(super) fn new(send: SendStream<Bytes>, body: RecvStream, lease: Lease) -> Self {
        let stream = Arc::new(Stream { send: Mutex::new(send), finished: AtomicBool::new(false), lease });
        Self {
            sender: TunnelSender { stream: stream.clone(), ended: false },
            receiver: TunnelReceiver { stream, body, held: 0, rest: VecDeque::new(), end: None },
            early: 0,
        }
    }

    /// Notes that so many bytes were sent with the request.
    pub(super) fn with_early(self, early: usize) -> Self {
        Self { early, ..self }
    }

    /// Returns how many bytes of [`FirstBytes`](super::FirstBytes) were sent with the request, and are not to be sent again.
    pub fn early(&self) -> usize {
        self.early
    }

    /// Takes the two directions apart, so that two tasks, or two arms of one, may drive them.
    pub fn split(self) -> (TunnelSender, TunnelReceiver) {
        (self.sender, self.receiver)
    }
}

impl TunnelSender {
    /// Sends `data`, without copying, as fast as the peer's windows allow; returns when all of it is queued.
    ///
    /// No more than [`super::SEND_BUFFER`] bytes of a tunnel wait in memory for the socket. A call that is cancelled
    /// may have sent a part of `data`; the tunnel is then good for nothing but a reset.
    ///
    /// # Errors
    /// Where the tunnel was reset or lost; it is useless from then on.
    pub async fn send(&mut self, mut data: Bytes) -> Result<(), TunnelError> {
        while !data.is_empty() {
            let mut claim = Claim { stream: &self.stream, settled: false };
            let room = poll_fn(|cx| claim.stream.poll_room(cx, data.len())).await?;
            claim.settled = true;
            let part = data.split_to(room.min(data.len()));
            let sent = self.stream.lock().send_data(part, false);
            sent.map_err(|error| self.stream.explain(&error))?;
        }
        Ok(())
    }

    /// Ends this direction cleanly: END_STREAM follows what was sent.
    pub fn finish(mut self) -> Finished {
        self.ended = true;
        self.stream.finished.store(true, Relaxed);
        let (queued, left) = oneshot::channel();
        let last = Bytes::from_owner(LastFrame { _queued: queued });
        // It fails only on a tunnel that was reset or lost, and whoever receives learns of that.
        let _ = self.stream.lock().send_data(last, true);
        Finished { stream: self.stream.clone(), left }
    }

    /// Ends both directions at once with RST_STREAM (CANCEL); what was not yet sent is discarded.
    pub fn reset(mut self) {
        self.ended = true;
        self.stream.reset();
    }

    /// Waits until the tunnel is reset or lost; for ever where it ends cleanly. May be cancelled and called again.
    pub async fn closed(&mut self) -> TunnelError {
        poll_fn(|cx| self.stream.poll_closed(cx)).await
    }
}

/// A direction that was ended and may still wait for the peer's window; that goes on where this is dropped.
#[derive(Debug)]
pub struct Finished {
    stream: Arc<Stream>,
    left: oneshot::Receiver<()>,
}

impl Finished {
    /// Waits until END_STREAM has left, or the tunnel is reset or lost. A reset earlier than that takes away what is still
    /// queued.
    pub async fn sent(&mut self) {
        let Self { stream, left } = self;
        tokio::select! {
            _ = left => {}
            _ = poll_fn(|cx| stream.poll_closed(cx)) => {}
        }
    }
}

/// The empty payload of the frame with END_STREAM: h2 drops it when it has dealt with the frame.
struct LastFrame {
    _queued: oneshot::Sender<()>,
}

impl AsRef<[u8]> for LastFrame {
    fn as_ref(&self) -> &[u8] {
        &[]
    }
}

impl Drop for TunnelSender {
    fn drop(&mut self) {
        if !self.ended {
            self.stream.reset();
        }
    }
}

impl TunnelReceiver {
    /// Returns what the peer sent next; `None` only on its END_STREAM. May be cancelled and called again.
    ///
    /// Bytes count against the window of the peer until the next call, that is until the caller has dealt with them.
    ///
    /// # Errors
    /// Where the tunnel was reset or lost; the error is the last item.
    pub async fn recv(&mut self) -> Option<Result<Bytes, TunnelError>> {
        self.give_back();
        let next = match self.rest.pop_front() {
            Some(data) => Some(Ok(data)),
            None => poll_fn(|cx| self.poll_data(cx)).await,
        };
        match &next {
            Some(Ok(data)) => self.held = data.len(),
            // The error was told.
            Some(Err(_)) | None => self.end = Some(Ok(())),
        }
        next
    }

    /// Waits until the tunnel is reset or lost, also while there are bytes that were not received yet; for ever where the
    /// peer's direction ends cleanly, for that is what counts for whoever receives. May be cancelled and called again.
    ///
    /// Must be called by the task that uses the tunnel's other half: only the last caller is woken.
    pub async fn closed(&mut self) -> TunnelError {
        if self.end.is_none() {
            let error = poll_fn(|cx| self.stream.poll_closed(cx)).await;
            self.end = Some(poll_fn(|cx| Poll::Ready(self.take_rest(cx, error))).await);
        }
        match self.end {
            Some(Err(error)) => error,
            _ => pending().await,
        }
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, TunnelError>>> {
        if let Some(end) = self.end {
            return Poll::Ready(end.err().map(Err));
        }
        loop {
            match ready!(self.body.poll_data(cx)) {
                // END_STREAM may travel on an empty frame of its own.
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => return Poll::Ready(Some(Ok(data))),
                Some(Err(error)) => return Poll::Ready(Some(Err(self.stream.explain(&error)))),
                None => return Poll::Ready(None),
            }
        }
    }

    /// Takes what came before the tunnel was `closed`, which alone tells whether END_STREAM was the last of it.
    fn take_rest(&mut self, cx: &mut Context<'_>, closed: TunnelError) -> Result<(), TunnelError> {
        loop {
            match self.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => self.rest.push_back(data),
                Poll::Ready(Some(Err(error))) => return Err(error),
                Poll::Ready(None) => return Ok(()),
                Poll::Pending => return Err(closed),
            }
        }
    }

    fn give_back(&mut self) {
        let held = std::mem::take(&mut self.held);
        if held > 0 {
            // It fails only where more is given back than was received.
            let _ = self.body.flow_control().release_capacity(held);
        }
    }
}

impl Drop for TunnelReceiver {
    fn drop(&mut self) {
        // Where the other half has finished, h2 itself resets the stream: a server's after all of that is sent, with NO_ERROR
        // (RFC 9113 §8.1), a client's at once.
        if self.end.is_none() && !self.body.is_end_stream() && !self.stream.finished.load(Relaxed) {
            self.stream.reset();
        }
    }
}

impl Stream {
    fn lock(&self) -> MutexGuard<'_, SendStream<Bytes>> {
        self.send.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for room for `want` bytes and returns how many may be sent now, at least one.
    fn poll_room(&self, cx: &mut Context<'_>, want: usize) -> Poll<Result<usize, TunnelError>> {
        let mut send = self.lock();
        send.reserve_capacity(want.min(super::SEND_BUFFER));
        // `poll_capacity` reports only what is granted anew, not what an earlier call left.
        let room = send.capacity();
        if room > 0 {
            return Poll::Ready(Ok(room));
        }
        match ready!(send.poll_capacity(cx)) {
            Some(Ok(room)) => Poll::Ready(Ok(room)),
            Some(Err(error)) => Poll::Ready(Err(self.explain(&error))),
            None => {
                drop(send);
                // No longer open for sending: it was reset or lost, and `poll_closed` knows which.
                let why = self.poll_closed(cx);
                Poll::Ready(Err(match why {
                    Poll::Ready(why) => why,
                    Poll::Pending => TunnelError::Lost(Loss::Closed),
                }))
            }
        }
    }

    fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<TunnelError> {
        let outcome = ready!(self.lock().poll_reset(cx));
        Poll::Ready(match (outcome, self.lease.link().loss()) {
            (_, Some(loss)) => TunnelError::Lost(loss),
            (Ok(code), None) => TunnelError::Reset(code),
            (Err(error), None) => self.explain(&error),
        })
    }

    fn explain(&self, error: &h2::Error) -> TunnelError {
        TunnelError::of(error, self.lease.link().loss())
    }

    fn reset(&self) {
        self.lock().send_reset(Reason::CANCEL);
    }
}

/// Room that was asked for. A call that is cancelled gives it back, or it would lie idle in this stream while others
/// on the connection wait for it.
struct Claim<'a> {
    stream: &'a Stream,
    settled: bool,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.settled {
            self.stream.lock().reserve_capacity(0);
        }
    }
}
