//! The plugin's side: one run is one command of the container runtime.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::{
    NAME,
    away::{self, Asked},
    protocol::{self, Answer, Request},
    result,
    spec::{Failure, NEWEST, VERSIONS, code},
};
use crate::sandbox::Attachment;

/// The plugin's configuration, as [`install`](super::install) writes it and the runtime passes it on.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config<'a> {
    /// The version that the runtime speaks.
    #[serde(default)]
    pub cni_version: Option<String>,
    /// The node's name.
    pub node: String,
    /// The agent's socket.
    pub socket: PathBuf,
    /// What the agent knew last.
    pub saved: PathBuf,
    /// How the API server is reached while no agent answers; none where there is no API server.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    /// The namespace of Culvert itself.
    pub root_namespace: String,
    /// What the plugins before this one made.
    #[serde(default, borrow)]
    pub prev_result: Option<&'a RawValue>,
    /// GC: what still exists.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    valid_attachments: Vec<ValidAttachment>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

/// The variables that the runtime sets.
pub type Environment<'a> = HashMap<Cow<'a, str>, Cow<'a, str>>;

/// Which pod the runtime means.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid; empty where the runtime does not tell.
    pub uid: String,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Runs one command and returns what goes to the standard output. `ask` asks the API server about a pod, where the
/// configuration names one.
///
/// # Errors
/// What the runtime is to read instead.
pub fn run(
    environment: &Environment<'_>,
    stdin: &str,
    ask: impl FnOnce(&Config<'_>, &PodName) -> Asked,
) -> Result<String, Failure> {
    let command = variable(environment, "CNI_COMMAND")?;
    if command == "VERSION" {
        let asked: Option<serde_json::Value> = serde_json::from_str(stdin).ok();
        let version = asked.as_ref().and_then(|asked| asked["cniVersion"].as_str()).unwrap_or(NEWEST);
        return Ok(json!({ "cniVersion": version, "supportedVersions": VERSIONS }).to_string());
    }
    let config: Config<'_> = serde_json::from_str(stdin)
        .map_err(|error| Failure::new(code::DECODE, format!("the configuration of {NAME}: {error}")))?;
    let version = config.cni_version.clone().unwrap_or_else(|| NEWEST.to_owned());
    execute(command, &config, environment, ask).map_err(|failure| failure.in_version(&version))
}

fn execute(
    command: &str,
    config: &Config<'_>,
    environment: &Environment<'_>,
    ask: impl FnOnce(&Config<'_>, &PodName) -> Asked,
) -> Result<String, Failure> {
    if let Some(version) = config.cni_version.as_deref().filter(|version| !VERSIONS.contains(version)) {
        let msg = format!("cniVersion {version} is not supported: {}", VERSIONS.join(", "));
        return Err(Failure::new(code::VERSION, msg));
    }
    match command {
        "ADD" => {
            let made = config.prev_result.ok_or_else(|| {
                Failure::new(
                    code::CONFIGURATION,
                    format!("{NAME} makes no network: it must come after a plugin that does"),
                )
            })?;
            start(config, environment, made, ask)?;
            Ok(made.get().to_owned())
        }
        "CHECK" => check(config, environment, ask).map(|()| String::new()),
        "DEL" => {
            let (container, interface) = container(environment)?;
            // Nobody to tell is no error: an agent that comes back finds the namespace gone.
            let _ = protocol::ask(&config.socket, &Request::Del { container, interface });
            Ok(String::new())
        }
        "GC" => {
            let valid = config.valid_attachments.iter();
            let valid = valid.map(|one| (one.container_id.clone(), one.ifname.clone())).collect();
            let _ = protocol::ask(&config.socket, &Request::Gc { valid });
            Ok(String::new())
        }
        "STATUS" => status(config).map(|()| String::new()),
        other => {
            let msg = format!("CNI_COMMAND {other:?} is none of ADD, DEL, CHECK, GC, STATUS and VERSION");
            Err(Failure::new(code::ENVIRONMENT, msg))
        }
    }
}

/// ADD: returns when the pod may start.
fn start(
    config: &Config<'_>,
    environment: &Environment<'_>,
    made: &RawValue,
    ask: impl FnOnce(&Config<'_>, &PodName) -> Asked,
) -> Result<(), Failure> {
    let Some(pod) = pod(environment)? else { return Ok(()) };
    let addresses = addresses(made)?;
    let attachment = attachment(environment, &pod, addresses)?;
    match protocol::ask(&config.socket, &Request::Add(attachment)) {
        Ok(Answer::Done | Answer::NotEnrolled(_)) => Ok(()),
        Ok(Answer::Failed(why)) => Err(failed(&pod, &why)),
        Ok(Answer::Unknown(why)) => away::decide(config, &pod, &why, ask),
        Err(error) => away::decide(config, &pod, &error.to_string(), ask),
    }
}

fn check(
    config: &Config<'_>,
    environment: &Environment<'_>,
    ask: impl FnOnce(&Config<'_>, &PodName) -> Asked,
) -> Result<(), Failure> {
    let Some(pod) = pod(environment)? else { return Ok(()) };
    let addresses = config.prev_result.map_or_else(|| Ok(Vec::new()), addresses)?;
    let attachment = attachment(environment, &pod, addresses)?;
    match protocol::ask(&config.socket, &Request::Check(attachment)) {
        Ok(Answer::Done | Answer::NotEnrolled(_)) => Ok(()),
        Ok(Answer::Failed(why)) => Err(failed(&pod, &why)),
        Ok(Answer::Unknown(why)) => away::decide(config, &pod, &why, ask),
        // What was enrolled stays captured, and fails closed: it is not as it ought to be.
        Err(error) => away::decide(config, &pod, &error.to_string(), ask),
    }
}

/// Whether ADD could be served. Without an agent it is for the pods that are not to be enrolled, and the node must stay
/// ready for them.
fn status(config: &Config<'_>) -> Result<(), Failure> {
    let Err(error) = protocol::ask(&config.socket, &Request::Status) else { return Ok(()) };
    if config.saved.exists() || config.kubeconfig.as_deref().is_some_and(Path::exists) {
        return Ok(());
    }
    let msg = format!(
        "no agent of node {} answers at {} ({error}), and nothing says which pods are to be in the mesh",
        config.node,
        config.socket.display()
    );
    Err(Failure::new(code::NOT_AVAILABLE, msg))
}

fn failed(pod: &PodName, why: &str) -> Failure {
    Failure::new(code::TRY_AGAIN, format!("pod {pod} is not in the mesh: {why}"))
        .with_details("`culvert status` on the node says how it stands; the runtime tries again by itself")
}

fn addresses(made: &RawValue) -> Result<Vec<std::net::IpAddr>, Failure> {
    result::addresses(made.get())
        .map_err(|error| Failure::new(code::DECODE, format!("prevResult is no CNI result: {error}")))
}

/// Returns the pod that is meant; none where the container is no pod (`podman run` on the same configuration).
fn pod(environment: &Environment<'_>) -> Result<Option<PodName>, Failure> {
    let args = environment.get("CNI_ARGS").map(|args| &**args).unwrap_or_default();
    let arg = |name: &str| {
        args.split(';')
            .find_map(|arg| arg.split_once('=').filter(|(key, _)| *key == name))
            .map(|(_, value)| value)
    };
    let Some(name) = arg("K8S_POD_NAME").filter(|name| !name.is_empty()) else { return Ok(None) };
    let Some(namespace) = arg("K8S_POD_NAMESPACE").filter(|namespace| !namespace.is_empty()) else {
        let msg = format!("CNI_ARGS names the pod {name} without K8S_POD_NAMESPACE");
        return Err(Failure::new(code::ENVIRONMENT, msg));
    };
    let uid = arg("K8S_POD_UID").unwrap_or_default().to_owned();
    Ok(Some(PodName { namespace: namespace.to_owned(), name: name.to_owned(), uid }))
}

fn attachment(
    environment: &Environment<'_>,
    pod: &PodName,
    addresses: Vec<std::net::IpAddr>,
) -> Result<Attachment, Failure> {
    let (container, interface) = container(environment)?;
    let netns = variable(environment, "CNI_NETNS")?.into();
    let PodName { namespace, name, uid } = pod.clone();
    Ok(Attachment { uid, namespace, name, container, interface, netns, addresses })
}

fn container(environment: &Environment<'_>) -> Result<(String, String), Failure> {
    let value = |name| variable(environment, name).map(str::to_owned);
    Ok((value("CNI_CONTAINERID")?, value("CNI_IFNAME")?))
}

fn variable<'a>(environment: &'a Environment<'_>, name: &str) -> Result<&'a str, Failure> {
    let value = environment.get(name).map(|value| &**value).filter(|value| !value.is_empty());
    value.ok_or_else(|| {
        let msg = format!("{name} is not set: {NAME} is started by a container runtime (CNI specification)");
        Failure::new(code::ENVIRONMENT, msg)
    })
}
