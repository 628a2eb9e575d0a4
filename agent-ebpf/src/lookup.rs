//! `sk_lookup`, once for each enrolled pod: picks the socket for each new connection that arrives in its namespace.
//!
//! It runs where the kernel looks for a listener: for a SYN, for the last ACK of a handshake under SYN cookies, and for
//! what belongs to no connection at all. The program may not ask for the namespace's cookie (the verifier refuses), and
//! the packet's address proves nothing (a pod can give itself any): so each pod has its own copy with its slot as a constant.

use core::ptr::read_volatile;

use aya_ebpf::{
    Global,
    bindings::{bpf_sk_lookup, sk_action::{SK_DROP, SK_PASS}},
    programs::SkLookupContext,
};

use agent_ebpf::{Address, HBONE_PORT, LAST_REDIRECT_PORT, Pod, Tuple, counter, kind, listener};

use crate::{
    connect::AF_INET,
    state::{self, LISTENERS},
};

/// The pod's slot.
#[unsafe(no_mangle)]
static SLOT: Global<u32> = Global::new(u32::MAX);

const IPPROTO_TCP: u32 = 6;

/// A packet's ends.
struct Packet {
    v4: bool,
    source: Address,
    source_port: u16,
    destination: Address,
    port: u16,
}

#[inline(always)]
pub(crate) fn lookup(ctx: &SkLookupContext) -> u32 {
    // SAFETY: the context is valid while the program runs.
    if unsafe { read_volatile(&raw const (*ctx.lookup).protocol) } != IPPROTO_TCP {
        return SK_PASS; // the hook runs for UDP too
    }
    let Some(pod) = state::pod_at(SLOT.load()) else { return SK_PASS };
    if pod.netns == 0 {
        return SK_PASS;
    }
    let packet = Packet::read(ctx.lookup);
    let own = pod.owns(&packet.destination);
    let local = packet.source.is_loopback() || pod.owns(&packet.source);

    if own && packet.port <= LAST_REDIRECT_PORT {
        return match packet.handshake(pod) {
            Some(kind::CAPTURED) => steer(ctx, packet.listener(listener::OUTBOUND4)),
            Some(_) => SK_PASS,
            // A lost entry must never reach what the pod itself has on the port.
            None if local => refuse(counter::REFUSED_UNKNOWN),
            None => SK_PASS,
        };
    }
    if own && packet.port == HBONE_PORT {
        if !local {
            state::count(counter::HBONE);
            return steer(ctx, packet.listener(listener::HBONE4));
        }
        if packet.handshake(pod) == Some(kind::LOOPED) {
            return steer(ctx, packet.listener(listener::HBONE4));
        }
    }
    if packet.is_for_a_listener(pod) {
        return refuse(counter::REFUSED_DIRECT);
    }
    SK_PASS
}

impl Packet {
    #[inline(always)]
    fn read(lookup: *mut bpf_sk_lookup) -> Self {
        // SAFETY: the context is valid while the program runs. Volatile: see `connect4`. `remote_port` is two bytes in
        // network byte order, `local_port` a word in host byte order.
        unsafe {
            let v4 = read_volatile(&raw const (*lookup).family) == AF_INET;
            let (source, destination) = if v4 {
                (
                    Address::v4(read_volatile(&raw const (*lookup).remote_ip4)),
                    Address::v4(read_volatile(&raw const (*lookup).local_ip4)),
                )
            } else {
                (
                    Address([
                        read_volatile(&raw const (*lookup).remote_ip6[0]),
                        read_volatile(&raw const (*lookup).remote_ip6[1]),
                        read_volatile(&raw const (*lookup).remote_ip6[2]),
                        read_volatile(&raw const (*lookup).remote_ip6[3]),
                    ]),
                    Address([
                        read_volatile(&raw const (*lookup).local_ip6[0]),
                        read_volatile(&raw const (*lookup).local_ip6[1]),
                        read_volatile(&raw const (*lookup).local_ip6[2]),
                        read_volatile(&raw const (*lookup).local_ip6[3]),
                    ]),
                )
            };
            Self {
                v4,
                source,
                source_port: u16::from_be(read_volatile(&raw const (*lookup).remote_port)),
                destination,
                port: read_volatile(&raw const (*lookup).local_port) as u16,
            }
        }
    }

    /// Returns what kind of handshake of this pod the packet belongs to.
    #[inline(always)]
    fn handshake(&self, pod: &Pod) -> Option<u32> {
        let tuple = Tuple {
            netns: pod.netns,
            local: self.source,
            remote: self.destination,
            local_port: self.source_port,
            remote_port: self.port,
            pad: 0,
        };
        state::handshake(&tuple).map(|entry| entry.kind)
    }

    /// Returns the index of the listener for the packet's family, of two that follow each other.
    #[inline(always)]
    fn listener(&self, v4: u32) -> u32 {
        SLOT.load() * listener::COUNT + if self.v4 { v4 } else { v4 + 1 }
    }

    /// Returns whether the packet goes straight to where a listener of the agent is bound.
    #[inline(always)]
    fn is_for_a_listener(&self, pod: &Pod) -> bool {
        const LOCALHOST4: Address = Address::v4(0x7f00_0001_u32.to_be());
        let [outbound4, outbound6, hbone4, hbone6] = pod.ports;
        if self.v4 {
            self.destination == LOCALHOST4 && (self.port == outbound4 || self.port == hbone4)
        } else {
            self.destination.is_loopback() && (self.port == outbound6 || self.port == hbone6)
        }
    }
}

/// Hands the connection to a listener of the agent. Without an agent the place is empty: refused.
#[inline(always)]
fn steer(ctx: &SkLookupContext, index: u32) -> u32 {
    match LISTENERS.redirect_sk_lookup(ctx, index, 0) {
        Ok(()) => SK_PASS,
        Err(_) => refuse(counter::REFUSED_NO_AGENT),
    }
}

/// Answers with a reset, as the kernel does where nobody listens.
#[inline(always)]
fn refuse(counter: u32) -> u32 {
    state::count(counter);
    SK_DROP
}
