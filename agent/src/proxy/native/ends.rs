//! Connections that went past the agent by its permit, as they end: a log line and metrics for each end, as for one that it carried.

use std::{future::pending, sync::Arc};

use super::{
    super::{context::Context, local, outcome::Outcome},
    permit::Permit,
};
use crate::{
    capture::{Capture, NativeEnded},
    mesh::OrigDst,
};

/// Reports them until the process ends or a successor reads of it. What comes faster than it is read the kernel counts instead.
pub async fn follow(context: Arc<Context>, capture: Arc<Capture>) {
    let mut ends = match capture.native_ends() {
        Ok(ends) => ends,
        Err(error) => {
            tracing::error!(%error, "native connections will stand in no access log");
            pending().await
        }
    };
    loop {
        let ended = tokio::select! {
            ended = ends.next() => ended,
            () = context.shutdown.succeeded().cancelled() => return,
        };
        // What an agent before this one has permitted is known by its pods.
        let permit = context.native.permit(ended.generation).or_else(|| {
            let [source, destination] = ended.netns.map(|netns| context.pods.of(netns));
            Some(Arc::new(Permit::between(source?, destination?, ended.source, ended.destination)))
        });
        // Pods that have just gone: nobody is left to whom it would say something.
        if let Some(permit) = permit {
            report(&context, &permit, &ended);
        }
    }
}

/// The policies are asked once more: what they decide is counted for each connection, and so is what those on trial would.
fn report(context: &Context, permit: &Permit, ended: &NativeEnded) {
    let source = permit.source.workload();
    let mut near = Outcome::outbound(context, ended.source, source.clone());
    near.asked_for(OrigDst::new(permit.target));
    near.routed_to(permit.target, Some(permit.destination.workload()), None);
    let ends = (&source, ended.source);
    let mut far = local::account(context, &permit.destination, ends, (permit.target, &mut near));
    let cut = permit.cut(ended.cookie);
    match cut.and_then(local::LocalError::denial) {
        Some(denial) => far.revoked(denial),
        None => far.decided(&permit.admission().decide()),
    }
    for outcome in [&mut near, &mut far] {
        outcome.was_native(ended.duration);
        outcome.opened(true);
    }
    near.up.add_all(ended.sent);
    near.down.add_all(ended.received);
    if let Some(error) = cut {
        near.failed(error.reason_at_source(), &error.text_at_source(&permit.destination.workload()));
        far.failed(error.reason_at_destination(), error);
    }
}
