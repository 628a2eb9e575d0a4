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

mod identity;
mod reason;
mod route;
mod snapshot;
mod workload;

pub use identity::{Identity, IdentityError, TrustDomain};
pub use reason::Reason;
pub use route::{OrigDst, Route, RouteError};
pub use snapshot::{Destination, Snapshot};
pub use workload::{
    Affinity, Distribution, Endpoint, Enrollment, NamedPort, NetnsRef, NotEnrolled, Service, ServicePort,
    TargetPort, Workload,
};
