//! Whether policy lets a connection to a pod of this node in, and goes on to let it stay.

use std::net::{IpAddr, SocketAddr};

use tokio::sync::watch;

use super::{outcome::Outcome, pod::Shared, terms::Terms};
use crate::mesh::{Connection, Decision, Denial, Identity, Permit, Reason};

/// One connection to a pod before the policies.
///
/// Made before the first check, it misses no change of policy after it.
pub(super) struct Admission {
    terms: watch::Receiver<Terms>,
    source: IpAddr,
    identity: Option<Identity>,
    destination: SocketAddr,
    own: bool,
}

impl Admission {
    /// Prepares to ask for a connection of `source`, which proved to be `identity`, to the pod's own `destination`.
    pub(super) fn new(
        pod: &Shared,
        source: IpAddr,
        identity: Option<Identity>,
        destination: SocketAddr,
    ) -> Self {
        let mut terms = pod.subscribe();
        let own = is_own(&terms.borrow_and_update(), source, identity.as_ref());
        Self { terms, source, identity, destination, own }
    }

    /// Asks the policies, and notes in the outcome which of them decided, and what those on trial would have done.
    pub(super) fn ask(&mut self, outcome: &mut Outcome<'_>) -> Result<Permit, Refused> {
        let decision = self.decide();
        outcome.decided(&decision);
        decision.verdict.map_err(Refused::Denied)
    }

    /// Asks again where the policies have changed since they were last asked.
    pub(super) fn ask_again(&mut self) -> Result<(), Refused> {
        match self.terms.has_changed() {
            Ok(true) => self.decide().verdict.map(drop).map_err(Refused::Revoked),
            // What has no sender any more is no pod any more, and its connections end by themselves.
            Ok(false) | Err(_) => Ok(()),
        }
    }

    /// Returns when the policies permit the connection no longer. What those on trial say ends nothing.
    pub(super) async fn revoked(&mut self) -> Refused {
        loop {
            if self.terms.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            if let Err(denial) = self.decide().verdict {
                return Refused::Revoked(denial);
            }
        }
    }

    fn decide(&mut self) -> Decision {
        let terms = self.terms.borrow_and_update().clone();
        if self.own {
            return Decision { verdict: Ok(Permit::own()), dry_run: None };
        }
        let connection = Connection {
            source: self.source,
            identity: self.identity.as_ref(),
            destination: self.destination,
        };
        terms.policies.authorize(&terms.workload, &connection)
    }
}

/// Whether the pod speaks to itself, by a service that it stands behind itself. Both must say so: nobody else has its
/// identity *and* completes a handshake from its address.
fn is_own(terms: &Terms, source: IpAddr, identity: Option<&Identity>) -> bool {
    identity == Some(&terms.workload.identity) && terms.workload.addresses.contains(&source)
}

/// Why policy does not let a connection be.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// It was never permitted.
    #[error("{0}")]
    Denied(Denial),
    /// It was permitted once.
    #[error("policy has changed, and the connection is permitted no longer: {0}")]
    Revoked(Denial),
}

impl Refused {
    /// Returns what the log and the metrics call it.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Denied(denial) => denial.reason(),
            Self::Revoked(_) => Reason::PolicyRevoked,
        }
    }
}
