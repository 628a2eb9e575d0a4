//! The model of the mesh: identities, workloads, services, and the immutable [`Snapshot`] of them all.
//!
//! Nothing here does I/O, is asynchronous, or knows where the objects came from. `control` builds snapshots; everybody
//! else reads them.
//!
//! ```text
//! Pod, Namespace ──► Workload ──┐
//! Service ─────────► Service ───┼─► Snapshot ──► Snapshot::route(source, OrigDst) ──► Route
//! EndpointSlice ───► Endpoint ──┘
//! ```

mod backends;
mod builder;
#[cfg(test)]
pub(crate) mod fixtures;
mod identity;
mod list;
mod names;
mod policy;
mod reason;
mod route;
mod sharded;
mod snapshot;
mod workload;

pub use builder::SnapshotBuilder;
pub use identity::{Identity, IdentityError, TrustDomain};
pub use list::List;
pub use names::hostname;
pub use policy::{
    Action, Answer, AuthorizationPolicy, BeforePolicy, Clause, ClauseExplanation, Client, Connection,
    Decision, Denial, DryRun, Entry, EntryExplanation, Explanation, Field, FieldExplanation, IpBlocks, Level,
    LevelExplanation, Mismatch, Mode, ModeExplanation, Pattern, PatternError, PeerAuthentication, Permit,
    Plaintext, PlaintextAction, PodPolicies, PolicyExplanation, PolicyKind, PolicyName, PolicySet, Query,
    QueryError, Rule, RuleExplanation, Rules, Server, Strings, Target, Test, Values, Verdict,
};
pub use reason::Reason;
pub use route::{OrigDst, Route, RouteError};
pub use snapshot::{AddressConflict, Destination, Snapshot, Zones};
pub use workload::{
    Affinity, Distribution, Endpoint, EndpointPort, Enrollment, Labels, NamedPort, NetnsRef, NotEnrolled,
    PodName, Service, ServicePort, TargetPort, Workload,
};
