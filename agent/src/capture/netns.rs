//! Network namespaces: opening one, telling two apart, and running a closure inside.

use std::{
    cell::OnceCell,
    fmt,
    fs::File,
    io,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    process,
    sync::Arc,
};

use nix::{
    ifaddrs::getifaddrs,
    sched::{CloneFlags, setns},
    sys::socket::SockaddrStorage,
};

use super::{Error, sys};
use crate::{mesh::NetnsRef, sandbox::Inode};

/// A network namespace. Holding it keeps the namespace alive. Cheap to clone.
#[derive(Clone)]
pub struct NetNs {
    shared: Arc<Shared>,
}

struct Shared {
    file: File,
    cookie: u64,
    inode: Inode,
    name: String,
}

impl NetNs {
    /// Opens a namespace by a file that it is mounted on, or by a process in it.
    ///
    /// A process may unshare a namespace of its own; that the namespace is the pod's is checked by its addresses
    /// ([`super::Capture::enroll`]).
    ///
    /// # Errors
    /// Where there is no such file or process, or the file is no network namespace.
    pub fn open(at: &NetnsRef) -> Result<Self, Error> {
        let opened = match at {
            NetnsRef::Path(path) => File::open(path),
            NetnsRef::Pid(pid) => open_process(*pid),
        };
        opened
            .and_then(|file| Self::new(file, at.to_string()))
            .map_err(|source| Error::Netns { netns: at.to_string(), source })
    }

    /// Takes an open namespace, which the log calls `name`.
    ///
    /// # Errors
    /// Where the file is no network namespace.
    pub fn from_file(file: File, name: &str) -> Result<Self, Error> {
        let opened = Self::new(file, name.to_owned());
        opened.map_err(|source| Error::Netns { netns: name.to_owned(), source })
    }

    /// Opens the namespace of the calling thread.
    pub(super) fn current() -> Result<Self, Error> {
        let path = Path::new(HERE);
        File::open(path)
            .and_then(|file| Self::new(file, "the agent's own".to_owned()))
            .map_err(|source| Error::Netns { netns: path.display().to_string(), source })
    }

    fn new(file: File, name: String) -> io::Result<Self> {
        // ENOTTY is what a file that is no namespace at all gives.
        if !sys::namespace_type(file.as_fd()).is_ok_and(|kind| kind == libc::CLONE_NEWNET) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a network namespace"));
        }
        let cookie = run_in(&file, sys::netns_cookie)??;
        let inode = Inode::of(&file)?;
        Ok(Self { shared: Arc::new(Shared { file, cookie, inode, name }) })
    }

    /// Returns the namespace's cookie (`SO_NETNS_COOKIE`): unique since boot, never reused.
    pub fn cookie(&self) -> u64 {
        self.shared.cookie
    }

    /// Returns what the namespace is known by in the file system.
    pub fn inode(&self) -> Inode {
        self.shared.inode
    }

    /// Runs a closure on this thread inside the namespace. Sockets that it makes belong there for life.
    ///
    /// Takes about a microsecond. The closure must not wait, and must not spawn threads: they would stay inside.
    ///
    /// # Errors
    /// Where the namespace cannot be entered; the closure has not run then. If there is no way back the process ends,
    /// because everything that this thread does next would happen in the pod.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        run_in(&self.shared.file, f)
    }

    /// Sets the loopback interface inside up, on which the listeners are. A container runtime does so itself, and may come
    /// to it only while the CNI plugins run (containerd adds a pod to its networks at the same time).
    ///
    /// # Errors
    /// Where the namespace cannot be entered, or the kernel refuses.
    pub fn raise_loopback(&self) -> io::Result<()> {
        self.run(sys::raise_loopback)?
    }

    /// Returns the addresses of all links inside, canonical.
    ///
    /// # Errors
    /// Where the namespace cannot be entered or netlink refuses.
    pub fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        let links = self.run(getifaddrs)??;
        Ok(links.filter_map(|link| link.address.as_ref().and_then(ip)).collect())
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.file.as_fd()
    }
}

impl fmt::Debug for NetNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetNs").field("name", &self.shared.name).field("cookie", &self.shared.cookie).finish()
    }
}

impl fmt::Display for NetNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shared.name)
    }
}

/// Opens a process's namespace, and makes sure that the process was still that one when it was opened.
fn open_process(pid: u32) -> io::Result<File> {
    let pidfd = sys::pidfd_open(pid)?;
    let file = File::open(PathBuf::from(format!("/proc/{pid}/ns/net")))?;
    // As long as the process has not been reaped nobody else can have had the pid.
    sys::pidfd_exists(pidfd.as_fd())?;
    Ok(file)
}

/// Has the calling thread remember where it belongs: it then enters namespaces without a look into /proc, which costs more
/// than the way there and back. For a thread that does so for each connection; it costs a descriptor.
///
/// # Errors
/// Where /proc does not tell. The thread then looks each time.
pub fn remember_home() -> io::Result<()> {
    let home = File::open(HERE)?;
    // A thread has one home: what it remembers already is the same.
    HOME.with(|known| drop(known.set(home)));
    Ok(())
}

thread_local! {
    static HOME: OnceCell<File> = const { OnceCell::new() };
}

/// The namespace of the calling thread.
const HERE: &str = "/proc/thread-self/ns/net";

fn run_in<T>(target: &File, f: impl FnOnce() -> T) -> io::Result<T> {
    HOME.with(|home| match home.get() {
        Some(home) => visit(target, home, f),
        None => visit(target, &File::open(HERE)?, f),
    })
}

fn visit<T>(target: &File, home: &File, f: impl FnOnce() -> T) -> io::Result<T> {
    let _back = Back(home);
    setns(target, CloneFlags::CLONE_NEWNET)?;
    Ok(f())
}

/// Brings the thread back home, also when the closure panics.
struct Back<'a>(&'a File);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        if let Err(error) = setns(self.0, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%error, "cannot leave a pod's network namespace; ending rather than act inside a pod");
            process::abort();
        }
    }
}

/// Returns an interface's address, canonical.
pub(super) fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(IpAddr::V4(v4.ip()));
    }
    address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()).to_canonical())
}
