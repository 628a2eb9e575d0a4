//! `sk_lookup`, once for each enrolled pod: picks the socket for each new connection that arrives in its namespace.
//!
//! It runs where the kernel looks for a listener: for a SYN, for the last ACK of a handshake under SYN cookies, and for
//! what belongs to no connection at all. The program may not ask for the namespace's cookie (the verifier refuses), and
//! the packet's address proves nothing (a pod can give itself any): so each pod has its own copy with its slot as a constant.

use core::ptr::read_volatile;

use aya_ebpf::{
    Global,
    bindings::sk_action::{SK_DROP, SK_PASS},
    programs::SkLookupContext,
};

use agent_ebpf::{Address, HBONE_PORT, LAST_REDIRECT_PORT, Pod, Tuple, counter, kind, listener};

use crate::{
    context::{IPPROTO_TCP, Packet},
    state::{self, LISTENERS, OWN_HANDSHAKES},
};

/// The pod's slot.
#[unsafe(no_mangle)]
static SLOT: Global<u32> = Global::new(u32::MAX);
/// The pod's network namespace, in which this copy runs: the slot may be another pod's by now.
#[unsafe(no_mangle)]
static NETNS: Global<u64> = Global::new(0);

#[inline(always)]
pub(crate) fn lookup(ctx: &SkLookupContext) -> u32 {
    // SAFETY: the context is valid while the program runs.
    if unsafe { read_volatile(&raw const (*ctx.lookup).protocol) } != IPPROTO_TCP {
        return SK_PASS; // the hook runs for UDP too
    }
    let Some(pod) = state::pod_at(SLOT.load()) else { return SK_PASS };
    if pod.netns != NETNS.load() {
        return SK_PASS;
    }
    let packet = Packet::read(ctx.lookup);
    let (destination, port) = &packet.destination;
    let own = pod.owns(destination);
    let local = packet.source.0.is_loopback() || pod.owns(&packet.source.0);

    if own && *port <= LAST_REDIRECT_PORT {
        return match packet.handshake(pod) {
            Some(kind::CAPTURED) => steer(ctx, packet.listener(listener::OUTBOUND4)),
            Some(_) => SK_PASS,
            // A lost entry must never reach what the pod itself has on the port.
            None if local => refuse(counter::REFUSED_UNKNOWN),
            None => SK_PASS,
        };
    }
    if own && *port == HBONE_PORT {
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
    /// Returns what kind of handshake of this pod the packet belongs to.
    #[inline(always)]
    fn handshake(&self, pod: &Pod) -> Option<u32> {
        let tuple = Tuple {
            netns: pod.netns,
            local: self.source.0,
            remote: self.destination.0,
            local_port: self.source.1,
            remote_port: self.destination.1,
            pad: 0,
        };
        // SAFETY: the number is copied at once.
        unsafe { OWN_HANDSHAKES.get(tuple) }.map(|entry| entry.kind)
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
        let (address, port) = &self.destination;
        if self.v4 {
            *address == LOCALHOST4 && (*port == outbound4 || *port == hbone4)
        } else {
            address.is_loopback() && (*port == outbound6 || *port == hbone6)
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
