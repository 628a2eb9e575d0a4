//! What a connection stands on once its handshake is over: both ends' certificates, and the trust that let the peer's
//! in. TLS looks at them once; a tunnel lives for hours.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use humantime::format_rfc3339_seconds as rfc3339;
use rustls::{
    CommonState,
    pki_types::{CertificateDer, UnixTime},
};
use tokio::time::sleep;

use super::{
    spiffe::Expected,
    svid::Svid,
    tls_error::TlsError,
    trust::{Trust, Usage, changed},
};
use crate::mesh::Reason;

/// What a connection is about to stand on. Taken before the handshake, so that no change of trust is missed.
#[derive(Clone, Debug)]
pub struct Ground {
    own: Arc<Svid>,
    /// Which end the peer is.
    peer: Usage,
    trust: Trust,
}

/// What a connection stands on.
#[derive(Debug)]
pub struct Standing {
    peer: Peer,
    own_until: SystemTime,
    trust: Trust,
    fresh_until: SystemTime,
}

#[derive(Debug)]
struct Peer {
    usage: Usage,
    chain: Vec<CertificateDer<'static>>,
    until: SystemTime,
}

/// Why a connection may not go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lapse {
    /// The certificate of this end expired.
    OwnExpired(SystemTime),
    /// A certificate of the peer's expired.
    PeerExpired(SystemTime),
    /// A certificate of the peer's was revoked.
    PeerRevoked,
    /// The root of the peer's is no longer trusted.
    PeerUntrusted,
}

/// A [`Lapse`] with what an operator wants to know of it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{lapse}{}", .cause.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default())]
pub struct Lapsed {
    /// What it is.
    pub lapse: Lapse,
    /// What the check of the peer's chain says now, where it was checked again.
    pub cause: Option<Box<TlsError>>,
    /// The serial number of the peer's certificate.
    pub serial: String,
}

impl Ground {
    /// Takes note of what is trusted before a handshake with a peer at the other end.
    pub fn new(own: &Arc<Svid>, peer: Usage) -> Self {
        let mut trust = own.trust().clone();
        trust.mark_unchanged();
        Self { own: Arc::clone(own), peer, trust }
    }

    /// Takes note of who the handshake was finished with.
    pub fn stand(self, session: &CommonState) -> Standing {
        let chain: Vec<_> = session
            .peer_certificates()
            .unwrap_or_default()
            .iter()
            .map(|der| der.clone().into_owned())
            .collect();
        self.stand_on(chain)
    }

    /// Judges a peer whose certificate this process holds as well, as in a handshake: chain, validity, purpose, revocation,
    /// then the one identity.
    ///
    /// # Errors
    /// Where the handshake would have failed.
    pub(super) fn stand_beside(self, peer: &Svid) -> Result<Standing, TlsError> {
        let bundle = Arc::clone(&self.trust.borrow());
        let (leaf, intermediates) = peer.chain().split_first().ok_or(TlsError::NoCertificate)?;
        bundle.verify(self.peer, (leaf, intermediates), UnixTime::now())?;
        let ours = self.own.identity().trust_domain().clone();
        Expected::Workload { ours, identity: Arc::new(peer.identity().clone()) }.check(leaf)?;
        Ok(self.stand_on(peer.chain().to_vec()))
    }

    fn stand_on(self, chain: Vec<CertificateDer<'static>>) -> Standing {
        let Self { own, peer, trust } = self;
        let now = SystemTime::now();
        let own_until = earliest_end(own.chain(), now);
        let until = earliest_end(&chain, now);
        let left = own_until.min(until).duration_since(now).unwrap_or_default();
        let peer = Peer { usage: peer, chain, until };
        Standing { peer, own_until, trust, fresh_until: now + left / 2 }
    }
}

impl Standing {
    /// Returns until when new streams may be opened: for half of what the certificates leave the connection, so that
    /// each stream has as long as that at the least.
    pub fn fresh_until(&self) -> SystemTime {
        self.fresh_until
    }

    /// Waits until the connection may not go on.
    pub async fn lapsed(mut self) -> Lapsed {
        loop {
            let now = SystemTime::now();
            if let Some(lapse) = self.expired(now) {
                return self.because(lapse, None);
            }
            tokio::select! {
                () = reached(self.own_until.min(self.peer.until)) => {}
                () = changed(&mut self.trust) => {
                    if let Err(error) = self.check_again()
                        && let Some(lapse) = Lapse::of(&error)
                    {
                        return self.because(lapse, Some(error));
                    }
                }
            }
        }
    }

    fn expired(&self, now: SystemTime) -> Option<Lapse> {
        if self.own_until.min(self.peer.until) > now {
            return None;
        }
        Some(match self.own_until <= self.peer.until {
            true => Lapse::OwnExpired(self.own_until),
            false => Lapse::PeerExpired(self.peer.until),
        })
    }

    fn check_again(&mut self) -> Result<(), TlsError> {
        let bundle = Arc::clone(&self.trust.borrow_and_update());
        let Some((leaf, intermediates)) = self.peer.chain.split_first() else {
            return Err(TlsError::NoCertificate);
        };
        bundle.verify(self.peer.usage, (leaf, intermediates), UnixTime::now()).map(drop)
    }

    fn because(&self, lapse: Lapse, cause: Option<TlsError>) -> Lapsed {
        let serial = self.peer.chain.first().and_then(|leaf| {
            let (_, leaf) = x509_parser::parse_x509_certificate(leaf).ok()?;
            Some(leaf.raw_serial_as_string())
        });
        Lapsed { lapse, cause: cause.map(Box::new), serial: serial.unwrap_or_default() }
    }
}

impl Lapse {
    /// Returns the reason for the access log and the metrics.
    pub fn reason(self) -> Reason {
        match self {
            Self::OwnExpired(_) => Reason::NoCertificate,
            Self::PeerExpired(_) | Self::PeerRevoked | Self::PeerUntrusted => Reason::BadCertificate,
        }
    }

    /// Says what it means that a chain that was good is refused. A clock that was set back is no such reason.
    fn of(error: &TlsError) -> Option<Self> {
        match error {
            TlsError::NotYetValid { .. } => None,
            TlsError::Expired { not_after } => Some(Self::PeerExpired(*not_after)),
            TlsError::Revoked | TlsError::RevokedAuthority { .. } => Some(Self::PeerRevoked),
            _ => Some(Self::PeerUntrusted),
        }
    }
}

impl fmt::Display for Lapse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnExpired(at) => write!(
                f,
                "this pod's certificate that it was made with expired at {}; a new connection takes the renewed one",
                rfc3339(*at)
            ),
            Self::PeerExpired(at) => write!(
                f,
                "the peer's certificate that it was made with expired at {}; a new connection takes the renewed one",
                rfc3339(*at)
            ),
            Self::PeerRevoked => f.write_str("the peer's certificate that it was made with was revoked"),
            Self::PeerUntrusted => f.write_str(
                "the peer's certificate that it was made with is no longer trusted: its root was removed",
            ),
        }
    }
}

/// Waits for a moment by the wall clock. The runtime's clock stands still while the machine sleeps, and the wall clock
/// can be set: so it is looked at every [`CLOCK_CHECK`] at the least.
pub async fn reached(moment: SystemTime) {
    while let Some(left) = moment.duration_since(SystemTime::now()).ok().filter(|left| !left.is_zero()) {
        sleep(left.min(CLOCK_CHECK)).await;
    }
}

/// When the first of a chain's certificates ends. An authority's that had ended before the handshake was no part of the
/// chain that was verified: peers may send more than is needed.
fn earliest_end(chain: &[CertificateDer<'_>], now: SystemTime) -> SystemTime {
    let end = |der: &CertificateDer<'_>| {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        let seconds = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
        Some(UNIX_EPOCH + Duration::from_secs(seconds))
    };
    let Some((leaf, authorities)) = chain.split_first() else { return now };
    let authorities = authorities.iter().filter_map(end).filter(|end| *end > now);
    authorities.fold(end(leaf).unwrap_or(now), SystemTime::min)
}

/// How often the wall clock is looked at.
pub(super) const CLOCK_CHECK: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::identity::{
        TrustBundle,
        testing::{HOUR, TestRoot, WEB, leaf},
    };

    /// A connection whose peer's certificate ends in an hour, and this end's in two.
    fn standing(root: &TestRoot, trust: Trust) -> Standing {
        let chain = vec![root.sign(&leaf(WEB), &rcgen::KeyPair::generate().unwrap())];
        let now = SystemTime::now();
        let until = earliest_end(&chain, now);
        let peer = Peer { usage: Usage::Server, chain, until };
        Standing { peer, own_until: until + HOUR, trust, fresh_until: now }
    }

    fn bundle(root: &TestRoot) -> Arc<TrustBundle> {
        Arc::new(TrustBundle::new(vec![root.certificate.clone()]).unwrap())
    }

    #[test]
    fn expires_with_whichever_certificate_ends_first_by_whatever_the_clock_says() {
        let root = TestRoot::new("test root");
        let mut standing = standing(&root, root.trust());
        let until = standing.peer.until;
        assert_eq!(standing.expired(SystemTime::now()), None);
        assert_eq!(standing.expired(until - Duration::from_secs(1)), None);
        assert_eq!(standing.expired(until), Some(Lapse::PeerExpired(until)));
        // Clocks that jump ahead and back.
        assert_eq!(standing.expired(until + 1000 * HOUR), Some(Lapse::PeerExpired(until)));
        assert_eq!(standing.expired(UNIX_EPOCH), None);
        standing.own_until = until - HOUR / 2;
        assert_eq!(standing.expired(until), Some(Lapse::OwnExpired(until - HOUR / 2)));
    }

    #[test]
    fn clock_that_was_set_back_is_no_reason_to_trust_the_peer_less() {
        let early = TlsError::NotYetValid { not_before: SystemTime::now() };
        assert_eq!(Lapse::of(&early), None);
        assert_eq!(Lapse::of(&TlsError::Revoked), Some(Lapse::PeerRevoked));
        assert_eq!(Lapse::of(&TlsError::UnknownIssuer), Some(Lapse::PeerUntrusted));
    }

    #[test]
    fn authority_that_had_ended_before_the_handshake_does_not_count_and_the_leaf_always_does() {
        let root = TestRoot::new("test root");
        let sign = |end: SystemTime| {
            let mut params = leaf(WEB);
            params.not_after = end.into();
            root.sign(&params, &rcgen::KeyPair::generate().unwrap())
        };
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let (past, soon, late) = (sign(now - HOUR), sign(now + HOUR), sign(now + 2 * HOUR));
        assert_eq!(earliest_end(&[late.clone(), soon.clone()], now), now + HOUR);
        assert_eq!(earliest_end(&[late, past.clone()], now), now + 2 * HOUR);
        assert_eq!(earliest_end(&[past, soon], now), now - HOUR);
    }

    #[tokio::test(start_paused = true)]
    async fn ends_when_the_root_goes_and_not_when_another_comes() {
        let (root, other) = (TestRoot::new("test root"), TestRoot::new("other root"));
        let (roots, mut trust) = watch::channel(bundle(&root));
        trust.mark_unchanged();
        let mut lapsed = std::pin::pin!(standing(&root, trust).lapsed());
        let both = vec![root.certificate.clone(), other.certificate.clone()];
        roots.send_replace(Arc::new(TrustBundle::new(both).unwrap()));
        // Virtual time; the certificates are good for an hour by the wall clock.
        let soon = tokio::time::timeout(100 * HOUR, &mut lapsed).await;
        assert!(soon.is_err(), "{soon:?}");
        roots.send_replace(bundle(&other));
        let lapsed = lapsed.await;
        assert_eq!(lapsed.lapse, Lapse::PeerUntrusted);
        assert!(lapsed.to_string().contains("no root that is trusted here"), "{lapsed}");
        assert!(!lapsed.serial.is_empty());
    }
}
