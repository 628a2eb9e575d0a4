//! `culvert cni`, and the binary under the name `culvert-cni`: the CNI plugin.

use std::{
    borrow::Cow,
    env,
    ffi::OsStr,
    io::{Read as _, Write as _, stdin, stdout},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{Api, Client};

use crate::{
    apiserver,
    cni::{self, Asked, Config, Environment, Failure, PodName, code},
    control::{self, Readiness, Settings},
    mesh::{Enrollment, TrustDomain},
};

/// More than any configuration with its result has.
const MAX_STDIN: u64 = 4 * 1024 * 1024;
/// How long the API server may take: the runtime waits.
const ASK_LIMIT: Duration = Duration::from_secs(5);

/// Returns whether the program was called by the plugin's name.
pub fn is_called(program: Option<&OsStr>) -> bool {
    program.and_then(|program| Path::new(program).file_name()).is_some_and(|name| name == cni::NAME)
}

/// Runs the plugin: its configuration comes from the standard input and the environment, and its answer, an error too, goes
/// to the standard output, where the container runtime reads it.
pub fn run() -> ExitCode {
    let outcome = command();
    let (text, code) = match &outcome {
        Ok(text) => (text.clone(), ExitCode::SUCCESS),
        Err(failure) => (serde_json::json!(failure).to_string(), ExitCode::FAILURE),
    };
    match stdout().write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

fn command() -> Result<String, Failure> {
    let mut input = String::new();
    stdin().take(MAX_STDIN).read_to_string(&mut input).map_err(|error| Failure {
        version: "1.0.0".to_owned(),
        code: code::IO,
        msg: format!("the configuration cannot be read from the standard input: {error}"),
        details: String::new(),
    })?;
    let variables = env::vars_os().filter_map(|(name, value)| {
        Some((Cow::from(name.into_string().ok()?), Cow::from(value.into_string().ok()?)))
    });
    let environment: Environment<'_> = variables.collect();
    cni::run(&environment, &input, ask)
}

/// Asks the API server whether a pod is to be enrolled, with the kubeconfig that the agent wrote.
fn ask(config: &Config<'_>, pod: &PodName) -> Asked {
    let Some(kubeconfig) = &config.kubeconfig else {
        return Asked::Unreachable("the agent is given none".to_owned());
    };
    let asked = async {
        match apiserver::client(Some(kubeconfig)).await {
            Ok(client) => asker(client, config.root_namespace.clone())(pod.clone()).await,
            Err(error) => Asked::Unreachable(apiserver::chain(&error)),
        }
    };
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(asked),
        Err(error) => Asked::Unreachable(error.to_string()),
    }
}

/// Asks the API server for the agent, which has a client of it.
pub(crate) fn asker(client: Client, root_namespace: String) -> cni::Ask {
    Box::new(move |pod| {
        let (client, root_namespace) = (client.clone(), root_namespace.clone());
        Box::pin(async move {
            match tokio::time::timeout(ASK_LIMIT, enrollment(&client, &pod, &root_namespace)).await {
                Ok(Ok(asked)) => asked,
                Ok(Err(error)) => Asked::Unreachable(error),
                Err(_) => {
                    Asked::Unreachable(format!("no answer within {}", humantime::format_duration(ASK_LIMIT)))
                }
            }
        })
    })
}

/// Asks the API server whether a pod is to be enrolled. An error says why it cannot be told.
async fn enrollment(client: &Client, pod: &PodName, root_namespace: &str) -> Result<Asked, String> {
    let text = |error: kube::Error| apiserver::chain(&error);
    let found =
        Api::<Pod>::namespaced(client.clone(), &pod.namespace).get_opt(&pod.name).await.map_err(text)?;
    let Some(found) = found.filter(|found| is_meant(found, pod)) else { return Ok(Asked::NoSuchPod) };
    let namespace = Api::<Namespace>::all(client.clone()).get(&pod.namespace).await.map_err(text)?;
    let settings = Settings {
        // Nothing that is asked for here depends on it.
        trust_domain: "cluster.local".parse::<TrustDomain>().map_err(|error| error.to_string())?,
        root_namespace: root_namespace.to_owned(),
        readiness: Readiness::Annotation,
    };
    match control::enrollment_of(&found, &namespace, &settings) {
        Ok(Enrollment::Enrolled) => Ok(Asked::Enrolled),
        Ok(Enrollment::Not(_)) => Ok(Asked::NotEnrolled),
        Err(invalid) => Err(format!("whether the pod is to be in the mesh cannot be told: {invalid}")),
    }
}

/// Whether it is the pod that the runtime means, and not one that had the name before or after it. Of a static pod the
/// runtime has another uid, without dashes.
fn is_meant(found: &Pod, pod: &PodName) -> bool {
    !pod.uid.contains('-') || found.metadata.uid.as_ref() == Some(&pod.uid)
}
