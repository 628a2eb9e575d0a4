//! Keeps the pods of this node in step with the snapshot: for each enrolled pod its namespace, its place in the kernel's
//! maps, its listeners and its certificate.
//!
//! ```text
//! absent ──enrol──► enrolled ──label gone──► leaving (no new captures; HBONE still served for the leave period) ──► absent
//!                      └─────────pod gone──► absent, its connections ended
//! ```
//!
//! The kernel's maps are derived from the snapshot, never the truth; a pod that cannot be enrolled is tried again, and
//! until then stays as it is: what an earlier agent captured stays captured, and fails closed.

mod handover;
mod member;
mod status;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    capture::{self, Capture, NetNs},
    identity::SvidStore,
    mesh::{Enrollment, Identity, NetnsRef, Snapshot, Workload},
    proxy::{Context, Pod, Terms},
};
use member::{Gone, Member, end, inode};

pub use handover::{Handover, NotHandedOver};
pub use status::{PodStatus, Status};

/// Whose pods are enrolled, and how they leave.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name.
    pub node: String,
    /// How long a pod that left the mesh still receives tunnels: peers learn of it by then.
    pub leave_period: Duration,
}

/// Enrols this node's pods.
pub struct Enroller {
    node: String,
    leave_period: Duration,
    capture: Arc<Capture>,
    context: Arc<Context>,
    svids: SvidStore,
    pods: HashMap<Arc<str>, Member>,
    /// The kernel may hold entries that are no pod's of ours: an earlier agent's, or those of a pod whose namespace is
    /// another's now.
    loose: bool,
    failures: HashMap<Arc<str>, Failure>,
    status: Status,
    handover: (Handover, handover::Requests),
}

struct Failure {
    error: String,
    /// What was tried.
    netns: Option<NetnsRef>,
    addresses: Vec<IpAddr>,
    attempts: u32,
    retry: Instant,
}

/// How often the pods' namespaces are looked at where nothing else gives cause to.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// An attempt costs some microseconds, and who has repaired a pod looks on.
const RETRY_MAX: Duration = Duration::from_secs(5);

impl Enroller {
    /// Prepares to enrol the pods of the node.
    pub fn new(config: Config, capture: Arc<Capture>, context: Arc<Context>, svids: SvidStore) -> Self {
        let Config { node, leave_period } = config;
        Self {
            node,
            leave_period,
            capture,
            context,
            svids,
            pods: HashMap::new(),
            loose: true,
            failures: HashMap::new(),
            status: Status::default(),
            handover: handover::channel(),
        }
    }

    /// Returns a handle by which the node is handed over to a successor.
    pub fn handover(&self) -> Handover {
        self.handover.0.clone()
    }

    /// Returns a handle on what the enroller says of itself.
    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// Brings the kernel in step with the first snapshot: whatever an earlier agent left and nobody wants any more
    /// goes.
    ///
    /// # Errors
    /// Where the kernel's maps cannot be written; the agent cannot work then.
    pub fn begin(&mut self, snapshot: &Snapshot) -> Result<(), capture::Error> {
        self.reconcile(snapshot)
    }

    /// Removes the entries that are nobody's. A pod whose enrolment failed keeps what it had before: letting go would
    /// send its traffic out in plaintext.
    fn forget_loose(&mut self, snapshot: &Snapshot) -> Result<(), capture::Error> {
        let kept = self.pods.values().map(|member| member.pod.capture().netns().cookie());
        let failed = self.wanted(snapshot).filter(|w| self.failures.contains_key(&w.uid));
        let failed = failed.filter_map(|w| NetNs::open(w.netns.as_ref()?).ok()).map(|netns| netns.cookie());
        self.capture.forget_others(&kept.chain(failed).collect::<HashSet<_>>())?;
        // While one fails, what it keeps may become nobody's.
        self.loose = !self.failures.is_empty();
        Ok(())
    }

    /// Follows the snapshots after the one that [`Self::begin`] has had, until the agent drains; then takes the listeners
    /// out of the kernel's reach, and goes on to hold connections to policy until the last one has ended.
    ///
    /// Once the node is handed over to a successor, all that is left to do is that: the kernel's maps are the successor's.
    ///
    /// # Errors
    /// As [`Self::begin`]; and where the successor has ended and left the node to nobody.
    pub async fn follow(mut self, mut mesh: watch::Receiver<Arc<Snapshot>>) -> Result<(), capture::Error> {
        let context = self.context.clone();
        let drain = context.drain();
        let mut finished = std::pin::pin!(context.finished());
        let mut draining = false;
        loop {
            let handed_over = self.capture.is_handed_over();
            let next = if handed_over { Instant::now() + LOOK_AGAIN } else { self.next_deadline() };
            tokio::select! {
                () = drain.cancelled(), if !draining => {
                    self.stop_listening();
                    draining = true;
                }
                () = &mut finished, if draining => return Ok(()),
                Some(request) = self.handover.1.recv(), if !handed_over => {
                    self.capture.hand_over();
                    request.grant();
                    continue;
                }
                Ok(()) = mesh.changed() => {}
                () = sleep_until(next), if !draining => {
                    if handed_over && self.capture.is_orphaned(&self.node) {
                        return Err(capture::Error::Orphaned);
                    }
                }
            }
            let snapshot = mesh.borrow_and_update().clone();
            if draining || handed_over {
                self.hold_to_policy(&snapshot);
            } else {
                self.reconcile(&snapshot)?;
            }
        }
    }

    /// Has the kernel steer nothing here any more, and the listeners closed once what waits in them is accepted.
    fn stop_listening(&self) {
        for member in self.pods.values() {
            if let Err(error) = member.pod.capture().drain() {
                let workload = member.pod.workload();
                tracing::warn!(pod = %workload, %error, "draining the pod's listeners failed");
            }
            // Only now: a listener that closes while the kernel still steers to it resets what it is handed.
            member.pod.close();
        }
    }

    /// Goes on to hold connections to policy, since they may take their time.
    fn hold_to_policy(&mut self, snapshot: &Snapshot) {
        self.set_terms(snapshot);
        if self.capture.is_handed_over() {
            let present: HashSet<_> = snapshot.on_node(&self.node).map(|w| w.uid.clone()).collect();
            self.pods
                .iter()
                .filter(|(uid, _)| !present.contains(*uid))
                .for_each(|(_, member)| member.pod.abort());
            return;
        }
        for member in self.pods.values_mut().filter(|member| member.leaving.is_none()) {
            if let Err(error) = member.enforce() {
                let workload = member.pod.workload();
                tracing::warn!(pod = %workload, %error, "a change of policy did not reach the kernel");
            }
        }
    }

    /// Gives the pods that are in the mesh, or leave it, the terms of a newer snapshot.
    fn set_terms(&mut self, snapshot: &Snapshot) {
        for workload in snapshot.on_node(&self.node) {
            if let Some(member) = self.pods.get_mut(&workload.uid) {
                member.set_terms(Terms::new(workload, snapshot));
            }
        }
    }

    fn wanted<'a>(&'a self, snapshot: &'a Snapshot) -> impl Iterator<Item = &'a Arc<Workload>> {
        snapshot.on_node(&self.node).filter(|workload| workload.enrollment == Enrollment::Enrolled)
    }

    fn reconcile(&mut self, snapshot: &Snapshot) -> Result<(), capture::Error> {
        let wanted: HashMap<_, _> = self.wanted(snapshot).map(|w| (w.uid.clone(), w.clone())).collect();
        let present: HashSet<_> = snapshot.on_node(&self.node).map(|w| w.uid.clone()).collect();
        self.failures.retain(|uid, _| wanted.contains_key(uid));
        self.remove(&wanted, &present);
        // Policy first: what is refused from now on must not wait for the rest.
        self.set_terms(snapshot);
        // Destinations before pods: a pod that is captured must never meet a map that does not know its peers yet.
        self.capture.set_destinations(&snapshot.destinations(&self.node))?;
        self.retain_identities(&wanted);
        for (uid, workload) in wanted {
            if self.waits(&workload) {
                continue;
            }
            match self.keep(&workload, snapshot) {
                Ok(()) => drop(self.failures.remove(&uid)),
                Err(error) => self.note_failure(uid, &workload, &error),
            }
        }
        if self.loose {
            self.forget_loose(snapshot)?;
        }
        self.context.forget_peers(snapshot);
        self.publish(snapshot);
        Ok(())
    }

    /// Lets go of the pods that are no longer wanted.
    fn remove(&mut self, wanted: &HashMap<Arc<str>, Arc<Workload>>, present: &HashSet<Arc<str>>) {
        let now = Instant::now();
        let mut ended = Vec::new();
        for (uid, member) in &mut self.pods {
            let workload = member.pod.workload();
            if let Some(wanted) = wanted.get(uid) {
                // The same name may lead to another namespace: the pod's sandbox was made anew.
                let moved = wanted.netns.as_ref() != Some(&member.netns)
                    || inode(&member.netns).is_some_and(|now| member.inode != Some(now));
                if moved {
                    tracing::info!(pod = %workload, "the pod has another network namespace now");
                    ended.push((uid.clone(), Gone::Namespace));
                } else if wanted.identity != workload.identity {
                    // No pod changes its service account: this is another one, from a manifest without a uid, and what
                    // the old one opened must not go on under a name that nobody bears any more.
                    tracing::info!(pod = %workload, old = %workload.identity, new = %wanted.identity, "the pod has another identity now");
                    ended.push((uid.clone(), Gone::Identity));
                }
            } else if !present.contains(uid) {
                ended.push((uid.clone(), Gone::Pod));
            } else if member.leaving.is_none() {
                tracing::info!(pod = %workload, "the pod leaves the mesh");
                member.leave(now + self.leave_period);
            } else if member.leaving.is_some_and(|end| end <= now) {
                ended.push((uid.clone(), Gone::Membership));
            }
        }
        for (uid, what) in ended {
            if let Some(member) = self.pods.remove(&uid) {
                let heir = wanted.values().any(|heir| {
                    heir.netns.as_ref() == Some(&member.netns) && (heir.uid != uid || what == Gone::Identity)
                });
                // Un-enrolled first, the heir's traffic would go out in plaintext until it is enrolled.
                self.loose |= heir;
                let gone = what != Gone::Membership;
                end(&member, gone, heir);
                // What a pod opened while it was in the mesh outlives its membership, however long it takes.
                if gone {
                    self.context.forget_source(&uid);
                }
            }
        }
    }

    fn retain_identities(&self, wanted: &HashMap<Arc<str>, Arc<Workload>>) {
        let leaving = self.pods.values().map(|member| member.pod.workload().identity.clone());
        let identities: HashSet<Identity> =
            wanted.values().map(|workload| workload.identity.clone()).chain(leaving).collect();
        self.svids.retain(&identities);
        for identity in identities {
            self.svids.prefetch(&identity);
        }
    }

    /// Whether a pod that could not be enrolled waits for its next attempt. A change of its manifest may be the remedy,
    /// and is tried at once.
    fn waits(&self, workload: &Workload) -> bool {
        !self.pods.contains_key(&workload.uid)
            && self.failures.get(&workload.uid).is_some_and(|failure| {
                failure.retry > Instant::now()
                    && failure.netns == workload.netns
                    && failure.addresses == workload.addresses
            })
    }

    /// Enrols a pod, or keeps one that is enrolled up to date.
    fn keep(&mut self, workload: &Arc<Workload>, snapshot: &Snapshot) -> Result<(), EnrollError> {
        // Whatever else is wrong with a pod, policy is in force for it.
        self.pods.get_mut(&workload.uid).map_or(Ok(()), Member::enforce)?;
        let netns_at = workload.netns.clone().ok_or(EnrollError::NoNamespace)?;
        if workload.addresses.is_empty() {
            return Err(EnrollError::NoAddress);
        }
        if let Some(member) = self.pods.get_mut(&workload.uid) {
            return Ok(member.keep(&workload.addresses)?);
        }
        let inode = inode(&netns_at);
        let netns = NetNs::open(&netns_at)?;
        let terms = Terms::new(workload, snapshot);
        let plaintext = terms.plaintext();
        let capture = self.capture.enroll(netns, &workload.addresses, &plaintext)?;
        let pod = Pod::start(&self.context, terms, capture).map_err(EnrollError::Listeners)?;
        if pod.capture().is_adopted() {
            // Policy may have changed while no agent ran.
            pod.sweep();
        }
        tracing::info!(
            pod = %workload, identity = %workload.identity, addresses = ?workload.addresses,
            "the pod is in the mesh"
        );
        self.pods.insert(
            workload.uid.clone(),
            Member::new(pod, (netns_at, inode), &workload.addresses, plaintext),
        );
        Ok(())
    }

    fn note_failure(&mut self, uid: Arc<str>, workload: &Workload, error: &EnrollError) {
        let error = error.to_string();
        let attempts = self.failures.get(&uid).map_or(1, |failure| failure.attempts + 1);
        let known = self.failures.get(&uid).is_some_and(|failure| failure.error == error);
        let delay = RETRY_FIRST.saturating_mul(1 << attempts.min(10)).min(RETRY_MAX);
        // Once for each cause, then quietly: what it is stands in the readiness detail until it is over.
        if !known {
            tracing::error!(pod = %workload, %error, "the pod cannot be enrolled; it is tried again");
        } else {
            tracing::debug!(pod = %workload, %error, attempts, "the pod still cannot be enrolled");
        }
        let (netns, addresses) = (workload.netns.clone(), workload.addresses.clone());
        let retry = Instant::now() + delay;
        self.failures.insert(uid, Failure { error, netns, addresses, attempts, retry });
    }

    fn next_deadline(&self) -> Instant {
        let leaving = self.pods.values().filter_map(|member| member.leaving);
        let retries = self.failures.values().map(|failure| failure.retry);
        leaving.chain(retries).fold(Instant::now() + LOOK_AGAIN, Instant::min)
    }

    fn publish(&self, snapshot: &Snapshot) {
        let enrolled = self.pods.values().map(|member| {
            let state = if member.leaving.is_some() { "leaving" } else { "enrolled" };
            let (terms, plaintext) = (member.pod.terms(), member.plaintext().cloned());
            PodStatus { terms, state: state.to_owned(), plaintext }
        });
        let failed = self.wanted(snapshot).filter_map(|workload| {
            let state = self.failures.get(&workload.uid)?.error.clone();
            Some(PodStatus { terms: Terms::new(workload, snapshot), state, plaintext: None })
        });
        self.status.publish(enrolled.chain(failed).collect());
    }
}

/// Why a pod cannot be enrolled.
#[derive(Debug, thiserror::Error)]
enum EnrollError {
    #[error("its network namespace is not known: annotate the Pod with culvert.dev/netns")]
    NoNamespace,
    #[error("it has no address yet: its status.podIP is missing")]
    NoAddress,
    #[error("its listeners cannot be used: {0}")]
    Listeners(#[source] std::io::Error),
    #[error(transparent)]
    Capture(#[from] capture::Error),
}
