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

use agent_ebpf::{
    Address, HBONE_PORT, LAST_REDIRECT_PORT, Pod, PodPort, Rules, Tuple, counter, kind, listener, plaintext,
};

use crate::{
    context::{IPPROTO_TCP, Packet},
    native, node,
    state::{self, HOST, LISTENERS, OWN_HANDSHAKES, PLAINTEXT, REFUSALS},
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
    if packet.is_for_a_listener(pod) {
        return refuse(counter::REFUSED_DIRECT);
    }
    if packet.is_from_inside(pod) { from_inside(ctx, pod, &packet) } else { from_outside(ctx, pod, &packet) }
}

/// The pod talks to itself, or to the agent.
#[inline(always)]
fn from_inside(ctx: &SkLookupContext, pod: &Pod, packet: &Packet) -> u32 {
    let (destination, port) = packet.destination;
    if !pod.owns(&destination) {
        return SK_PASS;
    }
    if port <= LAST_REDIRECT_PORT {
        return match packet.handshake(pod) {
            Some(kind::CAPTURED) => steer(ctx, packet.listener(listener::OUTBOUND4)),
            Some(_) => SK_PASS,
            // A lost entry must never reach what the pod itself has on the port.
            None => refuse(counter::REFUSED_UNKNOWN),
        };
    }
    if port == HBONE_PORT && packet.handshake(pod) == Some(kind::LOOPED) {
        return steer(ctx, packet.listener(listener::HBONE4));
    }
    SK_PASS
}

#[inline(always)]
fn from_outside(ctx: &SkLookupContext, pod: &Pod, packet: &Packet) -> u32 {
    let (destination, port) = packet.destination;
    let own = pod.owns(&destination);
    // The pod itself, bound to an address of its own that the agent does not know.
    if own && port <= LAST_REDIRECT_PORT && packet.handshake(pod) == Some(kind::CAPTURED) {
        return steer(ctx, packet.listener(listener::OUTBOUND4));
    }
    if own && port == HBONE_PORT {
        state::count(counter::HBONE);
        return steer(ctx, packet.listener(listener::HBONE4));
    }
    if own && let Some(admitted) = native::admits(pod, packet) {
        return if admitted { SK_PASS } else { refuse(counter::REFUSED_NATIVE) };
    }
    // Plaintext, whichever of its addresses the pod is reached at.
    let action = rule(pod, port);
    if action == plaintext::PASS {
        return SK_PASS;
    }
    if node::owns(&packet.tuple(HOST.load())) {
        state::count(counter::NODE);
        return SK_PASS;
    }
    if action == plaintext::REFUSE {
        packet.report(pod);
        return refuse(counter::REFUSED_PLAINTEXT);
    }
    state::count(counter::INSPECTED);
    steer(ctx, packet.listener(listener::PLAIN4))
}

/// Reads a pod's rules anew: the agent may be changing them.
#[inline(always)]
fn rules_of(pod: &Pod) -> Rules {
    // SAFETY: the entry of an array lives as long as the program runs.
    unsafe { read_volatile(&raw const pod.rules) }
}

/// Returns what happens to plaintext at a port.
#[inline(always)]
fn rule(pod: &Pod, port: u16) -> u32 {
    let rules = rules_of(pod);
    if !rules.has_ports() {
        return rules.otherwise();
    }
    let key = PodPort { netns: pod.netns, port: port.into(), pad: 0 };
    // SAFETY: the number is copied at once.
    let own = unsafe { PLAINTEXT.get(key) }.copied();
    // The port's rule and the others' may be of two states that never were one: what the agent may have taken away in
    // between was only good with the others as they were.
    if rules_of(pod) != rules {
        return plaintext::INSPECT;
    }
    own.unwrap_or(rules.otherwise())
}

impl Packet {
    /// Returns whether the pod talks to itself. To an address that the agent does not know, such as a second interface's, a
    /// pod talks from that same address. Forged from outside, none of these completes a handshake: the answer stays inside.
    #[inline(always)]
    fn is_from_inside(&self, pod: &Pod) -> bool {
        let source = &self.source.0;
        source.is_loopback() || pod.owns(source) || *source == self.destination.0
    }

    /// Returns what kind of handshake of this pod the packet belongs to.
    #[inline(always)]
    fn handshake(&self, pod: &Pod) -> Option<u32> {
        // SAFETY: the number is copied at once.
        unsafe { OWN_HANDSHAKES.get(self.tuple(pod.netns)) }.map(|entry| entry.kind)
    }

    /// Returns the ends as the side that connects sees them.
    #[inline(always)]
    pub(crate) fn tuple(&self, netns: u64) -> Tuple {
        let ((local, local_port), (remote, remote_port)) = (self.source, self.destination);
        Tuple { netns, local, remote, local_port, remote_port, pad: 0 }
    }

    /// Tells the agent that the packet was refused. Where it does not keep up, that is counted.
    #[inline(always)]
    fn report(&self, pod: &Pod) {
        if REFUSALS.output(self.tuple(pod.netns), 0).is_err() {
            state::count(counter::LOST);
        }
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
        let [outbound4, outbound6, hbone4, hbone6, plain4, plain6] = pod.ports;
        let (address, port) = &self.destination;
        if self.v4 {
            *address == LOCALHOST4 && (*port == outbound4 || *port == hbone4 || *port == plain4)
        } else {
            address.is_loopback() && (*port == outbound6 || *port == hbone6 || *port == plain6)
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
