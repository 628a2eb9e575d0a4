//! The one accept loop.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::net::{TcpListener, TcpStream};

use super::{context::Context, pod::Shared};

/// Accepts until the pod's listeners are to close, and gives each connection to `handle` in a task of its own.
///
/// Closing a listener resets what waits in its queue, so on the way out the queue is emptied first: the kernel steers
/// nothing new here by then (`PodCapture::drain`).
pub(super) fn serve<F>(
    context: &Arc<Context>,
    pod: &Arc<Shared>,
    listener: TcpListener,
    handle: fn(Arc<Context>, Arc<Shared>, TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let (context, pod) = (context.clone(), pod.clone());
    let tasks = context.shutdown.tasks().clone();
    tasks.spawn(async move {
        let spawn = |stream, peer| start(&context, &pod, stream, peer, handle);
        while let Some(accepted) = pod.closing.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, peer)) => spawn(stream, peer),
                Err(error) => back_off(&error).await,
            }
        }
        while let Ok(Ok((stream, peer))) = tokio::time::timeout(QUEUE_QUIET, listener.accept()).await {
            spawn(stream, peer);
        }
    });
}

fn start<F>(
    context: &Arc<Context>,
    pod: &Arc<Shared>,
    stream: TcpStream,
    peer: SocketAddr,
    handle: fn(Arc<Context>, Arc<Shared>, TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    // Dropped before the bytes flow, the socket is reset (linger 0 is inherited from the listener).
    let Ok(slot) = context.slots.clone().try_acquire_owned() else {
        tracing::warn!(%peer, "refused: the agent carries as many connections as it may (--max-connections)");
        return;
    };
    let (context, pod) = (context.clone(), pod.clone());
    let tasks = context.shutdown.tasks().clone();
    tasks.spawn(async move {
        let _slot = slot;
        handle(context, pod, stream, peer).await;
    });
}

/// Waits after a failed accept: retrying at once would spin while the process has no descriptors left.
async fn back_off(error: &io::Error) {
    // These concern the one connection that was to be accepted (accept(2)), not the listener.
    let harmless =
        [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::Interrupted];
    if harmless.contains(&error.kind()) {
        return;
    }
    tracing::warn!(%error, "accepting a connection failed; the next try is in {BACK_OFF:?}");
    tokio::time::sleep(BACK_OFF).await;
}

const BACK_OFF: Duration = Duration::from_millis(50);

/// A closing listener counts as empty after this long without a connection: handshakes that were under way when the
/// kernel stopped steering here (one round trip between nodes) still end in its queue.
const QUEUE_QUIET: Duration = Duration::from_millis(200);
