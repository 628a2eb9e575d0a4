//! The Kubernetes API server: how it is reached, and which of several processes leads.
//!
//! Owns the client's configuration and what several components need of the API server alike. Does not own what they ask
//! it for: watches are `control`'s, token reviews `ca_server`'s.

pub mod lease;
mod traffic;

use std::{fmt, path::Path, time::Duration};

use kube::{
    Client, Config,
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
};

pub use self::{
    lease::Lease,
    traffic::{Traffic, Watch},
};

/// A client, and what goes over it.
#[derive(Clone)]
pub struct Connection {
    /// The client.
    pub client: Client,
    /// What goes over it.
    pub traffic: Traffic,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig cannot be used.
    #[error("the kubeconfig cannot be used: {0}")]
    Kubeconfig(#[source] kube::config::KubeconfigError),
    /// The process is in no pod.
    #[error(
        "there is no service account here ({0}): outside of a pod name a kubeconfig (--kubeconfig), inside of one set automountServiceAccountToken"
    )]
    InCluster(#[source] kube::config::InClusterError),
    /// The client cannot be made.
    #[error("no client of the API server can be made: {0}")]
    Client(#[source] kube::Error),
}

/// Makes a client by a kubeconfig, or without one by the service account of the pod that this process runs in. Nothing is
/// sent yet. Must be called within a Tokio runtime.
///
/// # Errors
/// Where the configuration cannot be used. An API server that does not answer is no error here.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, Error> {
    connect(kubeconfig).await.map(|connection| connection.client)
}

/// Makes a client as [`client`] does, whose traffic can be looked at.
///
/// # Errors
/// As [`client`].
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Connection, Error> {
    let mut config = configuration(kubeconfig).await?;
    config.connect_timeout = Some(CONNECT_LIMIT);
    // Longer than a watch without events is open.
    config.read_timeout = Some(READ_LIMIT);
    let traffic = Traffic::default();
    let builder = ClientBuilder::try_from(config).map_err(Error::Client)?;
    let client = builder.with_layer(&traffic).build();
    Ok(Connection { client, traffic })
}

/// Reads how the API server is reached: its address, its roots, and who asks. By a kubeconfig, or without one by the service
/// account of the pod that this process runs in.
///
/// # Errors
/// As [`client`].
pub async fn configuration(kubeconfig: Option<&Path>) -> Result<Config, Error> {
    let Some(path) = kubeconfig else { return Config::incluster().map_err(Error::InCluster) };
    let read = Kubeconfig::read_from(path).map_err(Error::Kubeconfig)?;
    let options = KubeConfigOptions::default();
    Config::from_custom_kubeconfig(read, &options).await.map_err(Error::Kubeconfig)
}

/// Returns an error with its causes: the client's own say no more than that a service failed.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// Without the client, which has nothing to show.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("traffic", &self.traffic).finish_non_exhaustive()
    }
}

/// How long a connection to the API server may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long the API server may be silent: it closes a watch after 290 s (`kube::runtime::watcher`).
const READ_LIMIT: Duration = Duration::from_secs(295);
