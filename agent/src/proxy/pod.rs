//! One enrolled pod of this node: what its connections need to know, and the tasks that accept them.

use std::{io, sync::Arc};

use tokio::{net::TcpStream, sync::watch};
use tokio_util::sync::CancellationToken;

use super::{
    bypass::Bypass, client_ports::ClientPorts, context::Context, inbound, listener, metrics::Reporter,
    native, outbound, plaintext, shares::Holder, terms::Terms, workers::Balance,
};
use crate::{
    capture::{self, PodCapture},
    mesh::{Reason, Workload},
    shutdown::Shutdown,
};

/// One enrolled pod. Its listeners run until it is dropped or the agent drains.
#[derive(Debug)]
pub struct Pod {
    shared: Arc<Shared>,
}

/// What a connection's task knows of its pod.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) capture: PodCapture,
    pub(super) client_ports: ClientPorts,
    pub(super) bypass: Bypass,
    /// Changes where the pod's native connections are to be permitted anew.
    pub(super) permits: watch::Sender<()>,
    terms: watch::Sender<Terms>,
    /// Cancelled when the pod has gone, or the agent's grace period is over: its connections end.
    pub(super) gone: CancellationToken,
    /// Cancelled when the listeners are to close: the pod left the mesh, or the agent drains.
    pub(super) closing: CancellationToken,
    /// Cancelled when the pod is given no newer terms any more: it is no longer in the mesh.
    pub(super) left: CancellationToken,
}

impl Pod {
    /// Begins to accept for a pod.
    ///
    /// # Errors
    /// Where its listeners cannot be used.
    pub fn start(context: &Arc<Context>, terms: Terms, capture: PodCapture) -> io::Result<Self> {
        let listen = |sockets: Vec<_>| {
            sockets.into_iter().map(|socket| context.workers.listen(socket)).collect::<io::Result<Vec<_>>>()
        };
        let outbound = listen(capture.outbound_listeners()?)?;
        let hbone = listen(capture.hbone_listeners()?)?;
        let inspected = listen(capture.plaintext_listeners()?)?;
        let shared = Arc::new(Shared {
            capture,
            client_ports: ClientPorts::default(),
            bypass: Bypass::default(),
            permits: watch::Sender::new(()),
            terms: watch::Sender::new(terms),
            gone: context.shutdown.abort().child_token(),
            closing: CancellationToken::new(),
            left: CancellationToken::new(),
        });
        for bound in outbound {
            listener::serve(context, &shared, (bound, Reporter::Source, Balance::Loose), outbound::serve);
        }
        for bound in hbone {
            listener::serve(
                context,
                &shared,
                (bound, Reporter::Destination, Balance::Strict),
                inbound::serve,
            );
        }
        for bound in inspected {
            listener::serve(
                context,
                &shared,
                (bound, Reporter::Destination, Balance::Loose),
                plaintext::serve,
            );
        }
        Bypass::watch(context, &shared);
        context.pods.add(&shared);
        native::end_orphans(context, &shared);
        Ok(Self { shared })
    }

    /// Returns the pod as it was last described.
    pub fn workload(&self) -> Arc<Workload> {
        self.shared.workload()
    }

    /// Returns the terms on which it takes connections.
    pub fn terms(&self) -> Terms {
        self.shared.terms()
    }

    /// Takes the terms of a newer snapshot. Where they decide otherwise, the connections that the agent carries are
    /// checked again, and the answer is true: those that it does not carry are then to be, by [`Self::sweep`].
    pub fn set_terms(&self, mut terms: Terms) -> bool {
        let mut decisive = false;
        self.shared.terms.send_if_modified(|now| {
            decisive = !terms.decide_as(now);
            if !decisive {
                terms.take_after(now);
            }
            *now = terms;
            decisive
        });
        decisive
    }

    /// Ends the connections that bypass the agent and that policy does not permit, soon and in another task. To be called
    /// once the kernel lets no more of them in.
    pub fn sweep(&self) {
        self.shared.bypass.sweep();
    }

    /// Leaves connections alone that bypass the agent, until the next [`Self::sweep`]. To be called before the kernel lets all of
    /// them in.
    pub fn let_be(&self) {
        self.shared.permits.send_replace(());
        self.shared.bypass.rest();
    }

    /// Returns the kernel's side of the pod.
    pub fn capture(&self) -> &PodCapture {
        &self.shared.capture
    }

    /// Closes the listeners once what waits in them is accepted. Connections go on.
    pub fn close(&self) {
        self.shared.closing.cancel();
    }

    /// Ends the pod's connections: it has gone.
    pub fn abort(&self) {
        self.shared.closing.cancel();
        self.shared.gone.cancel();
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.shared.left.cancel();
        self.shared.closing.cancel();
    }
}

/// Why a connection ends before its ends do.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(super) enum Ended {
    /// The agent's grace period is over.
    #[error("the agent is shutting down and the grace period is over")]
    Shutdown,
    /// The pod has gone.
    #[error("the pod has gone")]
    Gone,
}

impl Ended {
    /// Returns what the log and the metrics call it.
    pub(super) fn reason(self) -> Reason {
        match self {
            Self::Shutdown => Reason::Shutdown,
            Self::Gone => Reason::PodGone,
        }
    }
}

impl Shared {
    /// Returns when the pod's connections are to end.
    pub(super) async fn ended(&self, shutdown: &Shutdown) -> Ended {
        self.gone.cancelled().await;
        if shutdown.abort().is_cancelled() { Ended::Shutdown } else { Ended::Gone }
    }

    /// Returns the name under which the pod's connections of one direction are counted.
    pub(super) fn holder(&self, reporter: Reporter) -> Holder {
        (self.workload().uid.clone(), reporter)
    }

    pub(super) fn workload(&self) -> Arc<Workload> {
        self.terms.borrow().workload.clone()
    }

    /// Returns the terms as they are now.
    pub(super) fn terms(&self) -> Terms {
        self.terms.borrow().clone()
    }

    /// Returns the terms as they are, and as they come to be.
    pub(super) fn subscribe(&self) -> watch::Receiver<Terms> {
        self.terms.subscribe()
    }
}

/// Lets the kernel deliver what a finished socket still has to send: from accept or connect on it has linger 0, so that
/// an agent that dies resets it.
pub(super) fn close_gently(stream: &TcpStream) {
    // Fails only where the socket is dead already, and then there is nothing to deliver.
    let _ = capture::end_cleanly(stream);
}
