//! The maps, typed. Only the agent that holds the node's lock writes them.

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd as _},
    sync::{Mutex, MutexGuard, PoisonError},
};

use agent_ebpf::{
    Address, Handshake, MAX_DESTINATIONS, MAX_PODS, MAX_RANGES, Name, Pod, Socket, Tuple, action, listener,
    maps,
};
use aya::{
    Ebpf,
    maps::{
        Array, HashMap as BpfHashMap, HashOfMaps, LpmTrie, Map, MapData, MapError, PerCpuArray, RingBuf,
        SkStorage, SockMap, lpm_trie::Key,
    },
};
use ipnet::IpNet;

use super::{Error, error::absent_is_fine, native::Permits, node::Node, plaintext::Ports};
use crate::mesh::{Destination, Plaintext};

/// A pod's own map of handshakes.
pub(super) type Handshakes = BpfHashMap<MapData, Tuple, Handshake>;

/// The node's maps.
pub(super) struct Tables {
    pods: Mutex<BpfHashMap<MapData, u64, u32>>,
    table: Mutex<Array<MapData, Pod>>,
    destinations: Mutex<Destinations>,
    ranges: Mutex<LpmTrie<MapData, Address, u32>>,
    handshakes: Mutex<HashOfMaps<MapData, u64, Handshakes>>,
    names: Mutex<BpfHashMap<MapData, Tuple, Name>>,
    sockets: Mutex<SkStorage<MapData, Socket>>,
    listeners: Mutex<SockMap<MapData>>,
    plaintext: Mutex<Ports>,
    node: Mutex<Node>,
    refusals: Mutex<Option<RingBuf<MapData>>>,
    permits: Mutex<Permits>,
    /// Not mapped before somebody reads it: it would count as half a megabyte of the agent.
    native_ends: Mutex<Option<Map>>,
    counters: PerCpuArray<MapData, u64>,
}

/// The destinations with a copy of what the kernel has, so that a change costs as much as it changes.
struct Destinations {
    map: BpfHashMap<MapData, Address, u32>,
    have: HashMap<Address, u32>,
}

impl Tables {
    /// Takes the maps out of a loaded object.
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let map: BpfHashMap<_, Address, u32> = take(ebpf, maps::DESTINATIONS)?;
        let have = map.iter().collect::<Result<_, _>>().map_err(Error::map(maps::DESTINATIONS))?;
        Ok(Self {
            pods: Mutex::new(take(ebpf, maps::PODS)?),
            table: Mutex::new(take(ebpf, maps::TABLE)?),
            destinations: Mutex::new(Destinations { map, have }),
            ranges: Mutex::new(take(ebpf, maps::RANGES)?),
            handshakes: Mutex::new(take(ebpf, maps::HANDSHAKES)?),
            names: Mutex::new(take(ebpf, maps::NAMES)?),
            sockets: Mutex::new(take(ebpf, maps::SOCKETS)?),
            listeners: Mutex::new(take(ebpf, maps::LISTENERS)?),
            plaintext: Mutex::new(Ports::adopt(take(ebpf, maps::PLAINTEXT)?)?),
            node: Mutex::new(Node::adopt(
                take(ebpf, maps::LOCAL)?,
                take(ebpf, maps::KUBEPODS)?,
                take(ebpf, maps::NODE)?,
            )?),
            refusals: Mutex::new(Some(take(ebpf, maps::REFUSALS)?)),
            permits: Mutex::new(Permits::clear(take(ebpf, maps::NATIVE)?, take(ebpf, maps::PULSE)?)?),
            native_ends: Mutex::new(ebpf.take_map(maps::NATIVE_ENDS)),
            counters: take(ebpf, maps::COUNTERS)?,
        })
    }

    /// Makes the kernel's destinations what is wanted.
    pub(super) fn set_destinations(&self, want: &HashMap<IpAddr, Destination>) -> Result<(), Error> {
        let failed = Error::map(maps::DESTINATIONS);
        if want.len() > MAX_DESTINATIONS as usize {
            return Err(failed(MapError::OutOfBounds {
                index: u32::try_from(want.len()).unwrap_or(u32::MAX),
                max_entries: MAX_DESTINATIONS,
            }));
        }
        let want: HashMap<Address, u32> =
            want.iter().map(|(address, to)| (Address::from(*address), code(*to))).collect();
        lock(&self.destinations).change_to(&want).map_err(failed)
    }

    /// Returns how many destinations there are.
    pub(super) fn destinations(&self) -> usize {
        lock(&self.destinations).have.len()
    }

    /// Makes the kernel's pod ranges what is configured.
    pub(super) fn set_ranges(&self, want: &[IpNet]) -> Result<(), Error> {
        let failed = |error| Error::map(maps::RANGES)(error);
        if want.len() > MAX_RANGES as usize {
            return Err(failed(MapError::OutOfBounds {
                index: u32::try_from(want.len()).unwrap_or(u32::MAX),
                max_entries: MAX_RANGES,
            }));
        }
        let mut ranges = lock(&self.ranges);
        let want: Vec<Key<Address>> = want.iter().map(range).collect();
        for key in &want {
            ranges.insert(key, 1, 0).map_err(failed)?;
        }
        let have = ranges.keys().collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let same =
            |a: &Key<Address>, b: &Key<Address>| a.prefix_len() == b.prefix_len() && a.data() == b.data();
        for key in have.iter().filter(|key| !want.iter().any(|wanted| same(wanted, key))) {
            ranges.remove(key).map_err(failed)?;
        }
        Ok(())
    }

    /// Returns the enrolled pods: cookie and slot.
    pub(super) fn pods(&self) -> Result<HashMap<u64, u32>, Error> {
        lock(&self.pods).iter().collect::<Result<_, _>>().map_err(Error::map(maps::PODS))
    }

    /// Gives a pod its own map of handshakes; those that were under way in another are refused.
    pub(super) fn set_handshakes(&self, netns: u64, own: &Handshakes) -> Result<(), Error> {
        lock(&self.handshakes).insert(netns, own, 0).map_err(Error::map(maps::HANDSHAKES))
    }

    /// Returns how many handshakes of a pod are under way.
    pub(super) fn handshakes(&self, netns: u64) -> Result<usize, Error> {
        let failed = |error| Error::map(maps::HANDSHAKES)(error);
        let own = match lock(&self.handshakes).get(&netns, 0) {
            Ok(own) => own,
            Err(MapError::KeyNotFound) => return Ok(0),
            Err(error) => return Err(failed(error)),
        };
        Ok(own.keys().filter(Result::is_ok).count())
    }

    /// Writes what the programs need to know of a pod.
    pub(super) fn write_pod(&self, slot: u32, pod: &Pod) -> Result<(), Error> {
        lock(&self.table).set(slot, pod, 0).map_err(Error::map(maps::TABLE))
    }

    /// Reads what the programs know of a pod.
    pub(super) fn read_pod(&self, slot: u32) -> Result<Pod, Error> {
        lock(&self.table).get(&slot, 0).map_err(Error::map(maps::TABLE))
    }

    /// Changes a part of what the programs know of a pod; nothing where the slot is another's by now.
    pub(super) fn update_pod(
        &self,
        slot: u32,
        netns: u64,
        change: impl FnOnce(Pod) -> Pod,
    ) -> Result<(), Error> {
        let mut table = lock(&self.table);
        let now = table.get(&slot, 0).map_err(Error::map(maps::TABLE))?;
        if now.netns != netns {
            return Ok(());
        }
        table.set(slot, change(now), 0).map_err(Error::map(maps::TABLE))
    }

    /// Makes a pod's rules for plaintext what is wanted ([`Ports::change`]).
    pub(super) fn set_plaintext(&self, slot: u32, netns: u64, want: &Plaintext) -> Result<(), Error> {
        let mut ports = lock(&self.plaintext);
        let now = self.read_pod(slot)?;
        if now.netns != netns {
            return Ok(());
        }
        ports.change(netns, now.rules, want, |rules| self.update_pod(slot, netns, |now| Pod { rules, ..now }))
    }

    /// Returns the maps of the node's own connections.
    pub(super) fn node(&self) -> MutexGuard<'_, Node> {
        lock(&self.node)
    }

    /// Takes the ring buffer of refusals; none where it has been taken.
    pub(super) fn take_refusals(&self) -> Option<RingBuf<MapData>> {
        lock(&self.refusals).take()
    }

    /// Returns the permits for native connections.
    pub(super) fn permits(&self) -> MutexGuard<'_, Permits> {
        lock(&self.permits)
    }

    /// Takes the ring buffer of ended native connections; none where it has been taken.
    pub(super) fn take_native_ends(&self) -> Option<Result<RingBuf<MapData>, MapError>> {
        lock(&self.native_ends).take().map(TryFrom::try_from)
    }

    /// Starts capture: the namespace's connects are looked at from now on.
    pub(super) fn admit(&self, netns: u64, slot: u32) -> Result<(), Error> {
        debug_assert!(slot < MAX_PODS);
        lock(&self.pods).insert(netns, slot, 0).map_err(Error::map(maps::PODS))
    }

    /// Ends capture.
    pub(super) fn expel(&self, netns: u64) -> Result<(), Error> {
        absent_is_fine(lock(&self.pods).remove(&netns)).map_err(Error::map(maps::PODS))
    }

    /// Removes what is left of a pod that has been expelled and whose programs are detached.
    pub(super) fn forget(&self, netns: u64, slot: u32) -> Result<(), Error> {
        self.write_pod(slot, &Pod::default())?;
        for which in 0..listener::COUNT {
            self.clear_listener(slot, which)?;
        }
        lock(&self.plaintext).forget(netns)?;
        self.permits().forget(netns)?;
        self.node().set_addresses(netns, &[])?;
        absent_is_fine(lock(&self.handshakes).remove(&netns)).map_err(Error::map(maps::HANDSHAKES))?;
        let mut names = lock(&self.names);
        let theirs: Vec<Tuple> = names.keys().flatten().filter(|tuple| tuple.netns == netns).collect();
        for tuple in theirs {
            absent_is_fine(names.remove(&tuple)).map_err(Error::map(maps::NAMES))?;
        }
        Ok(())
    }

    /// Lets `sk_lookup` hand connections to a listening socket.
    pub(super) fn set_listener(&self, slot: u32, which: u32, socket: &impl AsFd) -> Result<(), Error> {
        lock(&self.listeners)
            .set(slot * listener::COUNT + which, &socket.as_fd().as_raw_fd(), 0)
            .map_err(Error::map(maps::LISTENERS))
    }

    /// Takes a listener's place away: connections to it are refused from now on.
    pub(super) fn clear_listener(&self, slot: u32, which: u32) -> Result<(), Error> {
        let cleared = lock(&self.listeners).clear_index(&(slot * listener::COUNT + which));
        // EINVAL is what an empty place gives (sock_map_delete_elem).
        match cleared {
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EINVAL) => {
                Ok(())
            }
            result => absent_is_fine(result).map_err(Error::map(maps::LISTENERS)),
        }
    }

    /// Notes what the programs are to know of a socket of the agent.
    pub(super) fn mark(&self, socket: &impl AsFd, value: &Socket) -> Result<(), Error> {
        lock(&self.sockets).insert(&socket.as_fd().as_raw_fd(), value, 0).map_err(Error::map(maps::SOCKETS))
    }

    /// Takes what the programs noted of a socket.
    pub(super) fn take(&self, socket: &impl AsFd) -> Result<Option<Socket>, Error> {
        let socket = socket.as_fd().as_raw_fd();
        let mut sockets = lock(&self.sockets);
        match sockets.get(&socket, 0) {
            Ok(value) => {
                absent_is_fine(sockets.remove(&socket)).map_err(Error::map(maps::SOCKETS))?;
                Ok(Some(value))
            }
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(Error::map(maps::SOCKETS)(error)),
        }
    }

    /// Returns a counter's sum over all CPUs.
    pub(super) fn counter(&self, index: u32) -> Result<u64, Error> {
        let values = self.counters.get(&index, 0).map_err(Error::map(maps::COUNTERS))?;
        Ok(values.iter().sum())
    }
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not all of aya's map types can be printed, and what is in them is the kernel's to tell.
        f.debug_struct("Tables").finish_non_exhaustive()
    }
}

impl Destinations {
    /// Adds before it removes, so that no destination that stays is unknown for a moment.
    fn change_to(&mut self, want: &HashMap<Address, u32>) -> Result<(), MapError> {
        for (address, action) in want {
            if self.have.get(address) != Some(action) {
                // A full map has room again once the old ones have gone; that order is the exception.
                if self.have.len() >= MAX_DESTINATIONS as usize {
                    self.remove_unwanted(want)?;
                }
                self.map.insert(address, action, 0)?;
                self.have.insert(*address, *action);
            }
        }
        self.remove_unwanted(want)
    }

    fn remove_unwanted(&mut self, want: &HashMap<Address, u32>) -> Result<(), MapError> {
        let old: Vec<Address> =
            self.have.keys().filter(|address| !want.contains_key(address)).copied().collect();
        for address in old {
            absent_is_fine(self.map.remove(&address))?;
            self.have.remove(&address);
        }
        Ok(())
    }
}

/// Takes a map out of a loaded object.
pub(super) fn take<T: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, Error> {
    ebpf.take_map(name).expect("build.rs has built this map").try_into().map_err(Error::map(name))
}

/// What these mutexes protect is in the kernel: a panic elsewhere leaves it as good as it was.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn code(destination: Destination) -> u32 {
    match destination {
        Destination::Capture => action::CAPTURE,
        Destination::Refuse => action::REFUSE,
        Destination::Pass => action::PASS,
    }
}

/// An IPv4 range is one of IPv4-mapped addresses.
fn range(net: &IpNet) -> Key<Address> {
    let mapped_bits = if net.addr().is_ipv4() { 96 } else { 0 };
    Key::new(mapped_bits + u32::from(net.prefix_len()), net.network().into())
}
