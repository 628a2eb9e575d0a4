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
//!
//! Where a pod's namespace is: where the annotation `culvert.dev/netns` says, else where `sandbox` finds it. Of its
//! addresses the container runtime's word counts, which the API server hears later.

mod handover;
mod member;
mod place;
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
    sandbox::{self, Sandboxes},
};
use member::{Gone, Member, end};
use place::Place;

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
    sandboxes: Sandboxes,
    pods: HashMap<Arc<str>, Member>,
    /// The kernel may hold entries that are no pod's of ours: an earlier agent's, or those of a pod whose namespace is
    /// another's now.
    loose: bool,
    failures: HashMap<Arc<str>, Failure>,
    /// The snapshot that the kernel knows the destinations of.
    told: Option<Arc<Snapshot>>,
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
    /// The pod has not started yet, as any pod at first: nobody needs to be told.
    early: bool,
}

/// How often the pods' namespaces are looked at where nothing else gives cause to.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// An attempt costs some microseconds, and who has repaired a pod looks on.
const RETRY_MAX: Duration = Duration::from_secs(5);

impl Enroller {
    /// Prepares to enrol the pods of the node.
    pub fn new(
        config: Config,
        capture: Arc<Capture>,
        context: Arc<Context>,
        (svids, sandboxes): (SvidStore, Sandboxes),
    ) -> Self {
        let Config { node, leave_period } = config;
        Self {
            node,
            leave_period,
            capture,
            context,
            svids,
            sandboxes,
            pods: HashMap::new(),
            loose: true,
            failures: HashMap::new(),
            told: None,
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
    pub fn begin(&mut self, snapshot: &Arc<Snapshot>) -> Result<(), capture::Error> {
        self.reconcile(snapshot)
    }

    /// Removes the entries that are nobody's. A pod whose enrolment failed keeps what it had before: letting go would
    /// send its traffic out in plaintext.
    fn forget_loose(&mut self, snapshot: &Snapshot) -> Result<(), capture::Error> {
        let kept = self.pods.values().map(|member| member.pod.capture().netns().cookie());
        let mut kept: HashSet<_> = kept.collect();
        let mut lost = HashSet::new();
        for pod in self.wanted(snapshot).filter(|pod| self.failures.contains_key(&pod.uid)) {
            match &pod.netns {
                Some(at) => kept.extend(NetNs::open(at).map(|netns| netns.cookie())),
                // Whose namespace is not found is known by its addresses.
                None => lost.extend(pod.addresses.iter().copied()),
            }
        }
        if !lost.is_empty() {
            kept.extend(self.capture.abandoned_with(&lost)?);
        }
        self.capture.forget_others(&kept)?;
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
            let (handed_over, sandboxes) = (self.capture.is_handed_over(), self.sandboxes.clone());
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
                () = sandboxes.changed(), if !draining && !handed_over => if !self.hasten() { continue },
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
                member.set_terms(Terms::new(&addressed(workload, &self.sandboxes), snapshot));
            }
        }
    }

    /// Has the pods tried again at once whose sandbox was not found. Returns whether there is anything to look at.
    fn hasten(&mut self) -> bool {
        let mut any = false;
        for failure in self.failures.values_mut().filter(|failure| failure.netns.is_none()) {
            failure.retry = Instant::now();
            any = true;
        }
        any || self.pods.values().any(|member| match &member.place {
            Place::Annotated(..) => false,
            Place::Sandbox(sandbox) => {
                let workload = member.pod.workload();
                !self.sandboxes.is_current(&workload, sandbox)
                    || member.place.virtual_machine(&workload, &self.sandboxes).is_some()
            }
        })
    }

    fn wanted<'a>(&'a self, snapshot: &'a Snapshot) -> impl Iterator<Item = Arc<Workload>> + 'a {
        let wanted =
            snapshot.on_node(&self.node).filter(|workload| workload.enrollment == Enrollment::Enrolled);
        wanted.map(|workload| addressed(workload, &self.sandboxes))
    }

    fn reconcile(&mut self, snapshot: &Arc<Snapshot>) -> Result<(), capture::Error> {
        let wanted: HashMap<_, _> = self.wanted(snapshot).map(|w| (w.uid.clone(), w)).collect();
        let present: HashSet<_> = snapshot.on_node(&self.node).map(|w| w.uid.clone()).collect();
        self.failures.retain(|uid, _| wanted.contains_key(uid));
        self.begin_leaves(&wanted, &present, snapshot);
        self.remove(&wanted, &present);
        // Policy first: what is refused from now on must not wait for the rest.
        self.set_terms(snapshot);
        // Destinations before pods: a pod that is captured must never meet a map that does not know its peers yet.
        if !self.told.as_ref().is_some_and(|told| Arc::ptr_eq(told, snapshot)) {
            self.capture.set_destinations(&snapshot.destinations(&self.node))?;
            self.told = Some(Arc::clone(snapshot));
        }
        self.retain_identities(&wanted);
        for (uid, workload) in wanted {
            if self.waits(&workload) {
                continue;
            }
            match self.keep(&workload, snapshot) {
                Ok(kept) => {
                    self.failures.remove(&uid);
                    if kept == Kept::New {
                        // At once: peers and the container runtime wait for it.
                        self.publish(snapshot);
                    }
                }
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

    /// Says which pods leave the mesh, and then lets their traffic alone: peers are to know first.
    fn begin_leaves(
        &mut self,
        wanted: &HashMap<Arc<str>, Arc<Workload>>,
        present: &HashSet<Arc<str>>,
        snapshot: &Snapshot,
    ) {
        let end = Instant::now() + self.leave_period;
        let leaves = |(uid, member): &(&Arc<str>, &Member)| {
            member.leaving.is_none() && !wanted.contains_key(*uid) && present.contains(*uid)
        };
        let leavers: Vec<_> = self.pods.iter().filter(leaves).map(|(uid, _)| uid.clone()).collect();
        if leavers.is_empty() {
            return;
        }
        for uid in &leavers {
            if let Some(member) = self.pods.get_mut(uid) {
                tracing::info!(pod = %member.pod.workload(), "the pod leaves the mesh");
                member.leaving = Some(end);
            }
        }
        self.publish(snapshot);
        for uid in &leavers {
            self.pods.get_mut(uid).into_iter().for_each(Member::stop_capture);
        }
    }

    /// Lets go of the pods that are no longer wanted.
    fn remove(&mut self, wanted: &HashMap<Arc<str>, Arc<Workload>>, present: &HashSet<Arc<str>>) {
        let now = Instant::now();
        let mut ended = Vec::new();
        for (uid, member) in &mut self.pods {
            let workload = member.pod.workload();
            if let Some(wanted) = wanted.get(uid) {
                if let Some(process) = member.place.virtual_machine(wanted, &self.sandboxes) {
                    tracing::warn!(pod = %workload, process, "the pod is a virtual machine, out of reach of the node's sockets: it is not in the mesh");
                    ended.push((uid.clone(), Gone::Namespace));
                } else if member.place.has_moved(wanted, &self.sandboxes) {
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
            } else if member.leaving.is_some_and(|end| end <= now) {
                ended.push((uid.clone(), Gone::Membership));
            }
        }
        for (uid, what) in ended {
            if let Some(member) = self.pods.remove(&uid) {
                let heir = what == Gone::Identity
                    || wanted.values().any(|heir| member.place.is_also_of(heir) && heir.uid != uid);
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
    fn keep(&mut self, workload: &Arc<Workload>, snapshot: &Snapshot) -> Result<Kept, EnrollError> {
        // Whatever else is wrong with a pod, policy is in force for it.
        self.pods.get_mut(&workload.uid).map_or(Ok(()), Member::enforce)?;
        if let Some(member) = self.pods.get_mut(&workload.uid) {
            if workload.addresses.is_empty() {
                return Err(EnrollError::NoAddress);
            }
            member.keep(&workload.addresses)?;
            return Ok(Kept::Known);
        }
        let place = Place::find(workload, &self.sandboxes)?;
        if workload.addresses.is_empty() {
            return Err(EnrollError::NoAddress);
        }
        let netns = place.open()?;
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
        self.pods.insert(workload.uid.clone(), Member::new(pod, place, &workload.addresses, plaintext));
        Ok(Kept::New)
    }

    fn note_failure(&mut self, uid: Arc<str>, workload: &Workload, error: &EnrollError) {
        let early = workload.addresses.is_empty() && error.is_absence();
        let error = error.to_string();
        let attempts = self.failures.get(&uid).map_or(1, |failure| failure.attempts + 1);
        let known = self.failures.get(&uid).is_some_and(|failure| failure.error == error);
        let delay = RETRY_FIRST.saturating_mul(1 << attempts.min(10)).min(RETRY_MAX);
        // Once for each cause, then quietly: what it is stands in the readiness detail until it is over.
        if !known && !early {
            tracing::error!(pod = %workload, %error, "the pod cannot be enrolled; it is tried again");
        } else {
            tracing::debug!(pod = %workload, %error, attempts, "the pod still cannot be enrolled");
        }
        let (netns, addresses) = (workload.netns.clone(), workload.addresses.clone());
        let retry = Instant::now() + delay;
        self.failures.insert(uid, Failure { error, netns, addresses, attempts, retry, early });
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
            let netns = Some(member.pod.capture().netns().inode());
            PodStatus { terms, state: state.to_owned(), plaintext, netns }
        });
        let failed = self.wanted(snapshot).filter_map(|workload| {
            let state = self.failures.get(&workload.uid).filter(|failure| !failure.early)?.error.clone();
            Some(PodStatus { terms: Terms::new(&workload, snapshot), state, plaintext: None, netns: None })
        });
        self.status.publish(enrolled.chain(failed).collect());
    }
}

/// Which kind of pod was kept in the mesh.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kept {
    /// One that has just come in.
    New,
    /// One that was in it.
    Known,
}

/// Returns the pod with the addresses that the container runtime gave it. The API server hears of them later, and until then
/// it has none, or those of the sandbox before.
fn addressed(workload: &Arc<Workload>, sandboxes: &Sandboxes) -> Arc<Workload> {
    if workload.netns.is_some() || workload.is_host_network() {
        return Arc::clone(workload);
    }
    let given = sandboxes.addresses(workload);
    let known = |address| workload.addresses.contains(address);
    if given.is_empty() || (given.len() == workload.addresses.len() && given.iter().all(known)) {
        return Arc::clone(workload);
    }
    Arc::new(Workload { addresses: given, ..(**workload).clone() })
}

/// Why a pod cannot be enrolled.
#[derive(Debug, thiserror::Error)]
enum EnrollError {
    #[error(transparent)]
    NotFound(#[from] sandbox::NotFound),
    #[error(
        "it has no address yet: its status.podIP is missing, and the container runtime has not told the CNI plugin one"
    )]
    NoAddress,
    #[error("its listeners cannot be used: {0}")]
    Listeners(#[source] std::io::Error),
    #[error(transparent)]
    Capture(#[from] capture::Error),
}

impl EnrollError {
    /// Whether nothing of the pod is there.
    fn is_absence(&self) -> bool {
        matches!(self, Self::NotFound(sandbox::NotFound::Nowhere { .. }))
    }
}
