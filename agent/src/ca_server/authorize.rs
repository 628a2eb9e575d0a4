//! Who may have which certificate: a node's agent those of the pods that run on its node. Pure: no I/O, no clock.

use crate::mesh::{Identity, Snapshot};

/// Why an agent does not get a certificate.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Denied {
    /// Nobody has the identity; the pod may be so new that it was not heard of here.
    #[error("no pod on any node is known to be {0}: if it was made just now, ask again")]
    Unknown(Identity),
    /// The identity runs elsewhere.
    #[error("{identity} runs on {there}, and not on {here}, the node of this token")]
    Elsewhere {
        /// Who was asked for.
        identity: Identity,
        /// The caller's node.
        here: String,
        /// A node where it runs.
        there: String,
    },
}

/// Decides whether the agent of `node` may have the certificate of `identity`.
///
/// Pods that have ended are in no snapshot; pods that are being deleted run still. A pod without a node is not known
/// yet: it may be scheduled to this one.
pub(super) fn authorize(mesh: &Snapshot, node: &str, identity: &Identity) -> Result<(), Denied> {
    if !node.is_empty() && mesh.on_node(node).any(|pod| pod.identity == *identity) {
        return Ok(());
    }
    let elsewhere = mesh.workloads().iter().find(|pod| pod.identity == *identity && !pod.node.is_empty());
    Err(match elsewhere {
        Some(pod) => Denied::Elsewhere {
            identity: identity.clone(),
            here: node.to_owned(),
            there: pod.node.to_string(),
        },
        None => Denied::Unknown(identity.clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::{
        Workload,
        fixtures::{pod, snapshot},
    };

    fn on(node: &str, name: &str) -> Workload {
        Workload { node: node.into(), ..pod(name, &[]) }
    }

    fn identity(name: &str) -> Identity {
        pod(name, &[]).identity
    }

    #[test]
    fn a_node_has_the_certificates_of_its_own_pods_alone() {
        let mesh = snapshot(vec![on("a", "web"), on("b", "db"), on("a", "both"), on("b", "both")], vec![]);
        for (node, name) in [("a", "web"), ("b", "db"), ("a", "both"), ("b", "both")] {
            assert_eq!(authorize(&mesh, node, &identity(name)), Ok(()), "{name} on {node}");
        }
        for (node, name, there) in [("b", "web", "a"), ("a", "db", "b"), ("c", "web", "a"), ("", "web", "a")]
        {
            let denied = Denied::Elsewhere {
                identity: identity(name),
                here: node.to_owned(),
                there: there.to_owned(),
            };
            assert_eq!(authorize(&mesh, node, &identity(name)), Err(denied), "{name} on {node}");
        }
    }

    #[test]
    fn what_nobody_is_yet_is_unknown() {
        let mesh = snapshot(vec![on("a", "web"), on("", "unscheduled")], vec![]);
        for node in ["a", "b", ""] {
            for name in ["unscheduled", "nobody"] {
                assert_eq!(authorize(&mesh, node, &identity(name)), Err(Denied::Unknown(identity(name))));
            }
        }
        let elsewhere: Identity = "spiffe://other.example/ns/shop/sa/web".parse().unwrap();
        assert_eq!(authorize(&mesh, "a", &elsewhere), Err(Denied::Unknown(elsewhere.clone())));
    }
}
