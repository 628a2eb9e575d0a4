//! Policy: who may speak to whom. [`PolicySet::authorize`] is a pure function over an immutable set.
//!
//! The language is Istio's, the exact meaning is docs/policy.md. Nothing here knows YAML: `control` converts objects,
//! and what could not be read arrives as an [`AuthorizationPolicy`] or [`PeerAuthentication`] that fails closed.
//!
//! ```text
//! AuthorizationPolicy ─┐
//! PeerAuthentication  ─┼─► PolicySet ──► authorize(workload, connection) ──► Decision: Permit | Denial, and the dry run
//! Service (targetRefs)─┘       ├───────► plaintext(workload) ──► what the kernel does with plaintext, by port
//!                              └───────► explain(workload, connection) ──► Explanation, for people
//! ```

mod decision;
mod name;
mod plaintext;
mod query;
mod set;

pub use decision::{Connection, Decision, Denial, DryRun, Mismatch, Permit};
pub use name::{PolicyKind, PolicyName};
pub use plaintext::{Plaintext, PlaintextAction};
pub use query::{BeforePolicy, Client, Query, QueryError, Server};
pub use set::PolicySet;
