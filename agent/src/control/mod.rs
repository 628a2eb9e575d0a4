//! Where snapshots come from: Kubernetes objects in, [`Snapshot`](crate::mesh::Snapshot)s out.
//!
//! ```text
//! API server ─────────► kube ──────┐
//! directory of YAML ──► manifests ─┴► Batch ──► owner: Merged (Index) ──► watch<Arc<Snapshot>>
//! ```
//!
//! `convert` is the border: past it every value is valid, and what is not was reported and skipped. The [`Index`] is
//! synchronous and knows no source; `merge` knows which of them has what. Nothing is published before every source has
//! said all that it has. Nobody but `lib.rs` and the command line sees this module; the rest of the agent sees snapshots.

mod batch;
mod convert;
mod field;
mod index;
pub mod kube;
mod lint;
mod manifests;
mod merge;
mod metrics;
mod owner;
mod policies;
mod problem;
mod publish;
mod run;

pub use convert::{
    Key, Kind, Object, PolicyNotice, Readiness, Record, Settings, Severity, Topic, enrollment_of,
};
pub use field::{FieldPath, Invalid};
pub use index::Index;
pub use lint::{Code, Finding, lint};
pub use manifests::{Error, Manifests, Objects, Place, Source};
pub use owner::pause;
pub use problem::Problem;
pub use run::{Config, Control};
