//! Who is to be in the mesh, by the labels and annotations of pods and their namespaces.

use super::{FieldPath, Invalid, Labels, Readiness};
use crate::mesh::{Enrollment, NotEnrolled};

/// What a namespace's labels say about its pods.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(in crate::control) struct NamespaceLabels {
    mesh: Option<bool>,
    ambient: bool,
}

/// What a pod itself says about its enrolment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::control) struct PodLabels {
    /// What keeps it out whatever the labels say.
    pub(super) never: Option<NotEnrolled>,
    /// Its own label `culvert.dev/mesh`.
    pub(super) mesh: Option<bool>,
    /// Its own label `istio.io/dataplane-mode`.
    pub(super) ambient: Option<bool>,
    /// Whether an annotation says that its agent is ready.
    pub(super) annotated: bool,
    pub(super) readiness: Readiness,
}

impl NamespaceLabels {
    pub(super) fn enrolled() -> Self {
        Self { mesh: Some(true), ambient: false }
    }

    pub(super) fn read(labels: Option<&Labels>) -> Result<Self, Invalid> {
        Ok(Self { mesh: mesh_label(labels)?, ambient: ambient_label(labels).unwrap_or(false) })
    }
}

impl PodLabels {
    /// Whether the pod is to be in the mesh, given its namespace's labels.
    pub(in crate::control) fn enrollment(&self, namespace: NamespaceLabels) -> Enrollment {
        if let Some(never) = self.never {
            return Enrollment::Not(never);
        }
        // A pod's own `istio.io/dataplane-mode: none` takes it out of an ambient namespace.
        if self.ambient.unwrap_or(namespace.ambient) {
            return Enrollment::Not(NotEnrolled::IstioAmbient);
        }
        match (self.mesh, namespace.mesh) {
            (Some(true), _) | (None, Some(true)) => Enrollment::Enrolled,
            (Some(false), _) => Enrollment::Not(NotEnrolled::OptedOut),
            (None, Some(false) | None) => Enrollment::Not(NotEnrolled::NoLabel),
        }
    }

    /// Whether the pod's agent is ready to receive HBONE for it.
    pub(in crate::control) fn receives_hbone(&self, enrollment: Enrollment) -> bool {
        match enrollment {
            // Its address is its node's.
            Enrollment::Not(NotEnrolled::HostNetwork) => false,
            Enrollment::Enrolled if self.readiness == Readiness::Enrollment => true,
            Enrollment::Enrolled | Enrollment::Not(_) => self.annotated,
        }
    }
}

pub(super) fn mesh_label(labels: Option<&Labels>) -> Result<Option<bool>, Invalid> {
    match labels.and_then(|labels| labels.get(MESH)).map(String::as_str) {
        None => Ok(None),
        Some("enabled") => Ok(Some(true)),
        Some("disabled") => Ok(Some(false)),
        // A typing error must not quietly leave a pod in plaintext.
        Some(other) => Err(FieldPath::of(&["metadata", "labels", MESH])
            .invalid(format!("{other:?} is neither \"enabled\" nor \"disabled\""))),
    }
}

pub(super) fn ambient_label(labels: Option<&Labels>) -> Option<bool> {
    labels?.get("istio.io/dataplane-mode").map(|mode| mode == "ambient")
}

const MESH: &str = "culvert.dev/mesh";
