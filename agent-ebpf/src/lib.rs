//! What the eBPF programs and the agent share: map keys and values, bounds, and the layout's version.
//!
//! Everything is `repr(C)` without hidden padding (checked below), because a value's bytes cross between the kernel and
//! the agent as they are. Addresses are in network byte order and IPv4-mapped, so that one key serves both families;
//! ports are in host byte order.

#![cfg_attr(target_arch = "bpf", no_std)]

use core::mem::size_of;

#[cfg(all(feature = "user", not(target_arch = "bpf")))]
mod user;

/// The version of the maps below as they are pinned. Change it with every change of a type, a bound or a meaning.
pub const LAYOUT: u32 = 1;

/// How many pods of one node can be enrolled.
pub const MAX_PODS: u32 = 1024;
/// How many addresses one pod can have: one a family is what Kubernetes gives, twice that for pods with more.
pub const MAX_ADDRESSES: usize = 4;
/// How many destinations the mesh can have: pods and services.
pub const MAX_DESTINATIONS: u32 = 262_144;
/// How many pod ranges can be configured.
pub const MAX_RANGES: u32 = 256;
/// How many handshakes of one pod can be under way at once. An entry lives from the SYN to the end of the handshake,
/// microseconds on loopback, so that only an agent that does not accept lets them pile up, once its listener's queue
/// is full too.
pub const MAX_HANDSHAKES: u32 = 4_096;
/// How many captured MPTCP connections of the node can ask who their peer is.
pub const MAX_NAMES: u32 = 65_536;

/// The port of HBONE.
pub const HBONE_PORT: u16 = 15008;
/// The last port that a captured connection is redirected to; the first is 1.
pub const LAST_REDIRECT_PORT: u16 = 1023;

/// Names of the maps, as the agent asks for them and as they are pinned.
pub mod maps {
    /// Netns cookie -> slot, a `u32`.
    pub const PODS: &str = "PODS";
    /// Slot -> [`super::Pod`].
    pub const TABLE: &str = "TABLE";
    /// [`super::Address`] -> an action, see [`super::action`].
    pub const DESTINATIONS: &str = "DESTINATIONS";
    /// Prefix of [`super::Address`] -> 1: an unknown address in it is captured.
    pub const RANGES: &str = "RANGES";
    /// Netns cookie -> a map of the pod's own: [`super::Tuple`] -> [`super::Handshake`].
    pub const HANDSHAKES: &str = "HANDSHAKES";
    /// [`super::Tuple`] -> [`super::Name`]: the peers of captured MPTCP connections.
    pub const NAMES: &str = "NAMES";
    /// Socket -> [`super::Socket`].
    pub const SOCKETS: &str = "SOCKETS";
    /// Slot × [`super::listener::COUNT`] + [`super::listener`] -> listening socket.
    pub const LISTENERS: &str = "LISTENERS";
    /// [`super::counter`] -> how often, a `u64` for each CPU.
    pub const COUNTERS: &str = "COUNTERS";

    /// [`super::Tuple`] -> [`super::Handshake`]: the one that belongs into `HANDSHAKES` for the pod that a copy of the
    /// programs is loaded for. Not pinned by itself.
    pub const OWN_HANDSHAKES: &str = "OWN_HANDSHAKES";

    /// All that are pinned.
    pub const ALL: [&str; 9] =
        [PODS, TABLE, DESTINATIONS, RANGES, HANDSHAKES, NAMES, SOCKETS, LISTENERS, COUNTERS];
}

/// What happens to a connection of an enrolled pod to a destination.
pub mod action {
    /// It is redirected to the agent.
    pub const CAPTURE: u32 = 1;
    /// It fails with ECONNREFUSED.
    pub const REFUSE: u32 = 2;
    /// It is let alone.
    pub const PASS: u32 = 3;
}

/// The listeners of a pod.
pub mod listener {
    /// For captured connections over IPv4.
    pub const OUTBOUND4: u32 = 0;
    /// For captured connections over IPv6.
    pub const OUTBOUND6: u32 = 1;
    /// For HBONE over IPv4.
    pub const HBONE4: u32 = 2;
    /// For HBONE over IPv6.
    pub const HBONE6: u32 = 3;
    /// How many there are.
    pub const COUNT: u32 = 4;
}

/// What the programs count.
pub mod counter {
    /// Connections redirected to the agent.
    pub const CAPTURED: u32 = 0;
    /// Connections from outside that were given to a pod's HBONE listener.
    pub const HBONE: u32 = 1;
    /// Refused: the destination says so (a service without a ready endpoint).
    pub const REFUSED_DESTINATION: u32 = 2;
    /// Refused: too many handshakes of the pod are under way, or there is no memory to note another.
    pub const REFUSED_OVERLOAD: u32 = 3;
    /// Refused: the pod has no address of the destination's family, or is bound to loopback.
    pub const REFUSED_UNREACHABLE: u32 = 4;
    /// Refused: the connection did not come through the connect hook.
    pub const REFUSED_UNKNOWN: u32 = 5;
    /// Refused: no agent listens for the pod.
    pub const REFUSED_NO_AGENT: u32 = 6;
    /// Refused: a process in the pod connected straight to a listener of the agent.
    pub const REFUSED_DIRECT: u32 = 7;
    /// Connections whose application sees the client's address instead of loopback.
    pub const SUBSTITUTED: u32 = 8;
    /// How many there are.
    pub const COUNT: u32 = 9;
}

/// What a socket or a handshake is.
pub mod kind {
    /// A captured connection, at the application's end.
    pub const CAPTURED: u32 = 1;
    /// A connection of the pod to itself, to a port that captured connections use too.
    pub const OWN: u32 = 2;
    /// A socket of the agent: never captured.
    pub const AGENT: u32 = 3;
    /// A socket of the agent that connects to the application in a client's name.
    pub const DIAL: u32 = 4;
    /// A connection of the agent to the pod's own HBONE listener.
    pub const LOOPED: u32 = 5;
    /// A captured connection, at the agent's end.
    pub const ACCEPTED: u32 = 6;
    /// A connection made in a client's name, at the application's end.
    pub const SUBSTITUTED: u32 = 7;
}

/// An IP address: four words in network byte order, IPv4 as `::ffff:a.b.c.d`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Address(pub [u32; 4]);

/// The ends of a connection as the side that connects sees them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Tuple {
    /// The network namespace's cookie. Never reused, unlike a slot.
    pub netns: u64,
    /// The address that connects.
    pub local: Address,
    /// The address that is connected to.
    pub remote: Address,
    /// The port of `local`.
    pub local_port: u16,
    /// The port of `remote`.
    pub remote_port: u16,
    /// Zero.
    pub pad: u32,
}

/// A connection whose handshake is under way.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Handshake {
    /// The cookie of the socket that connects: only its end removes the entry.
    pub owner: u64,
    /// The original destination, or the client in whose name the agent connects.
    pub address: Address,
    /// The port of `address`.
    pub port: u32,
    /// One of [`kind`].
    pub kind: u32,
}

/// The destination that a captured MPTCP connection asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Name {
    /// The cookie of the subflow that connected.
    pub owner: u64,
    /// The address.
    pub address: Address,
    /// The port of `address`.
    pub port: u32,
    /// Zero.
    pub pad: u32,
}

/// What is known of a socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Socket {
    /// The original destination, or the client in whose name the agent connects.
    pub address: Address,
    /// The peer that the kernel knows. What is said above holds only as long as the socket's peer is this one.
    pub peer: Address,
    /// The port of `address`.
    pub port: u32,
    /// The port of `peer`.
    pub peer_port: u32,
    /// One of [`kind`].
    pub kind: u32,
    /// Zero.
    pub pad: u32,
}

/// An enrolled pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Pod {
    /// The network namespace's cookie; zero where the slot is free.
    pub netns: u64,
    /// The pod's addresses; what is unused is zero.
    pub addresses: [Address; MAX_ADDRESSES],
    /// The pod's first IPv4 address, to which captured connections are redirected; zero where it has none.
    pub redirect4: Address,
    /// The same for IPv6.
    pub redirect6: Address,
    /// The ports of the listeners, by [`listener`]; zero where there is none.
    pub ports: [u16; listener::COUNT as usize],
    /// 1 where new connections are captured.
    pub captures: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<Address>() == 16);
const _: () = assert!(size_of::<Tuple>() == 8 + 2 * 16 + 2 * 2 + 4);
const _: () = assert!(size_of::<Handshake>() == 8 + 16 + 2 * 4);
const _: () = assert!(size_of::<Name>() == 8 + 16 + 2 * 4);
const _: () = assert!(size_of::<Socket>() == 2 * 16 + 4 * 4);
const _: () = assert!(size_of::<Pod>() == 8 + MAX_ADDRESSES * 16 + 2 * 16 + 4 * 2 + 2 * 4);

impl Address {
    /// The first three words of an IPv4-mapped address.
    const MAPPED: [u32; 3] = [0, 0, 0xffff_u32.to_be()];

    /// Takes an IPv4 address in network byte order.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self([Self::MAPPED[0], Self::MAPPED[1], Self::MAPPED[2], word])
    }

    /// Returns whether it is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == Self::MAPPED[0] && self.0[1] == Self::MAPPED[1] && self.0[2] == Self::MAPPED[2]
    }

    /// Returns whether it is all zeroes, which no host has.
    #[inline(always)]
    pub const fn is_zero(&self) -> bool {
        (self.0[0] | self.0[1] | self.0[2] | self.0[3]) == 0
    }

    /// Returns whether it is 0.0.0.0 or ::.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.0[3] == 0 && (self.is_v4() || self.is_zero())
    }

    /// Returns whether it is 127.0.0.0/8 or ::1.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            return u32::from_be(self.0[3]) >> 24 == 127;
        }
        (self.0[0] | self.0[1] | self.0[2]) == 0 && self.0[3] == 1u32.to_be()
    }
}

impl Pod {
    /// Returns whether the address is one of the pod's own.
    #[inline(always)]
    pub fn owns(&self, address: &Address) -> bool {
        let [a, b, c, d] = &self.addresses;
        !address.is_zero() && (a == address || b == address || c == address || d == address)
    }
}
