//! One enrolled pod of this node: what its connections need to know, and the tasks that accept them.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::{
    client_ports::ClientPorts, context::Context, inbound, listener, metrics::Reporter, outbound,
    shares::Holder,
};
use crate::{
    capture::{self, PodCapture},
    mesh::{Reason, Workload},
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
    workload: Mutex<Arc<Workload>>,
    /// Cancelled when the pod has gone: its connections end.
    pub(super) gone: CancellationToken,
    /// Cancelled when the listeners are to close: the pod left the mesh, or the agent drains.
    pub(super) closing: CancellationToken,
}

impl Pod {
    /// Begins to accept for a pod.
    ///
    /// # Errors
    /// Where its listeners cannot be used.
    pub fn start(context: &Arc<Context>, workload: Arc<Workload>, capture: PodCapture) -> io::Result<Self> {
        let outbound = listen(capture.outbound_listeners()?)?;
        let hbone = listen(capture.hbone_listeners()?)?;
        let shared = Arc::new(Shared {
            capture,
            client_ports: ClientPorts::default(),
            workload: Mutex::new(workload),
            gone: CancellationToken::new(),
            closing: CancellationToken::new(),
        });
        for socket in outbound {
            listener::serve(context, &shared, (socket, Reporter::Source), outbound::serve);
        }
        for socket in hbone {
            listener::serve(context, &shared, (socket, Reporter::Destination), inbound::serve);
        }
        Ok(Self { shared })
    }

    /// Returns the pod as it was last described.
    pub fn workload(&self) -> Arc<Workload> {
        self.shared.workload()
    }

    /// Takes a new description of the same pod.
    pub fn describe(&self, workload: Arc<Workload>) {
        *self.shared.workload.lock().unwrap_or_else(PoisonError::into_inner) = workload;
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
    pub(super) async fn ended(&self, context: &Context) -> Ended {
        tokio::select! {
            () = context.shutdown.abort().cancelled() => Ended::Shutdown,
            () = self.gone.cancelled() => Ended::Gone,
        }
    }

    /// Returns the name under which the pod's connections of one direction are counted.
    pub(super) fn holder(&self, reporter: Reporter) -> Holder {
        (self.workload().uid.clone(), reporter)
    }

    pub(super) fn workload(&self) -> Arc<Workload> {
        self.workload.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn listen(sockets: Vec<std::net::TcpListener>) -> io::Result<Vec<tokio::net::TcpListener>> {
    sockets.into_iter().map(tokio::net::TcpListener::from_std).collect()
}

/// Lets the kernel deliver what a finished socket still has to send: from accept or connect on it has linger 0, so that
/// an agent that dies resets it.
pub(super) fn close_gently(stream: &TcpStream) {
    // Fails only where the socket is dead already, and then there is nothing to deliver.
    let _ = capture::end_cleanly(stream);
}
