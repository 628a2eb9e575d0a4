//! One step of a connection: rustls hands out one state at a time, which is dealt with before it is asked for the next.
//!
//! Follows the documentation of [`rustls::unbuffered`]: `process_tls_records` is called with all bytes that wait, and says
//! how many of them to forget. It is always given the same bytes again that were left the last time: rustls has decrypted
//! the beginning of a handshake message (a KeyUpdate, say) where it lies, and remembers its place.

use rustls::{
    CommonState, Error,
    client::UnbufferedClientConnection,
    server::UnbufferedServerConnection,
    unbuffered::{
        ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError, ReadTraffic,
        UnbufferedStatus, WriteTraffic,
    },
};
use tokio::io::ReadBuf;

use super::buffer::Buffer;

/// rustls' end of a connection.
pub(super) enum Side {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What is done once rustls would write.
#[derive(Clone, Copy)]
pub(super) enum Task<'a> {
    Nothing,
    Encrypt(&'a [u8]),
    CloseNotify,
}

/// Where plaintext goes.
pub(super) struct Sink<'a, 'b> {
    pub(super) reader: &'a mut ReadBuf<'b>,
    pub(super) unread: &'a mut Buffer,
    /// The reader has got something; it gets no more than it has room for.
    pub(super) given: bool,
}

/// What a step came to.
pub(super) enum Step {
    /// There may be more to do at once.
    Again,
    /// The reader has no room for the next record.
    Full,
    /// The task is done, and all that was received is dealt with.
    Done,
    /// The handshake needs more of the peer's.
    Blocked,
    /// The peer has closed.
    PeerClosed,
}

impl Side {
    /// Returns what rustls knows of the connection.
    pub(super) fn state(&self) -> &CommonState {
        match self {
            Self::Client(connection) => connection,
            Self::Server(connection) => connection,
        }
    }

    /// Deals with the next state. Returns how many received bytes to forget, and what it came to.
    pub(super) fn step(
        &mut self,
        received: &mut [u8],
        sink: &mut Sink<'_, '_>,
        unsent: &mut Buffer,
        task: Task<'_>,
    ) -> (usize, Result<Step, Error>) {
        match self {
            Self::Client(connection) => handle(connection.process_tls_records(received), sink, unsent, task),
            Self::Server(connection) => handle(connection.process_tls_records(received), sink, unsent, task),
        }
    }
}

fn handle<D>(
    status: UnbufferedStatus<'_, '_, D>,
    sink: &mut Sink<'_, '_>,
    unsent: &mut Buffer,
    task: Task<'_>,
) -> (usize, Result<Step, Error>) {
    let UnbufferedStatus { mut discard, state } = status;
    let step = state.and_then(|state| match state {
        ConnectionState::ReadTraffic(traffic) => read(traffic, sink, &mut discard),
        ConnectionState::EncodeTlsData(data) => encode(data, unsent),
        ConnectionState::TransmitTlsData(sent) => {
            // It is unsent, in its place before whatever comes later.
            sent.done();
            Ok(Step::Again)
        }
        ConnectionState::WriteTraffic(traffic) => perform(traffic, task, unsent),
        ConnectionState::BlockedHandshake => Ok(Step::Blocked),
        ConnectionState::PeerClosed => Ok(Step::PeerClosed),
        // Plaintext that cannot be sent any more must not pass for sent.
        ConnectionState::Closed if matches!(task, Task::Encrypt(_)) => Err(Error::EncryptError),
        ConnectionState::Closed => Ok(Step::Done),
        // No configuration allows it; RFC 8446 §4.2.10.
        _ => Err(Error::General("early data".to_owned())),
    });
    (discard, step)
}

fn read<D>(
    mut traffic: ReadTraffic<'_, '_, D>,
    sink: &mut Sink<'_, '_>,
    discard: &mut usize,
) -> Result<Step, Error> {
    while let Some(len) = traffic.peek_len() {
        if sink.given && len.get() > sink.reader.remaining() {
            return Ok(Step::Full);
        }
        let Some(record) = traffic.next_record().transpose()? else { break };
        *discard += record.discard;
        let (now, later) = record.payload.split_at(record.payload.len().min(sink.reader.remaining()));
        sink.reader.put_slice(now);
        sink.given |= !now.is_empty();
        sink.unread.push(later);
    }
    Ok(Step::Again)
}

fn encode<D>(mut data: EncodeTlsData<'_, D>, unsent: &mut Buffer) -> Result<Step, Error> {
    let encoded = match data.encode(unsent.room()) {
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
            data.encode(unsent.room_for(required_size))
        }
        encoded => encoded,
    };
    // Given room and called once, it has no reason to fail.
    unsent.fill(encoded.map_err(|error| Error::General(error.to_string()))?);
    Ok(Step::Again)
}

fn perform<D>(mut traffic: WriteTraffic<'_, D>, task: Task<'_>, unsent: &mut Buffer) -> Result<Step, Error> {
    let mut attempt = |room: &mut [u8]| match task {
        Task::Nothing => Ok(0),
        Task::Encrypt(plaintext) => traffic.encrypt(plaintext, room),
        Task::CloseNotify => traffic.queue_close_notify(room),
    };
    if matches!(task, Task::Nothing) {
        return Ok(Step::Done);
    }
    let written = match attempt(unsent.room()) {
        // Room for a write there always is; beside it there may be the answer to a KeyUpdate.
        Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size })) => {
            attempt(unsent.room_for(required_size))
        }
        written => written,
    };
    unsent.fill(written.map_err(|_| Error::EncryptError)?);
    Ok(Step::Done)
}
