//! What the plugin does with a pod while no agent answers, or one that knows as little: it has just started, and cannot reach
//! the API server.
//!
//! In this order, until one knows:
//! 1. Culvert's own namespace: its pods start. The authority is among them, which every other certificate depends on, and
//!    none of them speaks for an application. (The agent's own pod uses the node's network, and never comes to a plugin.)
//! 2. The API server: a pod that is to be enrolled does not start, any other does.
//! 3. What the agent saved last: the pod itself, by its uid; else whether its namespace is outside the mesh for certain.
//! 4. Nobody knows: the pod does not start.
//!
//! Step 3 for a pod that the agent never saw cannot know a label of the pod's own. Without an API server the kubelet is
//! given no new pods, so what comes this far are sandboxes that are made anew under a uid that the agent knew, and pods that
//! were bound in the moment when both went away. One of those that opts itself in, in a namespace that is outside, starts
//! and speaks plaintext until the agent is back, which enrols it then.

use super::{
    Config, PodName,
    saved::{Known, Saved},
    spec::{Failure, code},
};

/// What the API server says of a pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Asked {
    /// It is to be enrolled.
    Enrolled,
    /// It is not.
    NotEnrolled,
    /// There is no such pod.
    NoSuchPod,
    /// It cannot be asked, and why.
    Unreachable(String),
}

/// Decides whether a pod may start while no agent answers for the reason `why`; `ask` asks the API server.
pub(super) fn decide(
    config: &Config<'_>,
    pod: &PodName,
    why: &str,
    ask: impl FnOnce(&Config<'_>, &PodName) -> Asked,
) -> Result<(), Failure> {
    if pod.namespace == config.root_namespace {
        return Ok(());
    }
    let api_server = match ask(config, pod) {
        Asked::NotEnrolled => return Ok(()),
        Asked::Enrolled => return Err(refusal(config, pod, why, "it is to be in the mesh")),
        Asked::NoSuchPod => "the API server does not know the pod".to_owned(),
        Asked::Unreachable(error) => format!("the API server cannot be asked ({error})"),
    };
    let saved = Saved::read(&config.saved);
    match saved.as_ref().map(|saved| saved.of_pod(pod)) {
        Ok(Known::Outside) => Ok(()),
        Ok(Known::Enrolled) => {
            let known =
                format!("{api_server}, and when the agent was last here the pod was to be in the mesh");
            Err(refusal(config, pod, why, &known))
        }
        Ok(Known::Nothing) => {
            let unknown = format!("{api_server}, and the agent did not know the pod when it was last here");
            Err(refusal(config, pod, why, &unknown))
        }
        Err(error) => {
            let unread = format!("{api_server}, and {} cannot be read ({error})", config.saved.display());
            Err(refusal(config, pod, why, &unread))
        }
    }
}

fn refusal(config: &Config<'_>, pod: &PodName, why: &str, known: &str) -> Failure {
    let Config { node, socket, .. } = config;
    Failure::new(
        code::TRY_AGAIN,
        format!("pod {pod} does not start while Culvert's agent is away, it might speak plaintext: {known}"),
    )
    .with_details(format!(
        "the agent of node {node} has no answer at {} ({why}): bring it back (kubectl -n {} get pods -l app.kubernetes.io/name=culvert \
         -o wide), or take the pod out of the mesh with the label culvert.dev/mesh: disabled; the runtime tries again by itself",
        socket.display(),
        config.root_namespace,
    ))
}
