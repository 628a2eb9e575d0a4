//! A named network namespace: made, entered, and let go. Named as `ip netns` names them, so that a curious user can
//! enter it with `ip netns exec` or `nsenter --net=`.

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

use crate::{interrupt, wait::try_eventually};

/// Where `ip netns` keeps the namespaces that have a name.
pub(crate) const DIRECTORY: &str = "/run/netns";

/// How long [`NetNs::connect`] waits: as long as a test is patient.
const CONNECT: Duration = crate::PATIENCE;

/// A network namespace. Cheap to clone; the descriptor keeps it alive, [`NetNs::remove`] takes its name away.
#[derive(Clone, Debug)]
pub struct NetNs {
    path: PathBuf,
    file: Arc<File>,
}

impl NetNs {
    /// Makes a namespace with a name under `/run/netns`, and runs `setup` inside it (for sysctls).
    pub(crate) fn create(name: &str, setup: impl FnOnce() -> Result<()> + Send) -> Result<Self> {
        interrupt::refuse_while_closing()?;
        prepare_directory().with_context(|| format!("making {DIRECTORY}"))?;
        let path = Path::new(DIRECTORY).join(name);
        File::create_new(&path).with_context(|| format!("making {}", path.display()))?;
        thread::scope(|scope| {
            let made = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET).context("unshare of the network namespace")?;
                let here = Some("/proc/thread-self/ns/net");
                mount(here, &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                    .with_context(|| format!("giving a namespace the name {}", path.display()))?;
                setup()
            });
            made.join().unwrap_or_else(|panic| resume_unwind(panic))
        })?;
        let file = Arc::new(File::open(&path).with_context(|| format!("opening {}", path.display()))?);
        Ok(Self { path, file })
    }

    /// A namespace that has a name already, by its path under `/run/netns`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening the namespace {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file: Arc::new(file) })
    }

    /// The file on which the namespace is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name under `/run/netns`.
    pub fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Runs `f` on a fresh thread inside the namespace and returns what it returns. A socket belongs to the namespace
    /// of the thread that made it, wherever it is used later.
    ///
    /// # Panics
    /// Where `f` does, and where the namespace cannot be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter().unwrap_or_else(|error| panic!("cannot enter {}: {error}", self.path.display()));
                f()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// A command that enters the namespace (only the network namespace) before it starts `program`.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let file = Arc::clone(&self.file);
        #[expect(unsafe_code, reason = "there is no safe way to enter a namespace between fork and exec")]
        // SAFETY: between fork and exec only async-signal-safe calls are allowed; setns is a bare system call.
        unsafe {
            command.pre_exec(move || Ok(setns(&*file, CloneFlags::CLONE_NEWNET)?));
        }
        command
    }

    /// A listener inside the namespace on `port` (0: any) of every address, IPv4 and IPv6.
    pub fn listen(&self, port: u16) -> io::Result<TcpListener> {
        self.listen_at((Ipv6Addr::UNSPECIFIED, port).into())
            .or_else(|_| self.listen_at((Ipv4Addr::UNSPECIFIED, port).into()))
    }

    /// A listener inside the namespace on one address.
    pub fn listen_at(&self, address: SocketAddr) -> io::Result<TcpListener> {
        self.run(|| TcpListener::bind(address))
    }

    /// Connects from inside the namespace, with a deadline.
    pub fn connect(&self, target: SocketAddr) -> io::Result<TcpStream> {
        self.run(|| TcpStream::connect_timeout(&target, CONNECT))
    }

    /// Waits until packets come and go between here and `address`: a link that was just set up drops them until the
    /// kernel has handled "carrier is up", which it does in a work queue of its own.
    pub(crate) fn wait_for_path(&self, address: IpAddr) -> Result<()> {
        // Discard (RFC 863): nobody listens there, and that is an answer too.
        let target = SocketAddr::new(address, 9);
        let connect = || match TcpStream::connect_timeout(&target, Duration::from_millis(20)) {
            Err(error) if error.kind() != io::ErrorKind::ConnectionRefused => Err(error),
            _ => Ok(()),
        };
        self.run(|| try_eventually(crate::PATIENCE, connect))
            .with_context(|| format!("{} does not reach {address}", self.name()))
    }

    /// Whether an interface of the namespace holds `address`.
    pub fn holds(&self, address: IpAddr) -> bool {
        self.run(|| std::net::UdpSocket::bind((address, 0)).is_ok())
    }

    /// Takes the name away. The namespace itself ends with the last process, socket or descriptor in it.
    pub fn remove(&self) -> Result<()> {
        remove(&self.path)
    }

    fn enter(&self) -> nix::Result<()> {
        setns(&*self.file, CloneFlags::CLONE_NEWNET)
    }
}

/// Takes a namespace's name away; one that is gone already is no error.
pub(crate) fn remove(path: &Path) -> Result<()> {
    // EINVAL: a file that nothing is mounted on, left by a process that was killed in between.
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(error) => return Err(error).with_context(|| format!("unmounting {}", path.display())),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Writes a sysctl of the namespace of the calling thread; `key` with slashes.
pub(crate) fn sysctl(key: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net").join(key);
    fs::write(&path, value).with_context(|| format!("writing {value} to {}", path.display()))
}

/// Makes the directory what `ip netns add` makes of it: a mount of its own, shared with other mount namespaces. Where it
/// is none yet, the first `ip netns add` of a test would put a second mount over each name that is there, which could not
/// be removed any more.
fn prepare_directory() -> io::Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    fs::create_dir_all(DIRECTORY)?;
    let shared = MsFlags::MS_SHARED | MsFlags::MS_REC;
    let share = || mount(None::<&str>, DIRECTORY, None::<&str>, shared, None::<&str>);
    if share().is_err() {
        let whole = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(DIRECTORY), DIRECTORY, None::<&str>, whole, None::<&str>)?;
        share()?;
    }
    Ok(())
}
