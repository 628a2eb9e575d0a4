//! A large mesh around the pods that are measured: pods and policies that no connection of theirs has to do with.

use std::net::Ipv4Addr;

use anyhow::Result;
use lab::Mesh;

use super::stage::MESH;

/// How many pods there are beside those of the stage.
pub(super) const PODS: u32 = 100_000;
/// How many policies, all of the namespace of the stage and each for one other pod in it.
pub(super) const POLICIES: u32 = 10_000;

/// Writes all of it, the policies first: who knows the pods knows them too.
pub(super) fn apply(mesh: &Mesh) -> Result<()> {
    mesh.apply(POLICY_FILE, &(0..POLICIES).map(policy).collect::<String>())?;
    for first in (0..PODS).step_by(PODS_PER_FILE) {
        let last = PODS.min(first + PODS_PER_FILE as u32);
        mesh.apply(&file(first), &(first..last).map(pod).collect::<String>())?;
    }
    Ok(())
}

/// Removes all of it.
pub(super) fn delete(mesh: &Mesh) -> Result<()> {
    mesh.delete(POLICY_FILE)?;
    (0..PODS).step_by(PODS_PER_FILE).try_for_each(|first| mesh.delete(&file(first)))
}

fn file(first: u32) -> String {
    format!("large-pods-{first:06}.yaml")
}

fn pod(number: u32) -> String {
    let [node, team] = [number / PODS_PER_NODE, number / PODS_PER_NAMESPACE];
    let address = Ipv4Addr::from_bits(u32::from_be_bytes([100, 64, 0, 0]) + number);
    format!(
        "---\napiVersion: v1\nkind: Pod\n\
         metadata: {{name: p-{number}, namespace: team-{team}, uid: large-{number}, \
         labels: {{app: a-{number}, culvert.dev/mesh: enabled}}, annotations: {{culvert.dev/enrolled: 'true'}}}}\n\
         spec: {{nodeName: large-{node}, serviceAccountName: a-{number}, containers: [{{name: app, image: app}}]}}\n\
         status: {{phase: Running, podIP: {address}, podIPs: [{{ip: {address}}}]}}\n"
    )
}

fn policy(number: u32) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: large-{number}, namespace: {MESH}}}\n\
         spec: {{selector: {{matchLabels: {{app: other-{number}}}}}, \
         rules: [{{from: [{{source: {{principals: [\"cluster.local/ns/{MESH}/sa/a-{number}\"]}}}}]}}]}}\n"
    )
}

const POLICY_FILE: &str = "large-policies.yaml";
/// An agent reads files of 16 MiB at most.
const PODS_PER_FILE: usize = 10_000;
const PODS_PER_NODE: u32 = 50;
const PODS_PER_NAMESPACE: u32 = 200;
