//! The trust in force: the authority's roots and the revocation lists of files, composed anew when either changes.
//!
//! A list is in force once it is known whose it is: by a root, by a certificate that stands beside it in the file, or
//! by the first chain that somebody presents with its issuer in it. Until then the list that it replaces stays in
//! force beside it, so that a list with a wrong signature lets nobody back in. An outdated list goes on to revoke what
//! it lists, and what it does not list is let in: to refuse all would turn a late list into an outage of the mesh.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use humantime::format_rfc3339_seconds as rfc3339;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    crl::{Crl, CrlError, CrlFiles},
    follow::{FileState, Followed},
    trust::Trust,
};

/// Who is trusted now, by the authority's roots and the revocation lists. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Revocation {
    trust: Trust,
    files: Option<watch::Receiver<FileState>>,
    /// Lists that turned out to be nobody's.
    strays: Arc<AtomicU64>,
}

impl Revocation {
    /// Composes the trust in force of the authority's roots and of the lists in `files`, now and whenever one of them
    /// changes. Without files it is the authority's. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// Where a file cannot be read, or holds no list. Later that is logged and counted, and the lists before stay.
    pub fn start(files: Vec<PathBuf>, authority: Trust) -> Result<Self, CrlError> {
        let strays = Arc::default();
        if files.is_empty() {
            return Ok(Self { trust: authority, files: None, strays });
        }
        let paths = files.clone();
        let files = Followed::start("revocation lists", files, move || CrlFiles::read(&paths))?;
        let state = files.state();
        let mut composer =
            Composer { authority, content: files.watch(), known: Vec::new(), strays: Arc::clone(&strays) };
        let lists = composer.lists();
        let bundle = composer.authority.borrow_and_update().with_lists(lists);
        let (sender, trust) = watch::channel(Arc::new(bundle));
        tokio::spawn(async move {
            let _files = files;
            composer.follow(sender).await;
        });
        Ok(Self { trust, files: Some(state), strays })
    }

    /// Returns the trust in force, now and later.
    pub fn trust(&self) -> Trust {
        self.trust.clone()
    }

    /// Returns how reading the files goes; none without files.
    pub fn files(&self) -> Option<&watch::Receiver<FileState>> {
        self.files.as_ref()
    }

    /// Registers the metrics `culvert_crl_…`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }
}

/// What the task of a [`Revocation`] works on.
struct Composer {
    authority: Trust,
    content: watch::Receiver<Arc<CrlFiles>>,
    known: Vec<Known>,
    strays: Arc<AtomicU64>,
}

/// A list that is in force, or waits for somebody to be its issuer.
struct Known {
    list: Arc<Crl>,
    since: Instant,
    told: Told,
}

/// What was said of a list: each thing once.
#[derive(Default)]
struct Told {
    stray: bool,
    outdated: bool,
}

impl Composer {
    async fn follow(mut self, sender: watch::Sender<Arc<super::TrustBundle>>) {
        loop {
            tokio::select! {
                () = sender.closed() => return,
                changed = self.authority.changed() => if changed.is_err() { return },
                changed = self.content.changed() => if changed.is_err() { return },
                () = sleep(LOOK) => {}
            }
            let lists = self.lists();
            let authority = Arc::clone(&self.authority.borrow_and_update());
            sender.send_if_modified(|bundle| {
                let same_lists = bundle.lists().len() == lists.len()
                    && bundle.lists().iter().zip(&lists).all(|(a, b)| Arc::ptr_eq(a, b));
                let same = same_lists && bundle.certificates() == authority.certificates();
                if !same {
                    *bundle = Arc::new(authority.with_lists(lists));
                }
                !same
            });
        }
    }

    /// Returns the lists that are to be in force, and says what is wrong with them.
    fn lists(&mut self) -> Vec<Arc<Crl>> {
        let content = Arc::clone(&self.content.borrow_and_update());
        let before = std::mem::take(&mut self.known);
        // A file that is read again may hold what it held.
        let known = |list: &Arc<Crl>| {
            let same = before.iter().find(|known| known.list.is_same(list));
            Arc::clone(same.map_or(list, |known| &known.list))
        };
        let lists: Vec<_> = content.lists.iter().map(known).collect();
        for list in lists.iter().filter(|list| !list.is_verified()) {
            self.find_signer(list, &content, &before);
        }
        let (mut current, older): (Vec<_>, Vec<_>) =
            before.into_iter().partition(|known| lists.iter().any(|list| Arc::ptr_eq(list, &known.list)));
        for list in &lists {
            if !current.iter().any(|known| Arc::ptr_eq(&known.list, list)) {
                current.push(Known::new(list));
            }
        }
        current.extend(older.into_iter().filter(|old| old.is_needed_beside(&lists)));
        for known in &mut current {
            known.tell(&self.strays);
        }
        self.known = current;
        self.known.iter().map(|known| Arc::clone(&known.list)).collect()
    }

    /// Tries a list's signature with every key that is known to be its issuer's.
    fn find_signer(&self, list: &Crl, content: &CrlFiles, before: &[Known]) {
        let authority = self.authority.borrow();
        let beside = content.issuers.iter().map(|(name, key)| (name.as_slice(), key.as_slice()));
        for (_, key) in authority.issuers().chain(beside).filter(|(name, _)| list.is_named(name)) {
            list.is_signed_by(key);
        }
        for older in before.iter().filter(|older| older.list.shares_issuer(list)) {
            for key in older.list.signers() {
                list.is_signed_by(&key);
            }
        }
    }
}

impl Known {
    fn new(list: &Arc<Crl>) -> Self {
        tracing::info!(
            issuer = list.issuer, revoked = list.revoked, next_update = %rfc3339(list.next_update),
            "revocation list loaded"
        );
        Self { list: Arc::clone(list), since: Instant::now(), told: Told::default() }
    }

    /// Whether it stays in force: what seems to replace it is not known to be signed, and nothing else does.
    fn is_needed_beside(&self, lists: &[Arc<Crl>]) -> bool {
        let signers = self.list.signers();
        let replaced = lists.iter().any(|list| list.signers().iter().any(|signer| signers.contains(signer)));
        let awaited = lists.iter().any(|list| list.shares_issuer(&self.list) && !list.is_verified());
        !signers.is_empty() && awaited && !replaced
    }

    fn tell(&mut self, strays: &AtomicU64) {
        let Self { list, since, told } = self;
        let unsigned = !list.is_verified() && (list.was_tried() || since.elapsed() > PATIENCE);
        if unsigned && !told.stray {
            told.stray = true;
            strays.fetch_add(1, Relaxed);
            tracing::error!(
                issuer = list.issuer,
                "a revocation list revokes nothing: its signature is not that of any authority of that name that is \
                 known here; put the issuer's certificate into the same file, or make the list anew; the list of that \
                 issuer before it stays in force"
            );
        }
        let outdated = list.is_outdated(SystemTime::now());
        if outdated && !told.outdated {
            tracing::error!(
                issuer = list.issuer, next_update = %rfc3339(list.next_update),
                "a revocation list is outdated: what was revoked since is let in; put the newest into the file"
            );
        }
        told.outdated = outdated;
    }
}

impl Collector for Revocation {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let bundle = Arc::clone(&self.trust.borrow());
        let now = SystemTime::now();
        let (verified, strays): (Vec<_>, Vec<_>) = bundle.lists().iter().partition(|list| list.is_verified());
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let mut gauges = vec![
            ("culvert_crl_loaded", "Revocation lists in force", count(verified.len())),
            (
                "culvert_crl_unverified",
                "Revocation lists that are nobody's as far as is known, and revoke nothing",
                count(strays.len()),
            ),
            (
                "culvert_crl_outdated",
                "Revocation lists whose next update is overdue",
                count(bundle.lists().iter().filter(|list| list.is_outdated(now)).count()),
            ),
            (
                "culvert_crl_revoked",
                "Certificates that the revocation lists in force revoke",
                count(verified.iter().map(|list| list.revoked).sum()),
            ),
        ];
        if let Some(next) = bundle.lists().iter().map(|list| list.next_update).min() {
            let left = next.duration_since(now).map_or_else(|past| -seconds(past.duration()), seconds);
            gauges.push((
                "culvert_crl_next_update_seconds",
                "Seconds until the first revocation list is outdated; negative once it is",
                left,
            ));
        }
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let refused = self.files.as_ref().map_or(0, |state| state.borrow().failures);
        let failures = ConstCounter::new(refused + self.strays.load(Relaxed));
        let help = "Revocation lists, or files of them, that could not be used";
        failures.encode(encoder.encode_descriptor(
            "culvert_crl_failures",
            help,
            None,
            failures.metric_type(),
        )?)
    }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// How often the lists are looked at where nothing changes: one may have become outdated, or found its issuer.
const LOOK: Duration = Duration::from_secs(5);
/// How long a list may be nobody's before that is an error: an agent that starts knows the authorities that signed for
/// its pods when it has the first certificate.
const PATIENCE: Duration = Duration::from_secs(60);
