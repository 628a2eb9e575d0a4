//! The one accept loop.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Handle,
};

use super::{context::Context, metrics::Reporter, outcome::Outcome, pod::Shared, workers::Balance};
use crate::mesh::Reason;

/// Accepts until the pod's listeners are to close, and gives each connection to `handle` in a task of its own.
///
/// Closing a listener resets what waits in its queue, so on the way out the queue is emptied first: the kernel steers
/// nothing new here by then (`PodCapture::drain`).
pub(super) fn serve<F>(
    context: &Arc<Context>,
    pod: &Arc<Shared>,
    ((runtime, listener), reporter, balance): ((Handle, TcpListener), Reporter, Balance),
    handle: fn(Arc<Context>, Arc<Shared>, TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let (context, pod) = (context.clone(), pod.clone());
    let tasks = context.shutdown.tasks().clone();
    let accepting = async move {
        let spawn = |stream, peer| start(&context, &pod, (stream, peer), (reporter, balance), handle);
        while let Some(accepted) = pod.closing.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, peer)) => spawn(stream, peer),
                Err(error) => back_off(&error).await,
            }
        }
        while let Ok(Ok((stream, peer))) = tokio::time::timeout(QUEUE_QUIET, listener.accept()).await {
            spawn(stream, peer);
        }
    };
    tasks.spawn_on(accepting, &runtime);
}

fn start<F>(
    context: &Arc<Context>,
    pod: &Arc<Shared>,
    (stream, peer): (TcpStream, SocketAddr),
    (reporter, balance): (Reporter, Balance),
    handle: fn(Arc<Context>, Arc<Shared>, TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    // An application's socket that is dropped before the bytes flow is reset (it has linger 0 from its listener).
    let Some(share) = context.shares.take(pod.holder(reporter), peer.ip()) else {
        return refused(context, pod, peer, reporter);
    };
    let (runtime, load, arrival) = context.workers.place(stream, balance);
    let tasks = context.shutdown.tasks();
    let (context, pod) = (context.clone(), pod.clone());
    // On the heap before it becomes a task: tokio copies a task's future several times, and this one has some kilobytes.
    let carried = Box::pin(async move {
        let _holds = (share, load);
        match arrival.settle() {
            Ok(stream) => handle(context, pod, stream, peer).await,
            Err(error) => {
                overloaded(&context, &pod, (peer, reporter), &format_args!("{NO_THREAD}: {error}"));
            }
        }
    });
    tasks.spawn_on(carried, runtime);
}

/// Reports a connection that there is no room for.
pub(super) fn refused(context: &Context, pod: &Shared, peer: SocketAddr, reporter: Reporter) {
    overloaded(context, pod, (peer, reporter), &NO_ROOM);
}

fn overloaded(
    context: &Context,
    pod: &Shared,
    (peer, reporter): (SocketAddr, Reporter),
    why: &dyn std::fmt::Display,
) {
    let mut outcome = match reporter {
        Reporter::Source => Outcome::outbound(context, peer, pod.workload()),
        Reporter::Destination => Outcome::inbound(context, peer, pod.workload()),
    };
    outcome.failed(Reason::Overload, why);
}

/// Not a line of its own in the agent's log: whoever can open connections could fill that.
pub(super) const NO_ROOM: &str =
    "the client or the pod holds its share of what the agent carries at once (--max-connections)";

const NO_THREAD: &str =
    "the kernel does not let another thread of the agent take it (fs.epoll.max_user_watches)";

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
