//! The maps' keys and values.
//!
//! Everything is `repr(C)` without hidden padding (checked below), because a value's bytes cross between the kernel and
//! the agent as they are. Addresses are in network byte order and IPv4-mapped, so that one key serves both families;
//! ports are in host byte order.

use core::mem::size_of;

use super::{MAX_ADDRESSES, listener};

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
    /// One of [`super::kind`].
    pub kind: u32,
    /// Of a native connection: the network namespace that it goes to; else zero.
    pub netns: u64,
    /// Of a native connection: the permit's; else zero.
    pub generation: u64,
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
    /// The original destination, or the client in whose name the agent connects; of a native connection the client.
    pub address: Address,
    /// The peer that the kernel knows. What is said above holds only as long as the socket's peer is this one.
    pub peer: Address,
    /// The port of `address`.
    pub port: u32,
    /// The port of `peer`.
    pub peer_port: u32,
    /// One of [`super::kind`].
    pub kind: u32,
    /// Zero.
    pub pad: u32,
    /// Of a native connection: the network namespace that it goes to; else zero.
    pub netns: u64,
    /// Of a native connection: the permit's; else zero.
    pub generation: u64,
    /// When a native connection was begun, in nanoseconds of the monotonic clock; else zero.
    pub started: u64,
}

/// What native connections a permit is for: from a namespace to a port of another pod of the node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct NativeKey {
    /// The cookie of the network namespace that connects.
    pub netns: u64,
    /// The address that is connected to.
    pub address: Address,
    /// The port of `address`.
    pub port: u32,
    /// Zero.
    pub pad: u32,
}

/// The agent's word that a namespace may connect to another without it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NativePermit {
    /// The cookie of the destination's network namespace.
    pub netns: u64,
    /// The agent's epoch in the upper half, a number of this permit alone in the lower one: never used again.
    pub generation: u64,
    /// The only address that the connection may come from.
    pub source: Address,
}

/// Whether an agent is there that stands by its permits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Pulse {
    /// Until when, in nanoseconds of the monotonic clock; zero where there is no native path.
    pub until: u64,
    /// Which agent: the upper half of its permits' generations.
    pub epoch: u64,
}

/// A native connection that has ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NativeEnd {
    /// The ends, with the source's namespace.
    pub tuple: Tuple,
    /// The cookie of the destination's network namespace.
    pub netns: u64,
    /// The permit's.
    pub generation: u64,
    /// The cookie of the socket that connected.
    pub owner: u64,
    /// Bytes from source to destination that were acknowledged.
    pub sent: u64,
    /// Bytes from destination to source.
    pub received: u64,
    /// How long it took, from `connect` on, in nanoseconds.
    pub nanoseconds: u64,
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
    /// The ports of the listeners, by [`super::listener`]; zero where there is none.
    pub ports: [u16; listener::COUNT as usize],
    /// 1 where new connections are captured.
    pub captures: u32,
    /// What happens to plaintext from outside.
    pub rules: Rules,
    /// Zero.
    pub pad: u32,
}

/// What happens to plaintext from outside a pod, in one word, so that a change is seen whole or not at all.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Rules(pub u32);

/// A port of a pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct PodPort {
    /// The network namespace's cookie.
    pub netns: u64,
    /// The port.
    pub port: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<Address>() == 16);
const _: () = assert!(size_of::<Tuple>() == 8 + 2 * 16 + 2 * 2 + 4);
const _: () = assert!(size_of::<Handshake>() == 8 + 16 + 2 * 4 + 2 * 8);
const _: () = assert!(size_of::<Name>() == 8 + 16 + 2 * 4);
const _: () = assert!(size_of::<Socket>() == 2 * 16 + 4 * 4 + 3 * 8);
const _: () = assert!(size_of::<NativeKey>() == 8 + 16 + 2 * 4);
const _: () = assert!(size_of::<NativePermit>() == 2 * 8 + 16);
const _: () = assert!(size_of::<Pulse>() == 2 * 8);
const _: () = assert!(size_of::<NativeEnd>() == size_of::<Tuple>() + 6 * 8);
const _: () = assert!(size_of::<Pod>() == 8 + MAX_ADDRESSES * 16 + 2 * 16 + 6 * 2 + 3 * 4);
const _: () = assert!(size_of::<PodPort>() == 8 + 2 * 4);

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

impl Socket {
    /// Describes a socket whose peer the kernel knows as `peer`.
    #[inline(always)]
    pub const fn new(kind: u32, (address, port): (Address, u32), (peer, peer_port): (Address, u32)) -> Self {
        Self { address, peer, port, peer_port, kind, pad: 0, netns: 0, generation: 0, started: 0 }
    }
}

impl Pulse {
    /// Returns whether a permit counts at this time.
    #[inline(always)]
    pub const fn stands_by(&self, generation: u64, now: u64) -> bool {
        now < self.until && generation >> 32 == self.epoch
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

impl Rules {
    const ACTION: u32 = 0b11;
    const PORTS: u32 = 0b100;
    /// Above the flags: counts the changes, so that a program sees that there was one while it looked.
    const CHANGE: u32 = 0b1000;

    /// Returns the rules that follow these.
    #[inline(always)]
    pub const fn next(self, otherwise: u32, ports: bool) -> Self {
        let flags = otherwise & Self::ACTION | if ports { Self::PORTS } else { 0 };
        let changes = self.0 & !(Self::ACTION | Self::PORTS);
        Self(changes.wrapping_add(Self::CHANGE) | flags)
    }

    /// Returns one of [`super::plaintext`]: what happens at every port without a rule of its own.
    #[inline(always)]
    pub const fn otherwise(self) -> u32 {
        self.0 & Self::ACTION
    }

    /// Returns whether ports may have rules of their own.
    #[inline(always)]
    pub const fn has_ports(self) -> bool {
        self.0 & Self::PORTS != 0
    }
}
