//! Two workloads whose certificates this process holds both: each is judged as the other would judge it in a TLS handshake,
//! and what their connections stand on is watched as that of a TLS connection is.
//!
//! A handshake proves besides that the peer has the key that belongs to its certificate. Here that needs no proof: an
//! [`Svid`] is not made without it, and never leaves the process.
//!
//! One check and one watch serve all connections of a pair of certificates.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::sleep};

use super::{
    standing::{Ground, Lapse, Lapsed, Standing},
    svid::Svid,
    tls_error::TlsError,
    trust::Usage,
};
use crate::mesh::{Identity, Reason};

/// The pairs of certificates that connections within this process stand on. Cheap to clone; all clones are one.
///
/// A pair that nobody uses is forgotten after some minutes, and earlier where there are more than [`MAX_PAIRS`].
#[derive(Clone, Debug, Default)]
pub struct MutualTrust(Arc<Mutex<Pairs>>);

/// By the two certificates' places in memory: a pair keeps its certificates, and so their places.
type Pairs = HashMap<[usize; 2], Arc<Pair>>;

/// Two certificates that were found good by each other's end, and may be so no longer.
#[derive(Debug)]
pub struct Pair {
    client: Arc<Svid>,
    server: Arc<Svid>,
    lapse: watch::Sender<Option<Arc<PairLapsed>>>,
}

/// Why a connection between the two may not be.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the certificate of {refused} (serial {serial}) is refused: {error}")]
pub struct NotTrusted {
    /// Whose certificate is refused.
    pub refused: Identity,
    /// Its serial number.
    pub serial: String,
    /// What is wrong with it, as the other end would say it.
    pub error: Box<TlsError>,
}

/// Why connections of a pair may not go on.
#[derive(Clone, Debug)]
pub struct PairLapsed {
    /// Which end found it first.
    found_by: Usage,
    lapsed: Lapsed,
}

impl MutualTrust {
    /// Has a client's and a server's certificate judged, each as the other's end of a TLS handshake does, and returns what
    /// a connection between the two stands on. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// Where one of the two would be refused.
    pub fn meet(&self, client: &Arc<Svid>, server: &Arc<Svid>) -> Result<Arc<Pair>, NotTrusted> {
        let key = [client, server].map(|svid| Arc::as_ptr(svid) as usize);
        if let Some(pair) = self.lock().get(&key) {
            return Ok(Arc::clone(pair));
        }
        let stand = |own: &Arc<Svid>, peer: &Arc<Svid>, usage| {
            Ground::new(own, usage).stand_beside(peer).map_err(|error| NotTrusted {
                refused: peer.identity().clone(),
                serial: peer.serial().to_owned(),
                error: Box::new(error),
            })
        };
        let standings = (stand(client, server, Usage::Server)?, stand(server, client, Usage::Client)?);
        let mut pairs = self.lock();
        // Somebody else may have been quicker.
        if let Some(pair) = pairs.get(&key) {
            return Ok(Arc::clone(pair));
        }
        if pairs.len() >= MAX_PAIRS {
            pairs.retain(|_, pair| pair.is_used());
        }
        let (client, server) = (Arc::clone(client), Arc::clone(server));
        let pair = Arc::new(Pair { client, server, lapse: watch::Sender::new(None) });
        pairs.insert(key, Arc::clone(&pair));
        tokio::spawn(self.clone().watch(key, Arc::clone(&pair), standings));
        Ok(pair)
    }

    /// Tells a pair's connections when they may not go on. Ends then, and when there have been none for a while.
    async fn watch(self, key: [usize; 2], pair: Arc<Pair>, (client, server): (Standing, Standing)) {
        let found = tokio::select! {
            lapsed = client.lapsed() => Some((Usage::Client, lapsed)),
            lapsed = server.lapsed() => Some((Usage::Server, lapsed)),
            () = self.unused(&pair) => None,
        };
        let mut pairs = self.lock();
        if pairs.get(&key).is_some_and(|known| Arc::ptr_eq(known, &pair)) {
            pairs.remove(&key);
        }
        drop(pairs);
        if let Some((found_by, lapsed)) = found {
            let Pair { client, server, .. } = &*pair;
            tracing::warn!(
                client = %client.identity(), server = %server.identity(), serial = lapsed.serial,
                connections = pair.lapse.receiver_count(), error = %lapsed, "the connections of two pods of this node end"
            );
            pair.lapse.send_replace(Some(Arc::new(PairLapsed { found_by, lapsed })));
        }
    }

    async fn unused(&self, pair: &Arc<Pair>) {
        loop {
            sleep(UNUSED).await;
            // Under the lock, since that is where users come from. Where it was forgotten there come no more.
            let _pairs = self.lock();
            if !pair.is_used() {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pairs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pair {
    /// Returns the two certificates, the client's first.
    pub fn certificates(&self) -> [&Svid; 2] {
        [&self.client, &self.server]
    }

    /// Waits until the connection may not go on. May be cancelled and called again.
    pub async fn lapsed(&self) -> Arc<PairLapsed> {
        let mut lapse = self.lapse.subscribe();
        let lapsed = lapse.wait_for(Option::is_some).await.ok().and_then(|lapsed| lapsed.clone());
        match lapsed {
            Some(lapsed) => lapsed,
            // Not while there is a pair, which has the sender.
            None => std::future::pending().await,
        }
    }

    /// Whether anybody has it but the table and the task that watches it.
    fn is_used(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 2
    }
}

impl PairLapsed {
    /// Returns what the log and the metrics of one end call it. A peer that is not trusted any more is so for the end that
    /// says it and for the one that hears it.
    pub fn reason_at(&self, end: Usage) -> Reason {
        self.at(end).reason()
    }

    /// Says what it is to one end.
    pub fn at(&self, end: Usage) -> Lapse {
        match self.lapsed.lapse {
            Lapse::OwnExpired(at) if end != self.found_by => Lapse::PeerExpired(at),
            Lapse::PeerExpired(at) if end != self.found_by => Lapse::OwnExpired(at),
            lapse => lapse,
        }
    }

    /// Says it to one end in words.
    pub fn text_at(&self, end: Usage) -> String {
        match (self.at(end), end == self.found_by) {
            (Lapse::PeerRevoked | Lapse::PeerUntrusted, false) => {
                format!("the other end does not trust this pod's certificate any more: {}", self.lapsed)
            }
            (lapse, _) => Lapsed { lapse, ..self.lapsed.clone() }.to_string(),
        }
    }
}

/// Pairs of certificates that are remembered although no connection stands on them; some 4 kB each. 64 service accounts of
/// one node, each speaking to each.
const MAX_PAIRS: usize = 4096;

/// How long a pair is remembered: what the pool of tunnels does with a connection that nobody uses.
const UNUSED: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::identity::{
        TrustBundle,
        testing::{HOUR, TestRoot, WEB, leaf},
    };

    const API: &str = "spiffe://cluster.local/ns/shop/sa/api";

    struct Two {
        root: TestRoot,
        trust: watch::Sender<Arc<TrustBundle>>,
        mutual: MutualTrust,
    }

    impl Two {
        fn new() -> Self {
            let root = TestRoot::new("test root");
            let trust = watch::Sender::new(bundle(&root));
            Self { root, trust, mutual: MutualTrust::default() }
        }

        fn svid(&self, id: &str) -> Arc<Svid> {
            let key = rcgen::KeyPair::generate().unwrap();
            let issued = crate::identity::Issued { chain: vec![self.root.sign(&leaf(id), &key)] };
            Arc::new(Svid::new(&id.parse().unwrap(), &key, issued, self.trust.subscribe()).unwrap())
        }
    }

    fn bundle(root: &TestRoot) -> Arc<TrustBundle> {
        Arc::new(TrustBundle::new(vec![root.certificate.clone()]).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_pair_is_judged_once_and_forgotten_when_nobody_uses_it() {
        let two = Two::new();
        let (web, api) = (two.svid(WEB), two.svid(API));
        let first = two.mutual.meet(&web, &api).unwrap();
        assert!(Arc::ptr_eq(&first, &two.mutual.meet(&web, &api).unwrap()));
        assert!(!Arc::ptr_eq(&first, &two.mutual.meet(&api, &web).unwrap()), "the other way round");
        assert!(!Arc::ptr_eq(&first, &two.mutual.meet(&web, &two.svid(API)).unwrap()), "a renewed one");
        sleep(2 * UNUSED).await;
        assert_eq!(two.mutual.lock().len(), 1, "the one that is in use");
        drop(first);
        sleep(2 * UNUSED).await;
        assert!(two.mutual.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn connections_end_when_the_root_goes_and_none_is_made_until_it_is_back() {
        let two = Two::new();
        let (web, api) = (two.svid(WEB), two.svid(API));
        let pair = two.mutual.meet(&web, &api).unwrap();
        let waiting = tokio::time::timeout(100 * HOUR, pair.lapsed()).await;
        assert!(waiting.is_err(), "{waiting:?}");
        two.trust.send_replace(bundle(&TestRoot::new("other root")));
        let lapsed = pair.lapsed().await;
        for end in [Usage::Client, Usage::Server] {
            assert_eq!(lapsed.reason_at(end), Reason::BadCertificate);
            assert!(lapsed.text_at(end).contains("its root was removed"), "{}", lapsed.text_at(end));
        }
        let refused = two.mutual.meet(&web, &api).unwrap_err();
        assert_eq!(refused.error.reason(), Reason::BadCertificate);
        two.trust.send_replace(bundle(&two.root));
        assert!(two.mutual.meet(&web, &api).is_ok());
    }

    #[test]
    fn each_end_hears_whose_certificate_expired() {
        let at = std::time::SystemTime::now();
        let lapsed = Lapsed { lapse: Lapse::OwnExpired(at), cause: None, serial: String::new() };
        let lapsed = PairLapsed { found_by: Usage::Client, lapsed };
        assert_eq!(lapsed.at(Usage::Client), Lapse::OwnExpired(at));
        assert_eq!(lapsed.at(Usage::Server), Lapse::PeerExpired(at));
        assert_eq!(lapsed.reason_at(Usage::Client), Reason::NoCertificate);
        assert_eq!(lapsed.reason_at(Usage::Server), Reason::BadCertificate);
    }

    #[test]
    fn the_pods_of_another_trust_domain_are_nobody_here() {
        let two = Two::new();
        let error =
            two.mutual.meet(&two.svid(WEB), &two.svid("spiffe://elsewhere/ns/shop/sa/api")).unwrap_err();
        assert_eq!(error.error.reason(), Reason::IdentityMismatch);
    }
}
