//! The plugin's place on the node: its binary, the end of the chain, and its way to the API server.
//!
//! It is put there while the agent runs, again whenever the network's own installer writes its file anew, and taken away by
//! `culvert cleanup` alone: between two agents of an upgrade it must not be missing.

mod files;
mod kubeconfig;
mod list;
mod problems;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{EventKind, RecursiveMode, Watcher as _};
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use super::NAME;

pub use kubeconfig::Kubeconfig;
pub use problems::Problems;

/// How often the configuration is looked at where nothing happens.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// How often at most it is written: two that rewrite one file in turn must not do so without end.
const PAUSE: Duration = Duration::from_secs(1);

/// Where things go.
#[derive(Clone, Debug)]
pub struct Config {
    /// The container runtime's directory of network configurations: `/etc/cni/net.d`.
    pub configurations: PathBuf,
    /// Its directory of plugins: `/opt/cni/bin`; none leaves the binary to others.
    pub binaries: Option<PathBuf>,
    /// What the plugin needs to know.
    pub plugin: Plugin,
}

/// What the plugin needs to know of its agent.
#[derive(Clone, Debug)]
pub struct Plugin {
    /// The node's name.
    pub node: String,
    /// The agent's socket.
    pub socket: PathBuf,
    /// The file of what the agent knew last.
    pub saved: PathBuf,
    /// How the API server is reached.
    pub kubeconfig: Option<PathBuf>,
    /// The namespace of Culvert itself.
    pub root_namespace: String,
}

/// Why the plugin is not in the chain.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{path}: {what}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// There is no network yet.
    #[error(
        "{0} holds no network configuration yet (*.conflist, *.conf, *.json): the cluster's CNI installs it"
    )]
    NoNetwork(PathBuf),
    /// The first configuration cannot be used, and the container runtime cannot use it either.
    #[error(
        "{path} is no network configuration ({why}); nothing was changed: the CNI that owns it has to mend it"
    )]
    Broken {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl Plugin {
    /// The plugin's entry in the chain.
    fn entry(&self) -> Value {
        let Self { node, socket, saved, kubeconfig, root_namespace } = self;
        let mut entry = json!({
            "type": NAME, "node": node, "socket": socket, "saved": saved, "rootNamespace": root_namespace,
        });
        if let Some(kubeconfig) = kubeconfig {
            entry["kubeconfig"] = json!(kubeconfig);
        }
        entry
    }
}

/// Puts the plugin in its place and keeps it there, for as long as the agent lives. What is wrong is told by `problem`,
/// empty where nothing is.
pub async fn keep(config: Config, problem: watch::Sender<String>) {
    let changed = Arc::new(Notify::new());
    let _watcher = watch_directory(&config.configurations, &changed);
    loop {
        let now = config.clone();
        let installed = tokio::task::spawn_blocking(move || install(&now)).await;
        let Ok(installed) = installed else { return };
        problems::note(
            &problem,
            installed.err(),
            "the CNI plugin is not in the chain: pods are found by their cgroups, after they have started",
        );
        sleep(PAUSE).await;
        // Looked at again at the deadline too.
        let _ = timeout(LOOK_AGAIN, changed.notified()).await;
    }
}

fn watch_directory(directory: &Path, changed: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let changed = Arc::clone(changed);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading is an event as well.
        if !event.is_ok_and(|event| {
            matches!(
                event.kind,
                EventKind::Access(notify::event::AccessKind::Open(_) | notify::event::AccessKind::Read)
            )
        }) {
            changed.notify_one();
        }
    });
    let mut watcher = watcher.ok()?;
    watcher.watch(directory, RecursiveMode::NonRecursive).ok()?;
    Some(watcher)
}

/// Puts the plugin in its place, once.
///
/// # Errors
/// Where it is not there then. A configuration that cannot be used stays as it is.
pub fn install(config: &Config) -> Result<(), Error> {
    let Config { configurations, binaries, plugin } = config;
    // The binary first: a chain that names one that is not there starts no pod.
    if let Some(binaries) = binaries {
        files::copy_binary(&binaries.join(NAME))?;
    }
    let all = files::configurations(configurations)?;
    let Some((first, others)) = all.split_first() else {
        return Err(Error::NoNetwork(configurations.clone()));
    };
    files::insert(first, &plugin.entry())?;
    for other in others {
        // It was the first before.
        if let Err(error) = files::remove(other, Some(&plugin.node)) {
            tracing::debug!(%error, "a network configuration that is not used");
        }
    }
    Ok(())
}

/// Takes the plugin out of every chain, of one node's agent or of all, and the binary where no chain names it any more.
/// Returns what was changed.
///
/// # Errors
/// Where a file cannot be read or written.
pub fn uninstall(configurations: &Path, binaries: &Path, node: Option<&str>) -> Result<Vec<String>, Error> {
    let mut done = Vec::new();
    let mut named = false;
    for path in files::configurations(configurations)? {
        match files::remove(&path, node) {
            Ok(true) => done.push(format!("{NAME} from {}", path.display())),
            Ok(false) => {}
            // Not ours to mend, and no chain at all.
            Err(Error::Broken { .. }) => continue,
            Err(error) => return Err(error),
        }
        named |= files::names_plugin(&path);
    }
    let binary = binaries.join(NAME);
    if !named && files::remove_binary(&binary)? {
        done.push(binary.display().to_string());
    }
    Ok(done)
}
