//! The plugin's way to the API server: the agent's own service account, in a file that the host's root can read, as other
//! CNI plugins have one.

use std::{
    env, fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::json;

use crate::run_directory::write_private;

/// Where the kubelet keeps a pod's service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How often it is looked at: the kubelet renews the token at four fifths of its life, which is an hour.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Why the file cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process is in no pod.
    #[error("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: the agent runs in no pod")]
    NoService,
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Writes the kubeconfig and keeps it up to date, for as long as the agent lives. It stays when the agent ends.
pub async fn keep_fresh(path: PathBuf) {
    let mut written = None;
    loop {
        let new = make(Path::new(ACCOUNT));
        match new.and_then(|new| {
            if written.as_ref() == Some(&new) { Ok(new) } else { write(&path, &new).map(|()| new) }
        }) {
            Ok(new) => written = Some(new),
            Err(error) => {
                tracing::warn!(%error, "the CNI plugin's kubeconfig could not be written: while no agent runs it cannot ask the API server");
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn make(account: &Path) -> Result<String, Error> {
    let variable = |name| env::var(name).ok().filter(|value: &String| !value.is_empty());
    let (host, port) = variable("KUBERNETES_SERVICE_HOST")
        .zip(variable("KUBERNETES_SERVICE_PORT"))
        .ok_or(Error::NoService)?;
    let host = match host.parse() {
        Ok(IpAddr::V6(v6)) => format!("[{v6}]"),
        _ => host,
    };
    let read = |name: &str| {
        let path = account.join(name);
        fs::read_to_string(&path).map_err(|source| Error::File { path, source })
    };
    let (token, roots) = (read("token")?, read("ca.crt")?);
    // JSON is YAML. The certificate itself, not its path, which is the pod's.
    let roots = BASE64_STANDARD.encode(roots);
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "cluster",
            "cluster": { "server": format!("https://{host}:{port}"), "certificate-authority-data": roots },
        }],
        "users": [{ "name": "culvert", "user": { "token": token.trim() } }],
        "contexts": [{ "name": "culvert", "context": { "cluster": "cluster", "user": "culvert" } }],
        "current-context": "culvert",
    });
    Ok(config.to_string())
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    write_private(path, text.as_bytes()).map_err(|source| Error::File { path: path.to_owned(), source })
}
