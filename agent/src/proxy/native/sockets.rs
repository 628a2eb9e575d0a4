//! The sockets of native connections: whether there are any, and their end.

use std::{sync::Arc, time::Duration};

use tokio::{task::spawn_blocking, time::sleep};

use super::{
    super::{context::Context, pod::Shared},
    LOOK_AGAIN,
    permit::Permit,
};
use crate::{capture, shutdown::Shutdown};

/// Returns when a permit that has been taken back has no connections any more.
pub(super) async fn unused(permit: &Arc<Permit>, generation: u64, shutdown: &Shutdown) {
    let mut looks_without = 0;
    // What was let through just before is on its way.
    while looks_without < 2 {
        sleep(if shutdown.drain().is_cancelled() { DRAINING } else { LOOK_AGAIN }).await;
        let looking = Arc::clone(permit);
        let any = spawn_blocking(move || {
            // Where that cannot be told, there may be some: they are held to policy until it can.
            listed(&looking.source)
                .is_none_or(|found| found.iter().any(|socket| socket.generation == generation))
        });
        looks_without = if any.await.unwrap_or(true) { 0 } else { looks_without + 1 };
    }
}

/// Ends the connections of a permit that has been taken back, at both ends: what the source sends last need not arrive.
pub(super) async fn end(permit: &Arc<Permit>, generation: u64) {
    let looking = Arc::clone(permit);
    let ended = spawn_blocking(move || {
        for pod in [&looking.source, &looking.destination] {
            let of_permit = |socket: &capture::NativeSocket| socket.generation == generation;
            let note = |socket: &capture::NativeSocket| {
                if socket.is_source {
                    looking.lock().insert(socket.cookie);
                }
            };
            destroy(pod, of_permit, note);
        }
    });
    if let Err(error) = ended.await {
        tracing::error!(%error, "ending native connections failed");
    }
}

/// Returns a pod's native sockets; none where the kernel does not tell. Blocks.
fn listed(pod: &Shared) -> Option<Vec<capture::NativeSocket>> {
    let sockets = pod.capture.native_sockets();
    sockets
        .inspect_err(
            |error| tracing::error!(pod = %pod.workload(), %error, "native connections cannot be listed"),
        )
        .ok()
}

/// Ends those of a pod's native sockets that are wanted, and returns how many. Blocks.
fn destroy(
    pod: &Shared,
    wanted: impl Fn(&capture::NativeSocket) -> bool,
    note: impl Fn(&capture::NativeSocket),
) -> usize {
    let mut ended = 0;
    for socket in listed(pod).unwrap_or_default().iter().filter(|socket| wanted(socket)) {
        note(socket);
        match pod.capture.destroy_native(socket) {
            Ok(()) => ended += 1,
            Err(error) => {
                tracing::error!(pod = %pod.workload(), %error, "a native connection cannot be ended");
            }
        }
    }
    ended
}

/// Ends a pod's native connections that an agent before this one permitted, once that has ended: nobody holds them to policy
/// any more.
pub(in crate::proxy) fn end_orphans(context: &Arc<Context>, pod: &Arc<Shared>) {
    if !pod.capture.is_adopted() {
        return;
    }
    let (pod, heritage, runtime) = (Arc::clone(pod), context.native.heritage, &context.native.runtime);
    let ending = async move {
        let closing = pod.closing.clone();
        closing.run_until_cancelled_owned(sleep(heritage)).await;
        let looked = spawn_blocking(move || {
            let ended = destroy(&pod, |socket| !pod.capture.is_own_permit(socket.generation), |_| ());
            if ended > 0 {
                tracing::info!(pod = %pod.workload(), sockets = ended, "native connections that an agent before this one permitted have been ended");
            }
        });
        let _ = looked.await;
    };
    runtime.spawn(ending);
}

/// The same while the agent drains, and waits for it.
const DRAINING: Duration = Duration::from_millis(250);
