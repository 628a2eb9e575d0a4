//! All policies at one moment, indexed by whom they apply to.

use super::{Connection, Decision, Permit, Plaintext};
use crate::mesh::Workload;

/// All policies at one moment. Immutable; the same `Arc` as long as no policy, and nothing that one targets, changes.
#[derive(Debug, Default)]
pub struct PolicySet {}

impl PolicySet {
    /// Decides on a connection to an enrolled pod.
    pub fn authorize(&self, _workload: &Workload, _connection: &Connection<'_>) -> Decision {
        Decision { verdict: Ok(Permit::new(None)), dry_run: None }
    }

    /// Returns what the kernel is to do with plaintext that comes to an enrolled pod.
    pub fn plaintext(&self, _workload: &Workload) -> Plaintext {
        Plaintext::pass()
    }

    /// Returns whether peers are to send plaintext to the pod's port: its mode is DISABLE.
    pub fn sends_plaintext(&self, _workload: &Workload, _port: u16) -> bool {
        false
    }
}
