//! The client's side of one HTTP/2 connection, over any transport: settings, and one CONNECT.

use std::future::{Future, pending};

use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    ConnectRequest, MAX_FRAME, RECENT_RESETS, SEND_BUFFER, STREAM_WINDOW, STREAMS_PER_CONNECTION, Tunnel,
    link::Lease,
};

/// Why a CONNECT brought no tunnel.
#[derive(Debug)]
pub(super) enum RequestError {
    /// The peer has provably not looked at it: it may be sent again on another connection (RFC 9113 §8.7).
    Unprocessed(h2::Error),
    /// It may have been processed.
    Failed(h2::Error),
    /// It was answered with something else than success.
    Refused(StatusCode),
    /// The request itself cannot be written.
    Malformed(http::Error),
}

/// What whoever asks for a tunnel wants to send on it first.
pub trait FirstBytes: Send {
    /// Returns it once there is any, for good or for another attempt: always the same bytes, which are still to be sent where
    /// [`Tunnel::early`] does not count them.
    fn first(&mut self) -> impl Future<Output = Bytes> + Send;
}

/// Nothing.
impl FirstBytes for () {
    async fn first(&mut self) -> Bytes {
        pending().await
    }
}

/// Begins HTTP/2. The connection returned must be polled for anything to happen; it ends by itself once the sender of
/// requests and all tunnels are dropped.
pub(super) async fn handshake<IO>(io: IO) -> Result<(SendRequest<Bytes>, Connection<IO, Bytes>), h2::Error>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(STREAM_WINDOW * STREAMS_PER_CONNECTION)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER)
        // Until the server's SETTINGS say how many it takes.
        .initial_max_send_streams(STREAMS_PER_CONNECTION as usize)
        .max_concurrent_reset_streams(RECENT_RESETS)
        .max_local_error_reset_streams(Some(RECENT_RESETS))
        .handshake(io)
        .await
}

/// Sends one CONNECT and waits for its answer, and what is to be sent `first` meanwhile; the caller sets the deadline, and
/// dropping the future resets the stream.
pub(super) async fn request(
    requests: SendRequest<Bytes>,
    lease: Lease,
    (request, first): (&ConnectRequest, Option<&mut impl FirstBytes>),
) -> Result<Tunnel, RequestError> {
    let request = request.to_http().map_err(RequestError::Malformed)?;
    // Nothing has been sent where one of these two fails: the connection is over, or going away.
    let mut requests = requests.ready().await.map_err(RequestError::Unprocessed)?;
    let (mut response, mut send) =
        requests.send_request(request, false).map_err(RequestError::Unprocessed)?;
    drop(requests);
    let mut early = 0;
    let mut answer = None;
    if let Some(first) = first {
        tokio::select! {
            biased;
            bytes = first.first() => {
                early = bytes.len();
                // It fails only on a stream that was reset or lost, and then so does the answer.
                let _ = send.send_data(bytes, false);
            }
            earlier = &mut response => answer = Some(earlier),
        }
    }
    let answer = match answer {
        Some(answer) => answer,
        None => response.await,
    };
    let response = answer.map_err(|error| match unprocessed(&error) {
        true => RequestError::Unprocessed(error),
        false => RequestError::Failed(error),
    })?;
    // RFC 9110 §9.3.6: any 2xx answer to CONNECT switches to tunnel mode.
    if !response.status().is_success() {
        return Err(RequestError::Refused(response.status()));
    }
    Ok(Tunnel::new(send, response.into_body(), lease).with_early(early))
}

/// RFC 9113 §8.7: REFUSED_STREAM, and a GOAWAY with a lower last stream, guarantee that nothing was processed. h2 gives
/// a peer's GOAWAY as the error of a stream only where the stream's number is higher than the GOAWAY's.
fn unprocessed(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    error.is_remote() && (refused || error.is_go_away())
}

/// Bytes of header fields that an answer may have. ztunnel's client says the same (hbone.md).
const HEADER_LIST: u32 = 16 * 1024;
