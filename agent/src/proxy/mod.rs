//! Carries the connections of this node's pods: accepts what the kernel steers here, decides where it goes, and moves
//! its bytes until both ends are done.
//!
//! ```text
//! application ─► kernel ─► listener ─► outbound ─► hbone::Pool ═══ mTLS ═══► listener ─► inbound ───┐
//!                                        │ └─────► plain TCP (outside the mesh, or DISABLE)         │
//!                                        └► local: the destination is a pod of this agent too ──────┼► delivery ─► application
//!                     plaintext that policy has to look at ─► kernel ─► listener ─► plaintext ──────┘  (admission)
//! ```
//!
//! What `local` has carried once may go past the agent from then on, where that is wanted: `native` gives the permits, ends
//! what they no longer cover, and reports what went by them.
//!
//! Plaintext that the kernel lets pass, or refuses, does not come here: `bypass` ends of the former what policy no longer
//! permits, and `refusals` reports the latter.
//!
//! One task owns one connection, and an `Outcome` in it accounts for that connection whatever way it ends. Which pods
//! there are is `enroll`'s business; what the kernel does is `capture`'s.

mod access_log;
mod admission;
mod application;
mod baggage;
mod busy_poll;
mod bypass;
mod client_ports;
mod context;
mod copy;
mod delivery;
#[cfg(test)]
mod fixtures;
mod inbound;
mod listener;
mod local;
mod measure;
mod metrics;
mod native;
mod outbound;
mod outcome;
mod plaintext;
mod pod;
mod pods;
mod refusals;
mod shares;
mod terms;
mod traffic;
mod verdicts;
mod workers;

pub use access_log::AccessLogFormat;
pub use context::{Config, Context};
pub use measure::carry;
pub use metrics::Metrics;
pub use native::follow_native_ends;
pub use pod::Pod;
pub use pods::Unenforced;
pub use refusals::follow as follow_refusals;
pub use terms::Terms;
pub use workers::{Threads, Workers};
