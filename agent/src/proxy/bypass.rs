//! Connections to a pod that the agent does not carry, and policy no longer permits: plaintext that needed no look when
//! it came, and what is older than the pod's enrolment. The kernel ends them where it is asked to.
//!
//! ```text
//! terms change ─► the kernel lets nothing new in ─► sweep now ─► sweep again for what was in its handshake meanwhile
//! ```

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::sleep};

use super::{context::Context, outcome::Outcome, pod::Shared, terms::Terms};
use crate::{
    capture,
    mesh::{Decision, Denial, OrigDst, Plaintext, Reason},
};

/// What is done about one pod's connections that bypass the agent.
#[derive(Debug, Default)]
pub(super) struct Bypass {
    wanted: Notify,
    /// The pod leaves the mesh, or has come back since, and nothing was asked for again.
    at_rest: AtomicBool,
    unenforced: Mutex<Option<(usize, String)>>,
}

impl Bypass {
    /// Has the pod's connections looked at, soon.
    pub(super) fn sweep(&self) {
        self.at_rest.store(false, SeqCst);
        self.wanted.notify_one();
    }

    /// Leaves connections alone that come from now on, also where those before were to be looked at once more.
    pub(super) fn rest(&self) {
        self.at_rest.store(true, SeqCst);
    }

    /// Returns how many connections policy does not permit and could not be ended, and why.
    pub(super) fn unenforced(&self) -> Option<(usize, String)> {
        self.unenforced.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts the task that looks, until the pod's listeners close.
    pub(super) fn watch(context: &Arc<Context>, pod: &Arc<Shared>) {
        let (context, pod) = (context.clone(), pod.clone());
        let tasks = context.shutdown.tasks().clone();
        tasks.spawn(async move {
            pod.closing.run_until_cancelled(follow(&context, &pod)).await;
            pod.bypass.note(None);
        });
    }

    fn note(&self, unenforced: Option<(usize, String)>) {
        *self.unenforced.lock().unwrap_or_else(PoisonError::into_inner) = unenforced;
    }
}

async fn follow(context: &Arc<Context>, pod: &Arc<Shared>) {
    let mut pauses = [].iter();
    loop {
        // What could not be ended may end by itself, and is then to be spoken of no more.
        let pause = pauses.next().copied().or_else(|| pod.bypass.unenforced().map(|_| PATIENCE));
        tokio::select! {
            () = pod.bypass.wanted.notified() => pauses = AGAIN.iter(),
            () = sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
        if pod.bypass.at_rest.load(SeqCst) {
            pauses = [].iter();
            pod.bypass.note(None);
            continue;
        }
        sweep(context, pod).await;
        sleep(APART).await;
    }
}

async fn sweep(context: &Arc<Context>, pod: &Arc<Shared>) {
    // It never closes.
    let Ok(_turn) = context.sweeps.acquire().await else { return };
    let looking = (context.clone(), pod.clone());
    let unenforced = match tokio::task::spawn_blocking(move || look(&looking.0, &looking.1)).await {
        Ok(unenforced) => unenforced,
        Err(error) => {
            tracing::error!(pod = %pod.workload(), %error, "looking for connections that policy revokes failed");
            return;
        }
    };
    if let Some((connections, why)) = &unenforced
        && pod.bypass.unenforced().is_none()
    {
        let pod = pod.workload();
        tracing::error!(%pod, connections, why, "connections that policy does not permit cannot be ended");
    }
    pod.bypass.note(unenforced);
}

/// Looks at the pod's connections and ends what policy refuses. Returns how many are still there, and why, of one. Blocks.
fn look(context: &Context, pod: &Shared) -> Option<(usize, String)> {
    let terms = pod.terms();
    // Whatever there is, nothing refuses it.
    if terms.plaintext() == Plaintext::pass() {
        return None;
    }
    let connections = match pod.capture.bypassing() {
        Ok(connections) => connections,
        Err(error) => return Some((0, format!("they cannot be listed: {error}"))),
    };
    // What is listed may have come after that.
    if pod.bypass.at_rest.load(SeqCst) {
        return None;
    }
    let mut unenforced: Option<(usize, String)> = None;
    for connection in connections {
        let capture::Bypass { source, destination, .. } = connection;
        let decision = terms.authorize_plaintext(source, destination);
        let Err(denial) = &decision.verdict else { continue };
        match pod.capture.destroy(&connection) {
            Ok(()) => report(context, &terms, &connection, &decision, denial),
            Err(error) => {
                let (count, _) = unenforced.take().unwrap_or_default();
                let why = format!("{source} to {destination} cannot be ended: {error} ({denial})");
                unenforced = Some((count + 1, why));
            }
        }
    }
    unenforced
}

/// One line and one metric for a connection that was ended. What it carried nobody counted.
fn report(
    context: &Context,
    terms: &Terms,
    connection: &capture::Bypass,
    decision: &Decision,
    denial: &Denial,
) {
    let mut outcome = Outcome::plaintext(context, connection.source, terms.workload.clone());
    outcome.asked_for(OrigDst::new(connection.destination));
    outcome.decided(decision);
    let text = format!(
        "policy has changed, and the connection, plaintext that the agent did not carry, is permitted no longer: {denial}"
    );
    outcome.failed(Reason::PolicyRevoked, &text);
}

/// When a pod's connections are looked at again after a change of its terms, for what the kernel let in just before it
/// was told, and had not made a connection of yet. Handshakes under way are among what is listed.
const AGAIN: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(2)];

/// How often a pod is looked at while something there cannot be ended.
const PATIENCE: Duration = Duration::from_secs(10);

/// The least time between two looks at one pod: each lists all its connections.
const APART: Duration = Duration::from_millis(100);

/// How many pods are looked at at once.
pub(super) const SWEEPS: usize = 2;
