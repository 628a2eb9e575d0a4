//! Native connections: the permits by which the kernel lets connections between two pods of the node go past the agent, those
//! connections themselves, and what the kernel tells of them at their ends.
//!
//! A permit counts while the agent that gave it says every other moment that it stands by it ([`Capture::keep_permits`]): those of
//! a killed one lapse within [`PULSE_LIFE`]. Its generation is of one permit of one agent and is never given again, and every native
//! socket carries the one that it was let through by: whoever ends a permit finds what came of it.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use agent_ebpf::{MAX_NATIVE, NativeEnd, NativeKey, NativePermit, Pulse, Socket, from_bytes, kind, maps};
use aya::maps::{Array, HashMap as BpfHashMap, MapData, MapError};

use super::{
    Capture, Error, NetNs, PodCapture, Shared,
    error::absent_is_fine,
    ring::Ring,
    segment,
    sock_diag::{self, SockDiag, SocketId, states},
    sys,
};

/// For how long permits count after the agent was last heard.
const PULSE_LIFE: Duration = Duration::from_secs(3);
/// How often it says that it is there.
const PULSE_PAUSE: Duration = Duration::from_millis(500);

/// How long ends of connections are collected: to be woken for each would cost as much as the connection itself.
const TOGETHER: Duration = Duration::from_millis(50);

/// All in which bytes may still come and go.
const ALIVE: u32 = states::ESTABLISHED
    | states::SYN_SENT
    | states::SYN_RECV
    | states::FIN_WAIT
    | states::CLOSE_WAIT
    | states::LAST_ACK
    | states::CLOSING;

/// The maps of permits.
pub(super) struct Permits {
    map: BpfHashMap<MapData, NativeKey, NativePermit>,
    pulse: Array<MapData, Pulse>,
}

/// The numbers of this agent's permits.
#[derive(Debug)]
pub(super) struct Generations {
    epoch: u32,
    next: AtomicU32,
}

/// A socket of a native connection, at either end.
#[derive(Clone, Copy, Debug)]
pub struct NativeSocket {
    /// Whether it is the one that connected.
    pub is_source: bool,
    /// By which permit it was let through.
    pub generation: u64,
    /// The socket's cookie.
    pub cookie: u64,
    id: SocketId,
}

/// A native connection that has ended.
#[derive(Clone, Copy, Debug)]
pub struct NativeEnded {
    /// The permit's generation.
    pub generation: u64,
    /// The cookies of the two pods' network namespaces, the source's first.
    pub netns: [u64; 2],
    /// The cookie of the socket that connected.
    pub cookie: u64,
    /// The client.
    pub source: SocketAddr,
    /// The destination pod's end.
    pub destination: SocketAddr,
    /// Bytes from source to destination.
    pub sent: u64,
    /// Bytes from destination to source.
    pub received: u64,
    /// From `connect` on.
    pub duration: Duration,
}

/// The ends of native connections, one after another. What comes faster than it is read is lost, and counted
/// ([`Stats`](super::Stats)).
pub struct NativeEnds(Ring<NativeEnd>);

impl Permits {
    /// Takes the maps over and empties them: what an earlier agent permitted counts no more.
    pub(super) fn clear(
        map: BpfHashMap<MapData, NativeKey, NativePermit>,
        pulse: Array<MapData, Pulse>,
    ) -> Result<Self, Error> {
        let mut permits = Self { map, pulse };
        permits.beat(&Pulse::default())?;
        let old: Vec<_> = permits.map.keys().collect::<Result<_, _>>().map_err(failed)?;
        for key in old {
            absent_is_fine(permits.map.remove(&key)).map_err(failed)?;
        }
        Ok(permits)
    }

    /// Ends the path at once.
    pub(super) fn stop(&mut self) -> Result<(), Error> {
        self.beat(&Pulse::default())
    }

    fn beat(&mut self, pulse: &Pulse) -> Result<(), Error> {
        self.pulse.set(0, pulse, 0).map_err(Error::map(maps::PULSE))
    }

    fn withdraw(&mut self, key: &NativeKey, generation: u64) -> Result<(), Error> {
        match self.map.get(key, 0) {
            Ok(known) if known.generation == generation => {
                absent_is_fine(self.map.remove(key)).map_err(failed)
            }
            Ok(_) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Takes back all from and to a pod.
    pub(super) fn forget(&mut self, netns: u64) -> Result<(), Error> {
        let theirs = |(key, permit): &(NativeKey, NativePermit)| key.netns == netns || permit.netns == netns;
        let old: Vec<_> = self.map.iter().flatten().filter(theirs).collect();
        old.iter().try_for_each(|(key, _)| absent_is_fine(self.map.remove(key)).map_err(failed))
    }

    /// Returns how many there are.
    pub(super) fn len(&self) -> usize {
        self.map.keys().filter(Result::is_ok).count()
    }
}

impl Generations {
    pub(super) fn new() -> Self {
        Self { epoch: rand::random_range(1..=u32::MAX), next: AtomicU32::new(1) }
    }

    fn next(&self) -> Option<u64> {
        let number =
            self.next.try_update(Ordering::Relaxed, Ordering::Relaxed, |next| next.checked_add(1)).ok()?;
        Some(u64::from(self.epoch) << 32 | u64::from(number))
    }

    /// Returns whether a permit is one of this agent's.
    fn is_own(&self, generation: u64) -> bool {
        generation >> 32 == u64::from(self.epoch)
    }
}

/// Checks that the kernel can do what native connections need.
///
/// # Errors
/// Where it cannot end a connection, or not tell MPTCP, of which it could end only one path.
pub fn check_native() -> Result<(), Error> {
    let ended = SockDiag::open().and_then(|diag| diag.destroy(&SocketId::nobody()));
    if ended.is_err_and(|error| error.raw_os_error() == Some(libc::EOPNOTSUPP)) {
        return Err(Error::NoNative(
            "the kernel was built without CONFIG_INET_DIAG_DESTROY, and cannot end a connection that policy no longer permits",
        ));
    }
    if !super::programs::tells_mptcp() {
        return Err(Error::NoNative("the kernel is older than 5.19, and its programs cannot tell MPTCP"));
    }
    Ok(())
}

impl Capture {
    /// Stands by the permits of this agent, for as long as it is polled and the node is this agent's.
    pub async fn keep_permits(self: Arc<Self>) {
        loop {
            if let Err(error) = self.beat() {
                tracing::error!(%error, "the kernel was not told that the agent is there: connections between two pods of the node go through it");
            }
            if self.is_handed_over() {
                return;
            }
            tokio::time::sleep(PULSE_PAUSE).await;
        }
    }

    fn beat(&self) -> Result<(), Error> {
        let mut permits = self.tables.permits();
        if self.is_handed_over() {
            return Ok(());
        }
        let now = sys::monotonic().map_err(|error| Error::map(maps::PULSE)(MapError::IoError(error)))?;
        let until = now.saturating_add(PULSE_LIFE.as_nanos() as u64);
        permits.beat(&Pulse { until, epoch: self.generations.epoch.into() })
    }

    /// Returns the ends of native connections. There is one reader: it can be had once.
    ///
    /// # Errors
    /// Where it has been had already, or there is no runtime to wait on.
    pub fn native_ends(&self) -> io::Result<NativeEnds> {
        let taken = || io::Error::other("the ends of native connections have a reader already");
        let ring = self.tables.take_native_ends().ok_or_else(taken)?;
        Ring::new(ring.map_err(io::Error::other)?).map(NativeEnds)
    }
}

impl PodCapture {
    /// Lets the pod connect from `source`, an address of its own, to `target`, one of `to`'s own, without the agent, from now on;
    /// returns the permit's generation. To be called again where either pod's interfaces may have changed.
    ///
    /// # Errors
    /// Where one of the two is on a segment that others share, or the pod would not connect from that address; where there are
    /// too many permits, the node was handed over, or the kernel refuses.
    pub fn permit(&self, to: &Self, source: IpAddr, target: SocketAddr) -> Result<u64, Error> {
        self.check_segment(source)?;
        to.check_segment(target.ip())?;
        let from = picked_source(self.netns(), target).map_err(Error::netns(self.netns()))?;
        if from != source.to_canonical() {
            return Err(Error::refused(
                self.netns(),
                format!("it reaches {target} from {from} and not from {source}"),
            ));
        }
        let capture = self.capture();
        let full = || Error::NoNative("all numbers of permits have been given: restart the agent");
        let generation = capture.generations.next().ok_or_else(full)?;
        let mut permits = capture.tables.permits();
        if capture.is_handed_over() {
            return Err(Error::Orphaned);
        }
        let permit = NativePermit { netns: to.netns().cookie(), generation, source: source.into() };
        permits.map.insert(key(self.netns(), target), permit, 0).map_err(failed)?;
        Ok(generation)
    }

    /// Takes a permit back: what connects from now on goes through the agent, and handshakes under way are refused. Those of a
    /// node that has been handed over are the successor's, who has taken them back.
    ///
    /// # Errors
    /// Where the kernel refuses; the permit then lapses with the agent.
    pub fn withdraw(&self, target: SocketAddr, generation: u64) -> Result<(), Error> {
        let capture = self.capture();
        let mut permits = capture.tables.permits();
        if capture.is_handed_over() {
            return Ok(());
        }
        permits.withdraw(&key(self.netns(), target), generation)
    }

    /// Checks that the pod's interface with one of its addresses leads to the node and to nobody else.
    ///
    /// # Errors
    /// Where it does not, or the kernel does not tell.
    pub fn check_segment(&self, address: IpAddr) -> Result<(), Shared> {
        segment::check(self.netns(), &self.capture().host, address)
    }

    /// Returns the pod's sockets of native connections. Takes some microseconds for each socket of the pod, on the thread that
    /// calls.
    ///
    /// # Errors
    /// Where the kernel refuses to tell.
    pub fn native_sockets(&self) -> io::Result<Vec<NativeSocket>> {
        let diag = self.netns().run(SockDiag::open)??;
        let sockets = sys::open_pin(&self.capture().pins.map(maps::SOCKETS))?;
        let mut found = Vec::new();
        diag.list(ALIVE, sockets.as_fd(), |listed| {
            let Some(known) = listed.storage().and_then(from_bytes::<Socket>) else { return Ok(()) };
            if is_native(&known, listed.id.remote()) {
                let is_source = known.kind == kind::NATIVE;
                let (generation, cookie) = (known.generation, listed.id.cookie());
                found.push(NativeSocket { is_source, generation, cookie, id: listed.id });
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Ends one: its application gets ECONNABORTED, and the peer a reset. That it has ended already is no error.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn destroy_native(&self, socket: &NativeSocket) -> io::Result<()> {
        sock_diag::end(self.netns(), &socket.id)
    }

    /// Returns whether a permit is one that this agent gave.
    pub fn is_own_permit(&self, generation: u64) -> bool {
        self.capture().generations.is_own(generation)
    }
}

impl NativeEnds {
    /// Waits for the next one, and for those that follow it closely. Cancel safe: one is taken only where it is returned.
    pub async fn next(&mut self) -> NativeEnded {
        loop {
            if let Some(end) = self.0.take() {
                return NativeEnded::from(end);
            }
            self.0.more().await;
            // The kernel wakes a reader only where it has read all that there was before (kernel/bpf/ringbuf.c).
            tokio::time::sleep(TOGETHER).await;
        }
    }
}

impl From<NativeEnd> for NativeEnded {
    fn from(end: NativeEnd) -> Self {
        let NativeEnd { tuple, netns, generation, owner, sent, received, nanoseconds } = end;
        Self {
            generation,
            netns: [tuple.netns, netns],
            cookie: owner,
            source: SocketAddr::new(tuple.local.into(), tuple.local_port),
            destination: SocketAddr::new(tuple.remote.into(), tuple.remote_port),
            sent,
            received,
            duration: Duration::from_nanos(nanoseconds),
        }
    }
}

/// Returns whether what is known of a socket is true of the connection that it has now, and says that it is a native one. What
/// a listener accepts may have inherited what was known of the listener.
pub(super) fn is_native(known: &Socket, remote: SocketAddr) -> bool {
    matches!(known.kind, kind::NATIVE | kind::NATIVE_SERVER)
        && known.peer == remote.ip().into()
        && known.peer_port == u32::from(remote.port())
}

/// Returns the address that a socket of the namespace connects from where it is not bound. Nothing is sent.
fn picked_source(netns: &NetNs, target: SocketAddr) -> io::Result<IpAddr> {
    netns.run(|| {
        let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(target)?;
        Ok(socket.local_addr()?.ip().to_canonical())
    })?
}

fn key(netns: &NetNs, target: SocketAddr) -> NativeKey {
    NativeKey { netns: netns.cookie(), address: target.ip().into(), port: target.port().into(), pad: 0 }
}

fn failed(error: MapError) -> Error {
    Error::map(maps::NATIVE)(error)
}

/// How many permits there can be on a node.
pub const MAX_PERMITS: usize = MAX_NATIVE as usize;
