//! Where snapshots come from: Kubernetes objects in, [`Snapshot`](crate::mesh::Snapshot)s out.
//!
//! ```text
//! directory of YAML ──► manifests ──► Object ──► convert ──► Record ──► Index ──► watch<Arc<Snapshot>>
//! ```
//!
//! `convert` is the border: past it every value is valid, and what is not was reported and skipped. The [`Index`] is
//! synchronous and knows no source. Nothing is published before the first complete read. Nobody but `lib.rs` and the
//! command line sees this module; the rest of the agent sees snapshots.

mod convert;
mod field;
mod index;
mod lint;
mod manifests;
mod policies;
mod publish;

pub use convert::{
    Key, Kind, Object, PolicyNotice, Readiness, Record, Settings, Severity, Topic, enrollment_of,
};
pub use field::{FieldPath, Invalid};
pub use index::Index;
pub use lint::{Code, Finding, lint};
pub use manifests::{Error, Manifests, Objects, Place, Problem, Source};
