//! Where a pod's network namespace is.
//!
//! Two sources. The container runtime's CNI ADD names it, before any process of the pod runs ([`Attachment`]). Otherwise
//! the pod's sandbox process is found by the pod's cgroup ([`survey`] says which process that is, and why): never just any
//! process of the pod, since one may sit in a namespace that it unshared itself.
//!
//! ```text
//! cni ──attach, detach──► Sandboxes ◄──find── enroll
//! cgroups of the kubelet ──made or removed──► changed() ──► enroll tries again
//! ```
//!
//! What is found is a candidate: that the namespace holds the pod's addresses and is not the host's is for the caller to
//! check, who knows the addresses.

mod attachments;
mod cgroups;
mod inode;
mod process;
mod survey;
mod watch;

use std::{
    fs::File,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

pub use attachments::Attachment;
pub use cgroups::{KUBEPODS_LEVELS, each_kubepods};
pub use inode::Inode;

use crate::mesh::Workload;
use attachments::Attachments;
use cgroups::View;
use process::Process;
use survey::Survey;

/// How old a survey of the node's processes may be. A survey takes some microseconds a process.
const FRESH: Duration = Duration::from_millis(200);

/// The sandboxes of the node's pods. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sandboxes {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    view: View,
    attachments: Mutex<Attachments>,
    survey: Mutex<Option<(Instant, Survey)>>,
    changed: Notify,
}

/// Where the node's processes and cgroups are to be seen.
#[derive(Clone, Debug)]
pub struct Config {
    /// The proc file system of the host's process namespace.
    pub proc: PathBuf,
    /// The root of the host's cgroup v2 hierarchy.
    pub cgroups: PathBuf,
    /// Where the attachments are kept, so that a restarted agent knows them.
    pub saved: PathBuf,
}

/// A pod's sandbox: the network namespace that its containers share.
#[derive(Clone, Debug)]
pub struct Sandbox {
    netns: Arc<File>,
    name: String,
    inode: Inode,
    addresses: Vec<IpAddr>,
    source: Source,
}

/// Who said so.
#[derive(Clone, Debug)]
enum Source {
    /// The container runtime, of the container with this id.
    Attachment(String),
    Process(Arc<Process>),
}

/// Why a pod's sandbox is not found.
#[derive(Debug, thiserror::Error)]
pub enum NotFound {
    /// Neither the CNI plugin nor a process says where it is.
    #[error(
        "its sandbox is not found: the CNI plugin has not been asked for it, and no process runs in a cgroup of the pod \
         (kubepods…/pod{uid}) that {proc} shows; it may not have started yet, else check --host-proc and that the kubelet \
         uses cgroup v2, or name the namespace by the annotation culvert.dev/netns"
    )]
    Nowhere {
        /// The pod's uid.
        uid: String,
        /// The proc file system.
        proc: PathBuf,
    },
    /// The pod does not use the host's sockets.
    #[error(
        "its sandbox is a virtual machine or a kernel of its own ({process}), which is out of reach of the node's sockets: \
         use another runtimeClassName, or take it out of the mesh with the label culvert.dev/mesh: disabled"
    )]
    Virtual {
        /// What the sandbox's process is called.
        process: String,
    },
    /// It ended while it was looked at.
    #[error("its sandbox (process {pid}) ended while it was looked at: {source}")]
    Ended {
        /// The process.
        pid: u32,
        /// What failed.
        source: io::Error,
    },
    /// The namespace that the runtime named cannot be opened.
    #[error(
        "the network namespace {path} that the container runtime named cannot be opened: {source}; the agent needs the \
         host's /var/run/netns, mounted with propagation HostToContainer"
    )]
    Attachment {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The processes cannot be listed.
    #[error(
        "the node's processes cannot be listed in {path}: {source}; give the host's proc file system as --host-proc"
    )]
    Proc {
        /// The proc file system.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Sandboxes {
    /// Makes it, with the attachments that an earlier agent of the node saved.
    pub fn new(config: Config) -> Self {
        let attachments = Mutex::new(Attachments::load(&config.saved));
        let view = View::new(&config.cgroups);
        let shared = Shared { config, view, attachments, survey: Mutex::default(), changed: Notify::new() };
        Self { shared: Arc::new(shared) }
    }

    /// Finds a pod's sandbox: where the container runtime said, else by its process.
    ///
    /// # Errors
    /// Where there is none, or it is out of reach.
    pub fn find(&self, pod: &Workload) -> Result<Sandbox, NotFound> {
        let attached = self.attachments().of(pod);
        let Some(attachment) = attached else { return self.find_process(pod) };
        if let Some(process) = self.virtual_machine(pod) {
            return Err(NotFound::Virtual { process });
        }
        match self.open_attached(&attachment) {
            Ok(sandbox) => Ok(sandbox),
            // It may be the one before; the process tells.
            Err(error) => self.find_process(pod).map_err(|_| error),
        }
    }

    /// Returns whether a sandbox that was found is still the pod's as far as is known, without a look at every process.
    pub fn is_current(&self, pod: &Workload, sandbox: &Sandbox) -> bool {
        match (&sandbox.source, self.attachments().of(pod)) {
            (Source::Attachment(container), Some(attachment)) => attachment.container == *container,
            (Source::Process(process), None) => process.is_alive(),
            (Source::Process(_), Some(_)) | (Source::Attachment(_), None) => false,
        }
    }

    /// Returns what the process is called that carries a pod's virtual machine, where one runs by now. The container runtime
    /// names the network of such a pod as any other's, before anything of the pod runs. Only of pods with a runtime class,
    /// since it takes a look at every process.
    pub fn virtual_machine(&self, pod: &Workload) -> Option<String> {
        let found = if pod.has_runtime_class { self.find_process(pod) } else { return None };
        match found {
            Err(NotFound::Virtual { process }) => Some(process),
            Ok(_) | Err(_) => None,
        }
    }

    /// Returns the addresses that the container runtime gave a pod; empty where it did not say.
    pub fn addresses(&self, pod: &Workload) -> Vec<IpAddr> {
        self.attachments().of(pod).map(|attachment| attachment.addresses).unwrap_or_default()
    }

    /// Takes in what CNI ADD said. An earlier one of the same container is replaced; of several sandboxes of one pod the
    /// last counts.
    ///
    /// # Errors
    /// Where there are too many.
    pub fn attach(&self, attachment: Attachment) -> Result<(), TooMany> {
        let saved = {
            let mut attachments = self.attachments();
            attachments.add(attachment)?;
            attachments.save(&self.shared.config.saved)
        };
        warn_unsaved(saved);
        self.wake();
        Ok(())
    }

    /// Forgets a container's attachment: CNI DEL.
    pub fn detach(&self, container: &str, interface: &str) {
        self.change(|attachments| attachments.remove(container, interface));
    }

    /// Forgets every attachment that is not among these pairs of container and interface: CNI GC.
    pub fn retain(&self, valid: &[(String, String)]) {
        self.change(|attachments| attachments.retain(valid));
    }

    /// Returns which namespace the container runtime means; none where it cannot be seen from here, which [`Self::find`] says.
    pub fn inode(&self, attachment: &Attachment) -> Option<Inode> {
        Inode::at(&self.path_of(attachment)).ok()
    }

    /// Waits until a pod's sandbox may have come or gone.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// Has whoever waits for [`Self::changed`] look again, at processes as they are now.
    pub fn wake(&self) {
        *lock(&self.shared.survey) = None;
        self.shared.changed.notify_one();
    }

    /// Follows the kubelet's cgroups, for as long as the agent lives: a pod's is made some milliseconds before its sandbox
    /// runs, and long before the API server tells of an address.
    pub async fn follow_cgroups(self) {
        watch::follow(self).await;
    }

    fn cgroups(&self) -> &Path {
        &self.shared.config.cgroups
    }

    fn attachments(&self) -> MutexGuard<'_, Attachments> {
        lock(&self.shared.attachments)
    }

    fn change(&self, change: impl FnOnce(&mut Attachments) -> bool) {
        let mut attachments = self.attachments();
        if change(&mut attachments) {
            warn_unsaved(attachments.save(&self.shared.config.saved));
        }
    }

    fn open_attached(&self, attachment: &Attachment) -> Result<Sandbox, NotFound> {
        let path = self.path_of(attachment);
        let source = Source::Attachment(attachment.container.clone());
        let name = path.display().to_string();
        let opened = File::open(&path)
            .and_then(|netns| Sandbox::new(netns, name, attachment.addresses.clone(), source));
        opened.map_err(|source| NotFound::Attachment { path, source })
    }

    /// Returns where the agent sees the namespace that the runtime named. Runtimes without named namespaces say
    /// `/proc/PID/ns/net`, and mean the host's /proc.
    fn path_of(&self, attachment: &Attachment) -> PathBuf {
        match attachment.netns.strip_prefix("/proc") {
            Ok(rest) => self.shared.config.proc.join(rest),
            Err(_) => attachment.netns.clone(),
        }
    }

    fn find_process(&self, pod: &Workload) -> Result<Sandbox, NotFound> {
        let (proc, cgroups) = (&self.shared.config.proc, &self.shared.view);
        let mut survey = lock(&self.shared.survey);
        if survey.as_ref().is_none_or(|(taken, _)| taken.elapsed() >= FRESH) {
            let taken = Survey::take(proc, cgroups);
            let taken = taken.map_err(|source| NotFound::Proc { path: proc.clone(), source })?;
            *survey = Some((Instant::now(), taken));
        }
        let candidate = survey.as_ref().and_then(|(_, survey)| survey.sandbox(pod.uid_on_node()));
        let Some(candidate) = candidate else {
            return Err(NotFound::Nowhere { uid: pod.uid_on_node().to_string(), proc: proc.clone() });
        };
        if let Some(process) = candidate.virtual_machine() {
            return Err(NotFound::Virtual { process: process.to_owned() });
        }
        let (netns, process) =
            candidate.open(proc, cgroups).map_err(|source| NotFound::Ended { pid: candidate.pid, source })?;
        let ended = |source| NotFound::Ended { pid: candidate.pid, source };
        let name = format!("of process {}", candidate.pid);
        Sandbox::new(netns, name, Vec::new(), Source::Process(Arc::new(process))).map_err(ended)
    }
}

impl Sandbox {
    fn new(netns: File, name: String, addresses: Vec<IpAddr>, source: Source) -> io::Result<Self> {
        let inode = Inode::of(&netns)?;
        Ok(Self { netns: Arc::new(netns), name, inode, addresses, source })
    }

    /// Returns the open network namespace.
    ///
    /// # Errors
    /// Where there are no descriptors left.
    pub fn netns(&self) -> io::Result<File> {
        self.netns.try_clone()
    }

    /// Returns what it is called in the log.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns which namespace it is.
    pub fn inode(&self) -> Inode {
        self.inode
    }

    /// Returns the addresses that the container runtime gave it; empty where a process was found.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }
}

/// More attachments than there is room for.
#[derive(Debug, thiserror::Error)]
#[error(
    "the agent knows {0} attachments already, more than a node has pods: the container runtime has not sent DEL for those that ended; restart the agent after `cnitool gc` or a reboot"
)]
pub struct TooMany(usize);

fn warn_unsaved(saved: io::Result<()>) {
    if let Err(error) = saved {
        tracing::warn!(%error, "the pods that the container runtime told of could not be saved: after a restart they are found by their processes");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::mesh::{Identity, TrustDomain};

    #[test]
    fn a_namespace_that_the_runtime_names_by_a_process_is_sought_in_the_hosts_proc() {
        let directory = tempfile::tempdir().unwrap();
        // The host's process 4194305, which no process here can be: the kernel's limit of pids is lower.
        let process = directory.path().join("proc/4194305/ns");
        fs::create_dir_all(&process).unwrap();
        symlink("/proc/self/ns/net", process.join("net")).unwrap();
        let sandboxes = Sandboxes::new(Config {
            proc: directory.path().join("proc"),
            cgroups: directory.path().to_owned(),
            saved: directory.path().join("attachments.json"),
        });
        let attachment = Attachment {
            uid: "a-1".to_owned(),
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            container: "one".to_owned(),
            interface: "eth0".to_owned(),
            netns: "/proc/4194305/ns/net".into(),
            addresses: Vec::new(),
        };
        let own = Inode::at(Path::new("/proc/self/ns/net")).unwrap();
        assert_eq!(sandboxes.inode(&attachment), Some(own));

        sandboxes.attach(attachment).unwrap();
        let domain: TrustDomain = "cluster.local".parse().unwrap();
        let identity = Identity::new(domain, "shop", "web").unwrap();
        let unknown = Workload::unknown("shop".into(), Arc::default(), identity);
        let pod = Workload { uid: "a-1".into(), name: "web".into(), ..unknown };
        assert_eq!(sandboxes.find(&pod).unwrap().inode(), own);
    }
}
