//! What the files do not say about their mesh.

use clap::Args;

use crate::{
    control::{Readiness, Settings},
    mesh::TrustDomain,
};

/// What the files do not say about their mesh.
#[derive(Args, Clone, Debug)]
pub(super) struct SettingsArgs {
    /// The mesh's trust domain
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    trust_domain: TrustDomain,

    /// The namespace whose policies are for the whole mesh
    #[arg(long, value_name = "NAMESPACE", default_value = "culvert-system")]
    root_namespace: String,
}

impl SettingsArgs {
    /// Returns how objects are to be read.
    pub(super) fn settings(&self) -> Settings {
        Settings {
            trust_domain: self.trust_domain.clone(),
            root_namespace: self.root_namespace.clone(),
            // There is no agent that could have annotated the pods.
            readiness: Readiness::Enrollment,
        }
    }
}
