//! Plaintext that the kernel refused by itself, since no policy permits it whoever it comes from: one line and one metric
//! each, with the policy that says so.

use std::{future::pending, sync::Arc};

use super::{context::Context, outcome::Outcome, pod::Shared};
use crate::{
    capture::{Capture, Refusal},
    mesh::{OrigDst, Reason},
};

/// Reports what the kernel refuses, until the process ends or a successor reads of it. What comes faster than it is read the
/// kernel counts instead.
pub async fn follow(context: Arc<Context>, capture: Arc<Capture>) {
    let mut refusals = match capture.refusals() {
        Ok(refusals) => refusals,
        Err(error) => {
            tracing::error!(%error, "plaintext that the kernel refuses will stand in no access log");
            pending().await
        }
    };
    loop {
        let refusal = tokio::select! {
            refusal = refusals.next() => refusal,
            () = context.shutdown.succeeded().cancelled() => return,
        };
        // A pod that has just gone: nobody is left to whom it would say something.
        if let Some(pod) = context.pods.of(refusal.netns) {
            report(&context, &pod, &refusal);
        }
    }
}

fn report(context: &Context, pod: &Shared, refusal: &Refusal) {
    let Refusal { source, destination, .. } = *refusal;
    let terms = pod.terms();
    let mut outcome = Outcome::plaintext(context, source, terms.workload.clone());
    outcome.asked_for(OrigDst::new(destination));
    let decision = terms.authorize_plaintext(source, destination);
    match &decision.verdict {
        Err(denial) => {
            outcome.decided(&decision);
            outcome.failed(denial.reason(), &format_args!("plaintext, without an identity: {denial}"));
        }
        Ok(_) => outcome.failed(Reason::PlaintextRefused, &OUTDATED),
    }
}

const OUTDATED: &str =
    "the kernel refused the plaintext by policies that have changed meanwhile: it is permitted now";
