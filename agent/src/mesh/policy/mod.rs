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

mod answer;
mod blocks;
mod cover;
mod decision;
mod evaluate;
mod explain;
mod name;
mod nearest;
mod peer;
mod plaintext;
mod pod;
mod query;
mod rule;
mod selector;
mod set;
mod strings;
mod truth;
mod view;
mod words;

pub use answer::Answer;
pub use blocks::IpBlocks;
pub use decision::{Connection, Decision, Denial, DryRun, Mismatch, Permit};
pub use explain::{
    ClauseExplanation, EntryExplanation, Explanation, FieldExplanation, LevelExplanation, ModeExplanation,
    PolicyExplanation, RuleExplanation, Verdict,
};
pub use name::{PolicyKind, PolicyName};
pub use peer::{Level, Mode, PeerAuthentication};
pub use plaintext::{Plaintext, PlaintextAction};
pub use pod::PodPolicies;
pub use query::{BeforePolicy, Client, Query, QueryError, Server};
pub use rule::{Action, AuthorizationPolicy, Clause, Entry, Field, Rule, Rules, Test, Values};
pub use selector::Target;
pub use set::PolicySet;
pub use strings::{Pattern, PatternError, Strings};
