//! Capture: the eBPF programs and maps that bring a pod's connections to the agent, or past it, and the sockets in pods' namespaces.
//!
//! Owns everything that touches aya: loading, attaching and pinning programs, the maps, each enrolled pod's listeners
//! and the way to dial from inside its namespace. Knows nothing of identities, policy or HBONE; what goes where is told
//! to it ([`Capture::set_destinations`], [`PodCapture::set_plaintext`]). Nothing here has a deadline: callers set one.
//!
//! ```text
//! Capture::load ──► pins under <bpffs>/culvert/<node>/ ──► Capture::enroll(NetNs) ──► PodCapture
//!                                                               │ outbound_listeners, hbone_listeners, plaintext_listeners
//!                                                               │ orig_dst, set_plaintext, bypassing
//!                                                               └ Dialler: dial_peer, dial_plain, dial_app
//! ```
//!
//! The kernel's part is `agent-ebpf`; how the two fit together is told in docs/architecture.md.

mod bypass;
mod cgroup;
mod cleanup;
mod dial;
mod error;
mod listen;
mod lock;
mod native;
mod netlink;
mod netns;
mod node;
mod pins;
mod plaintext;
mod pod;
mod programs;
mod refusals;
mod ring;
mod segment;
mod slots;
mod sock_diag;
mod socket;
mod stats;
mod sys;
mod tables;

use std::{
    collections::{HashMap, HashSet},
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ipnet::IpNet;

pub use bypass::Bypass;
pub use dial::Dialler;
pub use error::Error;
pub use native::{MAX_PERMITS, NativeEnded, NativeEnds, NativeSocket, check_native};
pub use netns::{NetNs, remember_home};
pub use pod::PodCapture;
pub use refusals::{Refusal, Refusals};
pub use segment::Shared;
pub use socket::{end_cleanly, is_delivered, reset_on_close};
pub use stats::Stats;

use crate::mesh::{Destination, Plaintext};
use {lock::Lock, pins::Pins, slots::Slots, tables::Tables};

/// How often the kubelet's cgroups are looked for: they are made once, when its first pod starts.
const LOOK_FOR_CGROUPS: Duration = Duration::from_secs(5);

/// What capture needs to know of the node.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name; two agents of one kernel have two.
    pub node: String,
    /// Where the BPF file system is, or is to be mounted: `/sys/fs/bpf`.
    pub bpffs: PathBuf,
    /// The ranges that pods have their addresses from. An address in them that nobody knows yet is captured, so that
    /// the agent can wait for the index to catch up; without ranges it passes.
    pub pod_ranges: Vec<IpNet>,
}

/// The attached programs, their maps, and the pods enrolled in them.
///
/// Dropping it leaves everything in the kernel as it is, so that a crashed or restarting agent fails closed:
/// [`Capture::cleanup`] takes it away.
#[derive(Debug)]
pub struct Capture {
    pins: Pins,
    tables: Arc<Tables>,
    slots: Slots,
    /// The network namespace of the agent itself, which is never enrolled.
    host: NetNs,
    cgroup: cgroup::Root,
    generations: native::Generations,
    /// Held until the agent ends or hands the node over: one writer.
    lock: Mutex<Option<Lock>>,
}

impl Capture {
    /// Loads and attaches the programs, or takes over what an earlier agent of the same node left.
    ///
    /// The programs that an earlier agent attached are replaced one by one without a gap, so that an upgraded agent
    /// runs its own code. Enrolled pods and destinations stay as they were; [`Self::enroll`] takes the pods over.
    ///
    /// # Errors
    /// Where another agent of this node runs, the cgroup v2 hierarchy's root cannot be reached, or the kernel refuses a
    /// program or a map.
    pub fn load(config: &Config) -> Result<Self, Error> {
        // First: it checks the node's name, of which the lock's path is made too.
        let pins = Pins::create(&config.bpffs, &config.node)?;
        let lock = Lock::acquire(&config.node)?;
        let (cgroup, host) = (cgroup::Root::open()?, NetNs::current()?);
        let tables = programs::load(&pins, cgroup.directory(), &host)?;
        tables.node().set_cgroups(&cgroup.pods())?;
        tables.set_ranges(&config.pod_ranges)?;
        let slots = Slots::adopt(&tables)?;
        pins.remove_pods_except(&slots.netns())?;
        let (tables, lock) = (Arc::new(tables), Mutex::new(Some(lock)));
        let generations = native::Generations::new();
        Ok(Self { pins, tables, slots, host, cgroup, generations, lock })
    }

    /// Leaves the node to a successor, which [`Self::load`]s from now on: nothing here writes to the kernel any more. What
    /// the kernel steers to this agent still comes here, until the successor has put its own listeners in their place.
    pub fn hand_over(&self) {
        // Whoever writes a permit looks under this lock whether the node is still its own.
        let mut permits = self.tables.permits();
        if let Err(error) = permits.stop() {
            tracing::warn!(%error, "permits for native connections stay until the successor takes them back");
        }
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Returns whether the node has been left to a successor.
    pub fn is_handed_over(&self) -> bool {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Returns whether no agent has the node: it has been handed over, and the successor has ended.
    pub fn is_orphaned(&self, node: &str) -> bool {
        self.is_handed_over() && Lock::acquire(node).is_ok()
    }

    /// Makes the kernel treat exactly these destinations as told; what is new is added before what is old goes.
    ///
    /// # Errors
    /// Where there are more than the map holds, or the kernel refuses.
    pub fn set_destinations(&self, want: &HashMap<IpAddr, Destination>) -> Result<(), Error> {
        self.tables.set_destinations(want)
    }

    /// Enrolls the pod of a network namespace: listeners, what happens to plaintext, the `sk_lookup` link, and last the
    /// entry that starts capture.
    ///
    /// A namespace that an earlier agent enrolled keeps its slot, and what is established there goes on. The programs
    /// of the pod are replaced without a gap.
    ///
    /// # Errors
    /// Where the namespace is the node's own, does not hold the addresses, is enrolled already, or there is no slot.
    pub fn enroll(
        self: &Arc<Self>,
        netns: NetNs,
        addresses: &[IpAddr],
        plaintext: &Plaintext,
    ) -> Result<PodCapture, Error> {
        if netns.cookie() == self.host.cookie() {
            return Err(Error::refused(
                &netns,
                "it is the node's own; pods with hostNetwork cannot be enrolled",
            ));
        }
        PodCapture::enroll(Arc::clone(self), netns, addresses, plaintext)
    }

    /// Returns where the root of the cgroup v2 hierarchy is mounted.
    pub fn cgroup_root(&self) -> &Path {
        self.cgroup.path()
    }

    /// Returns the cookies of the namespaces that an earlier agent enrolled with one of these addresses, and this one has
    /// not: of a pod whose namespace is not found, all that is known.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn abandoned_with(&self, addresses: &HashSet<IpAddr>) -> Result<Vec<u64>, Error> {
        let mut found = Vec::new();
        for (netns, slot) in self.slots.abandoned(&HashSet::new()) {
            let held = self.tables.read_pod(slot)?.addresses;
            if held.iter().any(|address| addresses.contains(&IpAddr::from(*address))) {
                found.push(netns);
            }
        }
        Ok(found)
    }

    /// Looks again for the cgroups that the kubelet keeps pods in: it may have made them since. What runs in them shares
    /// the node's network and is not the node.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn find_pod_cgroups(&self) -> Result<(), Error> {
        self.tables.node().set_cgroups(&self.cgroup.pods())
    }

    /// Does that from time to time, for as long as the agent lives: until it is noticed, what runs in a cgroup that the
    /// kubelet has just made counts as the node.
    pub async fn follow_pod_cgroups(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_FOR_CGROUPS).await;
            if self.is_handed_over() {
                return;
            }
            let capture = Arc::clone(&self);
            // Reading directories may wait.
            let found = tokio::task::spawn_blocking(move || capture.find_pod_cgroups());
            if let Ok(Err(error)) = found.await {
                tracing::error!(%error, "the kernel was not told where the node's pods are");
            }
        }
    }

    /// Returns whether an earlier agent left pods enrolled, which may have connections that it let past.
    pub fn has_predecessor(&self) -> bool {
        self.slots.are_adopted()
    }

    /// Returns the plaintext that the kernel refuses, of all pods. There is one reader: it can be had once.
    ///
    /// # Errors
    /// Where it has been had already, or there is no runtime to wait on.
    pub fn refusals(self: &Arc<Self>) -> io::Result<Refusals> {
        let taken = || io::Error::other("the refusals have a reader already");
        Refusals::new(self.tables.take_refusals().ok_or_else(taken)?)
    }

    /// Forgets the pods that an earlier agent enrolled and nobody wants any more, and pins of another layout.
    ///
    /// To be called after the start, when every wanted pod is enrolled: until then connections of the pods in question
    /// fail rather than leak. Pods that this agent enrolled are left alone.
    ///
    /// # Errors
    /// Where the kernel refuses; what could be forgotten is.
    pub fn forget_others(&self, keep: &HashSet<u64>) -> Result<(), Error> {
        for (netns, slot) in self.slots.abandoned(keep) {
            pod::remove(self, netns, slot)?;
            self.slots.release(netns);
        }
        self.pins.remove_other_layouts()
    }

    /// Takes away everything that agents left in the kernel, of one node or of all, and returns what it was.
    ///
    /// # Errors
    /// Where an agent runs, or the kernel refuses.
    pub fn cleanup(node: Option<&str>, bpffs: &Path) -> Result<Vec<String>, Error> {
        cleanup::run(node, bpffs)
    }

    /// Returns what the kernel has counted since the programs were first loaded, and how full the maps are.
    ///
    /// # Errors
    /// Where the kernel refuses to tell.
    pub fn stats(&self) -> Result<Stats, Error> {
        Stats::read(&self.tables, self.slots.netns())
    }
}
