//! The agent towards the node's container runtime: where its pods' sandboxes are, and its CNI plugin, answered and kept in
//! the chain.

use std::{future::Future, sync::Arc};

use anyhow::Context as _;
use tokio::{net::UnixListener, sync::watch};

use crate::{
    admin,
    apiserver::Connection,
    capture::Capture,
    cli::{self, AgentArgs},
    cni::{self, Saved, install},
    enroll::{PodStatus, Status},
    mesh::Snapshot,
    run_directory::RunFile,
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
    /// How the plugin reaches the API server; none where there is none, or no plugin.
    kubeconfig: Option<install::Kubeconfig>,
    problems: install::Problems,
    /// Asks about pods that the snapshot does not know; none where there is no API server.
    ask: Option<cni::Ask>,
}

impl ContainerRuntime {
    /// Begins to follow the kubelet's cgroups, and binds the plugin's socket. The plugin is away until [`Self::serve`].
    ///
    /// # Errors
    /// Where the socket cannot be bound.
    pub(crate) fn start(
        args: &AgentArgs,
        capture: &Capture,
        api_server: Option<&Connection>,
    ) -> anyhow::Result<Self> {
        let sandboxes = Sandboxes::new(sandbox::Config {
            proc: args.host_proc.clone(),
            cgroups: capture.cgroup_root().to_owned(),
            saved: RunFile::Attachments.of(&args.node),
        });
        let socket = RunFile::PluginSocket.of(&args.node);
        let listener = admin::bind_private(&socket)
            .with_context(|| format!("binding the CNI plugin's socket {}", socket.display()))?;
        let kubeconfig = api_server.map(|connection| install::Kubeconfig {
            client: connection.client.clone(),
            agents: args.kubeconfig.clone(),
            root_namespace: args.root_namespace.clone(),
            path: RunFile::PluginKubeconfig.of(&args.node),
        });
        let kubeconfig = kubeconfig.filter(|_| args.cni_conf_dir.is_some());
        let ask = api_server
            .map(|connection| cli::cni::asker(connection.client.clone(), args.root_namespace.clone()));
        let install = args.cni_conf_dir.clone().map(|configurations| install::Config {
            configurations,
            binaries: args.cni_bin_dir.clone(),
            plugin: install::Plugin {
                node: args.node.clone(),
                socket,
                saved: RunFile::PluginSaved.of(&args.node),
                kubeconfig: kubeconfig.as_ref().map(|kubeconfig| kubeconfig.path.clone()),
                root_namespace: args.root_namespace.clone(),
            },
        });
        let problems = install::Problems::default();
        Ok(Self { node: args.node.clone(), sandboxes, listener, install, kubeconfig, problems, ask })
    }

    /// Returns where the pods' sandboxes are.
    pub(crate) fn sandboxes(&self) -> Sandboxes {
        self.sandboxes.clone()
    }

    /// Returns what is wrong with the plugin, as it comes to be.
    pub(crate) fn problems(&self) -> install::Problems {
        self.problems.clone()
    }

    /// Answers the plugin and keeps it in its place, until the agent drains or a successor has the node. From then on no
    /// agent answers that would not enrol the pod.
    pub(crate) async fn serve(
        self,
        complete: impl Future<Output = ()>,
        mesh: watch::Receiver<Arc<Snapshot>>,
        pods: Status,
        shutdown: Shutdown,
    ) {
        let Self { node, sandboxes, listener, install, kubeconfig, problems, ask } = self;
        let socket = RunFile::PluginSocket.of(&node);
        let keep = async {
            match install {
                Some(config) => install::keep(config, problems.chain).await,
                None => std::future::pending().await,
            }
        };
        let fresh = async {
            match kubeconfig {
                Some(kubeconfig) => kubeconfig.keep_fresh(problems.credentials).await,
                None => std::future::pending().await,
            }
        };
        let saved = Saved::follow(RunFile::PluginSaved.of(&node), mesh.clone(), node.clone());
        // What an earlier agent saved is better than what is not complete.
        let saved = async {
            complete.await;
            saved.await;
        };
        let server =
            cni::Server { node, mesh, sandboxes: sandboxes.clone(), standings: standings(pods), ask };
        let all =
            async { tokio::join!(server.serve(listener), keep, fresh, saved, sandboxes.follow_cgroups()) };
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
