//! Whether policy lets a connection to a pod of this node in, and goes on to let it stay.

use std::net::{IpAddr, SocketAddr};

use tokio::sync::watch;

use super::{outcome::Outcome, terms::Terms};
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
    /// Prepares to ask on a pod's terms for a connection of `source`, which proved to be `identity`, to the pod's own
    /// `destination`.
    pub(super) fn new(
        mut terms: watch::Receiver<Terms>,
        source: IpAddr,
        identity: Option<Identity>,
        destination: SocketAddr,
    ) -> Self {
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

    /// Returns whether the policies permit it now, which is no connection yet and counts nowhere.
    pub(super) fn is_permitted(&mut self) -> bool {
        self.decide().verdict.is_ok()
    }

    pub(super) fn decide(&mut self) -> Decision {
        let terms = self.terms.borrow_and_update().clone();
        if self.own {
            return Decision { verdict: Ok(Permit::own()), dry_run: None };
        }
        let connection = Connection {
            source: self.source,
            identity: self.identity.as_ref(),
            destination: self.destination,
        };
        terms.authorize(&connection)
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
    /// Returns what the policies say.
    pub(super) fn denial(&self) -> &Denial {
        let (Self::Denied(denial) | Self::Revoked(denial)) = self;
        denial
    }

    /// Returns what the log and the metrics call it.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Denied(denial) => denial.reason(),
            Self::Revoked(_) => Reason::PolicyRevoked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        mesh::fixtures::{ip, pod},
        proxy::fixtures::{deny_all, terms},
    };

    fn open() -> Terms {
        terms(pod("web", &["10.0.0.1"]), Vec::new())
    }

    fn closed() -> Terms {
        terms(pod("web", &["10.0.0.1"]), vec![deny_all("shop")])
    }

    /// A connection to the pod from `source`; by mutual TLS from a pod whose service account is called `account`.
    fn connect(pod: &watch::Sender<Terms>, source: &str, account: Option<&str>) -> Admission {
        let identity = account.map(|account| crate::mesh::fixtures::pod(account, &[]).identity);
        Admission::new(pod.subscribe(), ip(source), identity, "10.0.0.1:80".parse().unwrap())
    }

    #[tokio::test]
    async fn what_is_permitted_no_longer_is_revoked() {
        let pod = watch::Sender::new(open());
        let mut admission = connect(&pod, "10.0.0.9", Some("client"));
        assert!(admission.decide().verdict.is_ok());
        let policies = [open(), closed()];
        let waiting = tokio::spawn(async move { admission.revoked().await });
        // The first change is none that matters.
        policies.into_iter().for_each(|terms| drop(pod.send_replace(terms)));
        assert_eq!(waiting.await.unwrap().reason(), Reason::PolicyRevoked);
    }

    #[test]
    fn a_change_between_the_first_check_and_the_copy_is_not_missed() {
        let pod = watch::Sender::new(open());
        let mut admission = connect(&pod, "10.0.0.9", None);
        assert!(admission.decide().verdict.is_ok());
        assert!(admission.ask_again().is_ok());
        pod.send_replace(closed());
        assert!(matches!(admission.ask_again(), Err(Refused::Revoked(_))));
    }

    #[test]
    fn only_the_pod_itself_is_let_alone() {
        let pod = watch::Sender::new(closed());
        assert!(connect(&pod, "10.0.0.1", Some("web")).decide().verdict.is_ok());
        assert!(connect(&pod, "10.0.0.1", Some("client")).decide().verdict.is_err());
        assert!(connect(&pod, "10.0.0.9", Some("web")).decide().verdict.is_err());
        assert!(connect(&pod, "10.0.0.1", None).decide().verdict.is_err());
    }
}
