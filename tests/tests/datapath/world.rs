//! One pod, the world outside, and an agent that captures.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use culvert::{
    capture::{Capture, Config, PodCapture, Stats, end_cleanly},
    mesh::{Destination, Plaintext},
};
use nix::mount::{MsFlags, mount};

use crate::net::Net;

pub(crate) const BPFFS: &str = "/sys/fs/bpf";
pub(crate) const POD4: &str = "10.77.0.2";
pub(crate) const POD6: &str = "fd77::2";
pub(crate) const OUT4: &str = "10.77.0.1";
pub(crate) const OUT6: &str = "fd77::1";
/// Addresses in the mesh that only the agent can reach.
pub(crate) const MESH4: &str = "10.99.0.1:8080";
pub(crate) const MESH6: &str = "[fd99::1]:8080";

/// A pod and what is outside it.
pub(crate) struct World {
    pub(crate) pod: Net,
    pub(crate) out: Net,
    pub(crate) node: String,
    /// What is outside the pod is the node itself: the agent runs there.
    out_is_node: bool,
    capture: Option<Arc<Capture>>,
}

impl World {
    /// Makes the namespaces, loads the programs, and captures [`MESH4`] and [`MESH6`].
    pub(crate) fn new() -> Self {
        Self::make(false)
    }

    /// Makes a world in which the agent runs in the namespace outside the pod.
    pub(crate) fn with_agent_outside() -> Self {
        Self::make(true)
    }

    fn make(out_is_node: bool) -> Self {
        mount_cgroup2();
        let (pod, out) = (Net::new(), Net::new());
        pod.join(&out, &[ip(POD4), ip(POD6)], &[ip(OUT4), ip(OUT6)]);
        pod.default_route(ip(OUT4));
        pod.default_route(ip(OUT6));
        // What should have been captured and was not must fail in seconds, not after two minutes.
        pod.run(|| fs::write("/proc/sys/net/ipv4/tcp_syn_retries", "3")).expect("setting tcp_syn_retries");
        wait_for_path(&out, &[POD4, POD6]);
        wait_for_path(&pod, &[OUT4, OUT6]);
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let node = format!("dp-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut world = Self { pod, out, node, out_is_node, capture: None };
        world.start();
        world.capture_all(&[MESH4, MESH6]);
        world
    }

    /// Starts the agent.
    pub(crate) fn start(&mut self) {
        self.start_with(&self.config());
    }

    /// Starts the agent with another configuration than the usual.
    pub(crate) fn start_with(&mut self, config: &Config) {
        let load = || Capture::load(config).expect("this suite needs root: loading the programs");
        let capture = if self.out_is_node { self.out.run(load) } else { load() };
        self.capture = Some(Arc::new(capture));
    }

    /// Ends the agent as a crash does: nothing in the kernel is taken away.
    pub(crate) fn crash(&mut self) {
        let capture = self.capture.take().expect("the agent runs");
        assert_eq!(Arc::strong_count(&capture), 1, "a pod still uses the agent");
    }

    pub(crate) fn config(&self) -> Config {
        Config { node: self.node.clone(), bpffs: BPFFS.into(), pod_ranges: Vec::new() }
    }

    /// Returns where something of the node is pinned.
    pub(crate) fn pin(&self, name: &str) -> PathBuf {
        let layout = format!("layout-{}", agent_ebpf::LAYOUT);
        Path::new(BPFFS).join("culvert").join(&self.node).join(layout).join(name)
    }

    pub(crate) fn capture(&self) -> &Arc<Capture> {
        self.capture.as_ref().expect("the agent runs")
    }

    pub(crate) fn stats(&self) -> Stats {
        self.capture().stats().expect("reading the counters")
    }

    /// Enrolls the pod; nobody looks at its plaintext.
    pub(crate) fn enroll(&self) -> PodCapture {
        self.enroll_with(&Plaintext::pass())
    }

    /// Enrolls the pod with rules for plaintext.
    pub(crate) fn enroll_with(&self, plaintext: &Plaintext) -> PodCapture {
        self.capture().enroll(self.pod.open(), &[ip(POD4), ip(POD6)], plaintext).expect("enrolling the pod")
    }

    /// Enrolls the pod and serves it.
    pub(crate) fn serve(&self) -> Agent {
        Agent::start(self.enroll())
    }

    /// Captures exactly these destinations.
    pub(crate) fn capture_all(&self, destinations: &[&str]) {
        let want = destinations.iter().map(|to| (addr(to).ip(), Destination::Capture)).collect();
        self.set_destinations(&want);
    }

    pub(crate) fn set_destinations(&self, want: &HashMap<IpAddr, Destination>) {
        self.capture().set_destinations(want).expect("setting destinations");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.capture = None;
        if let Err(error) = Capture::cleanup(Some(&self.node), Path::new(BPFFS)) {
            eprintln!("cleaning up after {}: {error}", self.node);
        }
    }
}

/// Answers captured connections: first a line with the original destination, then an echo.
pub(crate) struct Agent {
    pub(crate) pod: Arc<PodCapture>,
    refused: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Agent {
    fn start(pod: PodCapture) -> Self {
        let pod = Arc::new(pod);
        let stop = Arc::new(AtomicBool::new(false));
        let refused = Arc::new(AtomicBool::new(false));
        let listeners = pod.outbound_listeners().expect("outbound listeners");
        let threads = listeners.into_iter().map(|listener| {
            let (pod, stop, refused) = (Arc::clone(&pod), Arc::clone(&stop), Arc::clone(&refused));
            thread::spawn(move || accept_all(&listener, &pod, &stop, &refused))
        });
        let threads = threads.collect();
        Self { pod, refused, stop, threads }
    }

    /// Stops serving and returns the pod, still enrolled.
    pub(crate) fn stop(mut self) -> PodCapture {
        self.join();
        let pod = Arc::clone(&self.pod);
        drop(self);
        Arc::into_inner(pod).expect("nobody else has the pod")
    }

    /// Returns whether a connection without an original destination was accepted so far.
    pub(crate) fn refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    fn join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("the agent's thread");
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.join();
    }
}

fn accept_all(listener: &TcpListener, pod: &PodCapture, stop: &AtomicBool, refused: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => match pod.orig_dst(&stream) {
                Ok(to) => {
                    stream.set_nonblocking(false).expect("a blocking socket");
                    thread::spawn(move || answer(stream, &to.to_string()));
                }
                Err(_) => refused.store(true, Ordering::Relaxed),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("accept: {error}"),
        }
    }
}

fn answer(mut stream: TcpStream, to: &str) {
    // A client that has gone is the test's business.
    let echo = writeln!(stream, "{to}").and_then(|()| io::copy(&mut stream.try_clone()?, &mut stream));
    if echo.is_ok() {
        end_cleanly(&stream).expect("an orderly end");
    }
}

/// Reads the line that [`Agent`] begins with.
pub(crate) fn line(mut stream: impl io::Read) -> String {
    let mut line = String::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte).unwrap_or_else(|error| panic!("reading a line after {line:?}: {error}"));
        if byte == *b"\n" {
            return line;
        }
        line.push(byte[0].into());
    }
}

/// Checks that what is written comes back.
pub(crate) fn echo(stream: &mut TcpStream) {
    stream.write_all(b"marker").expect("writing");
    let mut back = [0; 6];
    stream.read_exact(&mut back).expect("reading what was written");
    assert_eq!(&back, b"marker");
}

/// Waits for a condition; generous, because the suite runs in an emulator too.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "still not after a minute: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until nobody's port says so: a new link may lose its first packets, and not every test sends them again.
fn wait_for_path(from: &Net, to: &[&str]) {
    for address in to {
        let nobody = SocketAddr::new(ip(address), 9);
        eventually("the link carries packets", || {
            let refused = from.run(|| TcpStream::connect_timeout(&nobody, Duration::from_secs(5)));
            refused.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        });
    }
}

/// Returns whether this is the initramfs of a virtual machine, where everything may take fifty times as long.
pub(crate) fn emulated() -> bool {
    Path::new("/init").exists()
}

/// Listens with a socket of the suite's own making; `accept` fails where nobody comes.
pub(crate) fn listen(at: &str) -> TcpListener {
    let listener = TcpListener::bind(addr(at)).unwrap_or_else(|error| panic!("listening at {at}: {error}"));
    blocking(&listener);
    listener
}

/// Makes `accept` wait, and fail after a minute: generous, as [`eventually`] is.
pub(crate) fn blocking(listener: &TcpListener) {
    listener.set_nonblocking(false).expect("a blocking listener");
    let minute = nix::sys::time::TimeVal::new(60, 0);
    nix::sys::socket::setsockopt(listener, nix::sys::socket::sockopt::ReceiveTimeout, &minute)
        .expect("SO_RCVTIMEO");
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an IP address")
}

pub(crate) fn addr(text: &str) -> SocketAddr {
    text.parse().expect("a socket address")
}

/// A minimal system, such as the VM's, may not have mounted it.
fn mount_cgroup2() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
        if !mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup2")) {
            mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), None::<&str>)
                .expect("this suite needs root: mounting cgroup2");
        }
    });
}
