//! One end of a TLS connection without its socket: bytes of the peer's in, plaintext out, and the other way round.

use std::{io, iter, sync::Arc};

use rustls::{
    ClientConfig, CommonState, Error, InvalidMessage, ServerConfig, client::UnbufferedClientConnection,
    pki_types::ServerName, server::UnbufferedServerConnection,
};
use tokio::io::ReadBuf;

use super::{
    buffer::Buffer,
    step::{Side, Sink, Step, Task},
};

/// One end of a connection.
pub(super) struct Session {
    side: Side,
    /// What the socket gave and rustls has not taken.
    received: Buffer,
    /// What was decrypted and the reader had no room for.
    unread: Buffer,
    /// What the socket is still to take.
    unsent: Buffer,
    end: End,
    /// Nothing is sent after close_notify (RFC 8446 §6.1).
    closing: bool,
}

/// What ends the reading.
enum End {
    /// Nothing yet.
    Open,
    /// The peer's close_notify: there is nothing more to be read, and nothing missing.
    Closed,
    /// TLS was broken, by either end. There is nothing more to be written either.
    Failed(Error),
}

/// What a reader is told.
pub(super) enum Read {
    /// Something was read.
    Some,
    /// There is nothing to read before the socket has given more.
    Starved,
    /// There is nothing to read any more.
    End,
}

impl Session {
    pub(super) fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Error> {
        Ok(Self::new(Side::Client(UnbufferedClientConnection::new(config, name)?)))
    }

    pub(super) fn server(config: Arc<ServerConfig>) -> Result<Self, Error> {
        Ok(Self::new(Side::Server(UnbufferedServerConnection::new(config)?)))
    }

    fn new(side: Side) -> Self {
        let (received, unread, unsent) = (Buffer::default(), Buffer::default(), Buffer::default());
        Self { side, received, unread, unsent, end: End::Open, closing: false }
    }

    /// Returns what rustls knows of the connection.
    pub(super) fn state(&self) -> &CommonState {
        self.side.state()
    }

    /// Returns room for what the socket gives; [`Self::receive`] says how much of it was used, also where it was nothing.
    ///
    /// # Errors
    /// Where what waits already fills the room that there is: a handshake message larger than any that is meant well.
    pub(super) fn room(&mut self) -> io::Result<&mut [u8]> {
        if self.received.len() >= MAX_WAITING {
            return Err(self.fail(Error::InvalidMessage(InvalidMessage::HandshakePayloadTooLarge)));
        }
        let room = self.received.room();
        let len = room.len().min(MAX_READ);
        Ok(&mut room[..len])
    }

    /// Returns how much waits for rustls.
    pub(super) fn waiting(&self) -> usize {
        self.received.len()
    }

    pub(super) fn receive(&mut self, len: usize) {
        self.received.fill(len);
    }

    /// Returns what the socket is to take; [`Self::sent`] says how much of it did.
    pub(super) fn unsent(&self) -> &[u8] {
        self.unsent.bytes()
    }

    pub(super) fn sent(&mut self, len: usize) {
        self.unsent.discard(len);
    }

    /// Goes on with the handshake as far as that is possible with what was received. Returns whether it is over: then
    /// what is unsent is the end of it.
    ///
    /// # Errors
    /// Where either end refuses the other. What is unsent is the alert then, if it is this end.
    pub(super) fn shake_hands(&mut self) -> io::Result<bool> {
        // The configurations have no early data and tickets, and a server may not send before it knows the client:
        // what goes to the reader here is nothing, or the beginning of what it will read.
        while self.state().is_handshaking() || self.state().wants_write() {
            match self.step(&mut ReadBuf::new(&mut []), false, Task::Nothing)? {
                Step::Again | Step::Full => {}
                Step::PeerClosed => return Err(io::ErrorKind::UnexpectedEof.into()),
                Step::Done | Step::Blocked => return Ok(!self.state().is_handshaking()),
            }
        }
        Ok(true)
    }

    /// Decrypts into `reader`, which has room: whole records, and of one only where there is not room for one.
    ///
    /// # Errors
    /// Where the peer breaks TLS or says that this end does, then and ever after.
    pub(super) fn read(&mut self, reader: &mut ReadBuf<'_>) -> io::Result<Read> {
        let before = reader.filled().len();
        let waiting = self.unread.len().min(reader.remaining());
        reader.put_slice(&self.unread.bytes()[..waiting]);
        self.unread.discard(waiting);
        if !self.unread.is_empty() {
            return Ok(Read::Some);
        }
        let step = loop {
            match self.end {
                End::Open => {}
                End::Closed => break Ok(Read::End),
                End::Failed(_) => break self.check().map(|()| Read::End),
            }
            if reader.remaining() == 0 {
                break Ok(Read::Some);
            }
            let given = reader.filled().len() > before;
            match self.step(reader, given, Task::Nothing) {
                Ok(Step::Again | Step::PeerClosed) => {}
                Ok(Step::Full) => break Ok(Read::Some),
                Ok(Step::Done | Step::Blocked) => break Ok(Read::Starved),
                Err(error) => break Err(error),
            }
        };
        // The end, whichever it is, is told once all that came before it is read.
        if reader.filled().len() > before { Ok(Read::Some) } else { step }
    }

    /// Encrypts as much of `slices` as is sent in one write, and returns how much that is. Nothing must be unsent.
    ///
    /// # Errors
    /// Where TLS is broken, or [`Self::close`] was called.
    pub(super) fn write(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.check()?;
        if self.closing {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let len = match slices.iter().map(|slice| slice.len()).sum() {
            len if len <= MAX_WRITE + FRAME_HEAD => len,
            _ => MAX_WRITE,
        };
        let mut pieces = cut(slices, len).peekable();
        let mut record = Buffer::default();
        while let Some(piece) = pieces.next() {
            if record.is_empty() || record.len() + piece.len() > MAX_RECORD {
                self.encrypt(record.bytes())?;
                record.clear();
                if pieces.peek().is_none_or(|next| piece.len() + next.len() > MAX_RECORD) {
                    self.encrypt(piece)?;
                    continue;
                }
            }
            record.push(piece);
        }
        self.encrypt(record.bytes())?;
        Ok(len)
    }

    /// Says that nothing more will be written (RFC 8446 §6.1): once, however often it is called.
    ///
    /// # Errors
    /// Where TLS is broken.
    pub(super) fn close(&mut self) -> io::Result<()> {
        self.check()?;
        if self.closing {
            return Ok(());
        }
        self.closing = true;
        self.perform(Task::CloseNotify)
    }

    /// Returns the error of a connection in which TLS was broken.
    pub(super) fn check(&self) -> io::Result<()> {
        match &self.end {
            End::Open | End::Closed => Ok(()),
            End::Failed(error) => Err(wrap(error.clone())),
        }
    }

    fn encrypt(&mut self, plaintext: &[u8]) -> io::Result<()> {
        if plaintext.is_empty() {
            return Ok(());
        }
        self.perform(Task::Encrypt(plaintext))
    }

    /// Does what is possible only when rustls has dealt with all that was received. What that brings to light is for
    /// the next reader.
    fn perform(&mut self, task: Task<'_>) -> io::Result<()> {
        loop {
            match self.step(&mut ReadBuf::new(&mut []), false, task)? {
                Step::Again | Step::Full | Step::PeerClosed => {}
                Step::Done => return Ok(()),
                Step::Blocked => return Err(self.fail(Error::HandshakeNotComplete)),
            }
        }
    }

    fn step(&mut self, reader: &mut ReadBuf<'_>, given: bool, task: Task<'_>) -> io::Result<Step> {
        let mut sink = Sink { reader, unread: &mut self.unread, given };
        let (discard, step) = self.side.step(self.received.bytes_mut(), &mut sink, &mut self.unsent, task);
        self.received.discard(discard);
        if matches!(step, Ok(Step::PeerClosed)) {
            self.end = End::Closed;
            // rustls looks at nothing more (RFC 8446 §6.1: what comes after close_notify is ignored).
            self.received.clear();
        }
        step.map_err(|error| self.fail(error))
    }

    /// Ends the connection. The peer is told why, where rustls has an alert for it.
    fn fail(&mut self, error: Error) -> io::Error {
        // Of an alert there is one, but rustls may have something else to send before it.
        while self.state().wants_write() {
            // With something to be sent, rustls looks at nothing that was received.
            let mut sink =
                Sink { reader: &mut ReadBuf::new(&mut []), unread: &mut self.unread, given: false };
            let (_, step) = self.side.step(&mut [], &mut sink, &mut self.unsent, Task::Nothing);
            if step.is_err() {
                break;
            }
        }
        self.received.clear();
        self.end = End::Failed(error.clone());
        wrap(error)
    }
}

#[cfg(test)]
impl Session {
    /// Whether there is memory for bytes that wait.
    pub(super) fn holds_memory(&self) -> bool {
        [&self.received, &self.unread, &self.unsent].iter().any(|buffer| buffer.has_memory())
    }
}

/// The first `len` bytes of the slices.
fn cut<'a>(slices: &'a [io::IoSlice<'_>], mut len: usize) -> impl Iterator<Item = &'a [u8]> {
    let mut slices = slices.iter();
    iter::from_fn(move || {
        let slice = slices.find(|slice| !slice.is_empty()).filter(|_| len > 0)?;
        let piece = &slice[..slice.len().min(len)];
        len -= piece.len();
        Some(piece)
    })
}

/// As `tokio_rustls` does, for whoever looks for the reason.
pub(super) fn wrap(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Plaintext of a record (RFC 8446 §5.1).
const MAX_RECORD: usize = 16 * 1024;

/// Plaintext of one write, but for the head of a frame.
const MAX_WRITE: usize = 4 * MAX_RECORD;

/// What h2 writes beside the payload of a frame: nine bytes, and the beginning of the payload, 256 together.
const FRAME_HEAD: usize = 1024;

/// Bytes that one read takes from the socket.
const MAX_READ: usize = 64 * 1024;

/// Received bytes that rustls may leave for more to come: the largest handshake message that it takes, 64 KiB in records.
const MAX_WAITING: usize = super::buffer::SIZE - 1024;
