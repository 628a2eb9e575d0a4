//! The agent towards the node's container runtime: where its pods' sandboxes are, and its CNI plugin, answered and kept in
//! the chain.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::{net::UnixListener, sync::watch};

use crate::{
    admin,
    capture::Capture,
    cli::AgentArgs,
    cni::{self, Saved, install},
    enroll::{PodStatus, Status},
    mesh::Snapshot,
    run_file,
    sandbox::{self, Sandboxes},
    shutdown::Shutdown,
    succession::until_handed_over,
};

/// What the container runtime has to do with.
pub(crate) struct ContainerRuntime {
    node: String,
    sandboxes: Sandboxes,
    listener: UnixListener,
    install: Option<install::Config>,
    problem: watch::Sender<String>,
    /// Asks about pods that the snapshot does not know; none where there is no API server.
    pub(crate) ask: Option<cni::Ask>,
}

impl ContainerRuntime {
    /// Begins to follow the kubelet's cgroups, and binds the plugin's socket. The plugin is away until [`Self::serve`].
    ///
    /// # Errors
    /// Where the socket cannot be bound.
    pub(crate) fn start(args: &AgentArgs, capture: &Capture) -> anyhow::Result<Self> {
        let sandboxes = Sandboxes::new(sandbox::Config {
            proc: args.host_proc.clone(),
            cgroups: capture.cgroup_root().to_owned(),
            saved: run_file(&args.node, "-attachments.json"),
        });
        let socket = run_file(&args.node, SOCKET);
        let listener = admin::bind_private(&socket)
            .with_context(|| format!("binding the CNI plugin's socket {}", socket.display()))?;
        let install = args.cni_conf_dir.clone().map(|configurations| install::Config {
            configurations,
            binaries: args.cni_bin_dir.clone(),
            plugin: install::Plugin {
                node: args.node.clone(),
                socket,
                saved: run_file(&args.node, SAVED),
                kubeconfig: None,
                root_namespace: args.root_namespace.clone(),
            },
        });
        let problem = watch::Sender::default();
        Ok(Self { node: args.node.clone(), sandboxes, listener, install, problem, ask: None })
    }

    /// Returns where the pods' sandboxes are.
    pub(crate) fn sandboxes(&self) -> Sandboxes {
        self.sandboxes.clone()
    }

    /// Returns what keeps the plugin from being in the chain; empty where nothing does.
    pub(crate) fn problem(&self) -> watch::Receiver<String> {
        self.problem.subscribe()
    }

    /// Answers the plugin and keeps it in its place, until the agent drains or a successor has the node. From then on no
    /// agent answers that would not enrol the pod.
    pub(crate) async fn serve(self, mesh: watch::Receiver<Arc<Snapshot>>, pods: Status, shutdown: Shutdown) {
        let Self { node, sandboxes, listener, install, problem, ask } = self;
        let socket = run_file(&node, SOCKET);
        let keep = async {
            match install {
                Some(config) => install::keep(config, problem).await,
                None => std::future::pending().await,
            }
        };
        let saved = Saved::follow(run_file(&node, SAVED), mesh.clone(), node.clone());
        let server =
            cni::Server { node, mesh, sandboxes: sandboxes.clone(), standings: standings(pods), ask };
        let all = async { tokio::join!(server.serve(listener), keep, saved, sandboxes.follow_cgroups()) };
        let all = async {
            let _ = shutdown.drain().run_until_cancelled(all).await;
        };
        until_handed_over(shutdown.clone(), all).await;
        // The successor has bound its own in its place.
        if !shutdown.succeeded().is_cancelled() {
            drop(std::fs::remove_file(socket));
        }
    }
}

/// The ends of the files' names (`run_file`). Both go with `culvert cleanup`.
const SOCKET: &str = "-cni.sock";
const SAVED: &str = "-cni.json";

/// Tells how the pods stand, for the CNI plugin to wait for.
fn standings(status: Status) -> cni::Standings {
    let sender = watch::Sender::default();
    let standings = sender.subscribe();
    tokio::spawn(async move {
        let mut pods = status.subscribe();
        loop {
            let new = pods.borrow_and_update().iter().map(standing).collect();
            sender.send_replace(Arc::new(new));
            if pods.changed().await.is_err() {
                return;
            }
        }
    });
    standings
}

fn standing(pod: &PodStatus) -> (Arc<str>, cni::Standing) {
    let standing = match pod.netns {
        Some(netns) if pod.state == "enrolled" => cni::Standing::Enrolled(netns),
        _ => cni::Standing::Not(pod.state.clone()),
    };
    (pod.terms.workload.uid.clone(), standing)
}
