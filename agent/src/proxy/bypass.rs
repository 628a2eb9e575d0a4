//! Connections to a pod that the agent does not carry, and policy no longer permits: plaintext that needed no look when
//! it came, and what is older than the pod's enrolment. The kernel ends them where it is asked to.
//!
//! ```text
//! terms change ─► the kernel lets nothing new in ─► sweep now ─► sweep again for what was in its handshake meanwhile
//! ```

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::sleep};

use super::{context::Context, outcome::Outcome, pod::Shared, terms::Terms};
use crate::{
    capture,
    mesh::{Connection, Decision, OrigDst, Plaintext, Reason},
};

/// What is done about one pod's connections that bypass the agent.
#[derive(Debug, Default)]
pub(super) struct Bypass {
    wanted: Notify,
    unenforced: Mutex<Option<(usize, String)>>,
}

/// What one look at a pod's connections found.
struct Swept {
    terms: Terms,
    ended: Vec<(capture::Bypass, Decision)>,
    /// How many are still there, and why, of one.
    unenforced: Option<(usize, String)>,
}

impl Bypass {
    /// Has the pod's connections looked at, soon.
    pub(super) fn sweep(&self) {
        self.wanted.notify_one();
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

async fn follow(context: &Context, pod: &Arc<Shared>) {
    let mut pauses = [].iter();
    loop {
        // What could not be ended may end by itself, and is then to be spoken of no more.
        let pause = pauses.next().copied().or_else(|| pod.bypass.unenforced().map(|_| PATIENCE));
        tokio::select! {
            () = pod.bypass.wanted.notified() => pauses = AGAIN.iter(),
            () = sleep(pause.unwrap_or_default()), if pause.is_some() => {}
        }
        sweep(context, pod).await;
        sleep(APART).await;
    }
}

async fn sweep(context: &Context, pod: &Arc<Shared>) {
    // It never closes.
    let Ok(_turn) = context.sweeps.acquire().await else { return };
    let looking = pod.clone();
    let swept = match tokio::task::spawn_blocking(move || look(&looking)).await {
        Ok(swept) => swept,
        Err(error) => {
            tracing::error!(pod = %pod.workload(), %error, "looking for connections that policy revokes failed");
            return;
        }
    };
    for (connection, decision) in swept.ended {
        report(context, &swept.terms, &connection, &decision);
    }
    if let Some((connections, why)) = &swept.unenforced
        && pod.bypass.unenforced().is_none()
    {
        let pod = swept.terms.workload.to_string();
        tracing::error!(pod, connections, why, "connections that policy does not permit cannot be ended");
    }
    pod.bypass.note(swept.unenforced);
}

/// Looks at the pod's connections and ends what policy refuses. Blocks.
fn look(pod: &Shared) -> Swept {
    let terms = pod.terms();
    let mut swept = Swept { terms: terms.clone(), ended: Vec::new(), unenforced: None };
    // Whatever there is, nothing refuses it.
    if terms.policies.plaintext(&terms.workload) == Plaintext::pass() {
        return swept;
    }
    let connections = match pod.capture.bypassing() {
        Ok(connections) => connections,
        Err(error) => {
            swept.unenforced = Some((0, format!("they cannot be listed: {error}")));
            return swept;
        }
    };
    for connection in connections {
        let decision = decide(&terms, &connection);
        let Err(denial) = &decision.verdict else { continue };
        match pod.capture.destroy(&connection) {
            Ok(()) => swept.ended.push((connection, decision)),
            Err(error) => {
                let capture::Bypass { source, destination, .. } = connection;
                let (count, _) = swept.unenforced.take().unwrap_or_default();
                let why = format!("{source} to {destination} cannot be ended: {error} ({denial})");
                swept.unenforced = Some((count + 1, why));
            }
        }
    }
    swept
}

fn decide(terms: &Terms, connection: &capture::Bypass) -> Decision {
    let capture::Bypass { source, destination, .. } = connection;
    let destination = OrigDst::new(*destination).address();
    let connection = Connection { source: source.ip().to_canonical(), identity: None, destination };
    terms.policies.authorize(&terms.workload, &connection)
}

/// One line and one metric for a connection that was ended. What it carried nobody counted.
fn report(context: &Context, terms: &Terms, connection: &capture::Bypass, decision: &Decision) {
    let mut outcome = Outcome::inbound(context, connection.source, terms.workload.clone());
    outcome.asked_for(OrigDst::new(connection.destination));
    outcome.came_in_plaintext(context.workload_at(connection.source.ip()));
    outcome.decided(decision);
    if let Err(denial) = &decision.verdict {
        let text = format!(
            "policy has changed, and the connection, plaintext that the agent did not carry, is permitted no longer: {denial}"
        );
        outcome.failed(Reason::PolicyRevoked, &text);
    }
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
