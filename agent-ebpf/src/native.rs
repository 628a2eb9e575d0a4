//! Connections between two pods of this node without the agent, where it has said that they may be.
//!
//! ```text
//! agent: permit (namespace, destination) ──► connect: not redirected ──► sockops TCP_CONNECT: one-shot entry of the four ends
//!                                                                            │
//! application of the destination ◄── sockops PASSIVE_ESTABLISHED: taken ◄── sk_lookup: let in
//! ```
//!
//! No address admits anybody: the entry is written for the socket of the namespace that has the permit, into that namespace's
//! own map of handshakes, so that nobody can fill another's. It names the destination's namespace, and lives from before the
//! SYN leaves until the other end is established.
//!
//! Permits count only while the agent that gave them says so every other moment ([`Pulse`](agent_ebpf::Pulse)).

use core::ptr::read_volatile;

use aya_ebpf::{bindings::bpf_sock, helpers::generated::bpf_ktime_get_ns, programs::SockOpsContext};

use agent_ebpf::{
    Address, HBONE_PORT, Handshake, NativeEnd, NativeKey, NativePermit, Pod, Socket, Tuple, counter, kind,
};

use crate::{
    connect::is_mptcp_subflow,
    context::{self, Packet},
    state::{self, LOCAL, NATIVE, NATIVE_ENDS, PULSE},
};

/// Lets a connect to a captured destination alone where there is a permit for it; false where it goes to the agent. `bound` is the
/// address that the socket is bound to, if it is.
///
/// A function of its own also to the verifier, which then forgets what went on in it: in one piece with its caller it takes that
/// twice as long.
#[inline(never)]
pub(crate) fn connect(sk: *mut bpf_sock, netns: u64, address: &Address, port: u16, bound: &Address) -> bool {
    let address = *address;
    let Some(permit) = permit(netns, address, port) else { return false };
    if !bound.is_unspecified() && *bound != permit.source {
        return false;
    }
    // Another interface than the one that the agent has looked at, or a second path that nobody could end.
    if context::is_bound_to_device(sk) || is_mptcp_subflow(sk) {
        return false;
    }
    let mut native = Socket::new(kind::NATIVE, (permit.source, 0), (address, port.into()));
    native.netns = permit.netns;
    native.generation = permit.generation;
    native.started = now();
    let noted = state::remember(sk, native);
    if noted {
        state::count(counter::NATIVE);
    }
    noted
}

/// Returns the permit that counts now.
#[inline(always)]
fn permit(netns: u64, address: Address, port: u16) -> Option<NativePermit> {
    let pulse = PULSE.get(0)?;
    if pulse.until == 0 || port == HBONE_PORT {
        return None;
    }
    // SAFETY: the value is copied at once.
    let permit = unsafe { NATIVE.get(NativeKey { netns, address, port: port.into(), pad: 0 }) }.copied()?;
    pulse.stands_by(permit.generation, now()).then_some(permit)
}

/// Decides on a packet from outside for the pod; none where it is no matter of native connections.
///
/// Who has a permit sends no plaintext to that port: what comes without an entry has lost it, or is forged.
#[inline(always)]
pub(crate) fn admits(pod: &Pod, packet: &Packet) -> Option<bool> {
    if PULSE.get(0)?.until == 0 {
        return None;
    }
    let netns = namespace_of(&packet.source.0)?;
    let (address, port) = packet.destination;
    let entry = state::handshake(&packet.tuple(netns)).filter(|entry| entry.kind == kind::NATIVE);
    match (permit(netns, address, port), entry) {
        (Some(permit), Some(entry)) => {
            Some(entry.netns == pod.netns && entry.generation == permit.generation)
        }
        (None, None) => None,
        _ => Some(false),
    }
}

/// A connection is established at the end that accepts: takes its entry, and marks the socket. False where it is none of
/// the native ones.
#[inline(always)]
pub(crate) fn accepted(here: &Tuple, there: &Tuple, sk: *mut bpf_sock) -> bool {
    let Some(netns) = namespace_of(&here.remote) else { return false };
    let there = Tuple { netns, ..*there };
    let Some(Handshake { kind: kind::NATIVE, netns, generation, .. }) = state::handshake(&there) else {
        return false;
    };
    if netns != here.netns {
        return false;
    }
    let peer = (there.local, there.local_port.into());
    let mut native = Socket::new(kind::NATIVE_SERVER, peer, peer);
    native.netns = netns;
    native.generation = generation;
    // Without memory it is taken for plaintext when policy changes, and ended where that is not permitted.
    let _ = state::remember(sk, native);
    state::end(&there);
    true
}

/// The socket that connected has ended: tells the agent what the connection was.
#[inline(always)]
pub(crate) fn closed(ctx: &SockOpsContext, socket: &Socket, tuple: &Tuple, owner: u64) {
    const FIN_WAIT2: u32 = 5;
    const CLOSE_WAIT: u32 = 8;
    const LAST_ACK: u32 = 9;
    const CLOSING: u32 = 11;
    const SYN_SENT: u32 = 2;
    let before = ctx.arg(0);
    // It never was one; or what is known is of an earlier connection of the socket.
    if before == SYN_SENT || socket.peer != tuple.remote || socket.peer_port != u32::from(tuple.remote_port) {
        return;
    }
    // SAFETY: the context is valid while the program runs.
    let (acknowledged, received) = unsafe {
        let ops = ctx.ops;
        (read_volatile(&raw const (*ops).bytes_acked), read_volatile(&raw const (*ops).bytes_received))
    };
    // SYN and FIN count as a byte each. Where the application has closed before its peer, the peer's FIN mostly comes in time to
    // be counted; where it does not, this is a byte short.
    let sent_fin = u64::from(before == FIN_WAIT2 || before == LAST_ACK || before == CLOSING);
    let got_fin = u64::from(sent_fin == 1 || before == CLOSE_WAIT);
    let end = NativeEnd {
        tuple: *tuple,
        netns: socket.netns,
        generation: socket.generation,
        owner,
        sent: acknowledged.saturating_sub(1 + sent_fin),
        received: received.saturating_sub(got_fin),
        nanoseconds: now().saturating_sub(socket.started),
    };
    if NATIVE_ENDS.output(end, 0).is_err() {
        state::count(counter::NATIVE_LOST);
    }
}

/// Returns the namespace of the enrolled pod of this node that has an address.
#[inline(always)]
fn namespace_of(address: &Address) -> Option<u64> {
    // SAFETY: the number is copied at once.
    unsafe { LOCAL.get(address) }.copied()
}

/// Returns the monotonic clock's nanoseconds.
#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_ktime_get_ns() }
}
