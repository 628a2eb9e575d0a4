//! `sockops`: carries what is known of a connecting socket over to the accepted one, by the two ends of the handshake.
//!
//! An entry lives from before the SYN leaves to the moment when the other end is established, or the socket is closed.
//! It is therefore never there for a later connection that happens to have the same ends; and what was accepted is found
//! by the accepted socket itself, never by addresses.

use core::ptr::read_volatile;

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, bpf_sock,
    },
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_getsockopt, bpf_setsockopt},
    programs::SockOpsContext,
};

use agent_ebpf::{HBONE_PORT, Handshake, LAST_REDIRECT_PORT, Name, Socket, Tuple, counter, kind};

use crate::{
    connect::is_mptcp_subflow,
    context, native, node,
    state::{self, NAMES},
};

#[inline(always)]
pub(crate) fn sockops(ctx: &SockOpsContext) {
    // SAFETY: the context is valid while the program runs.
    let (op, sk) = unsafe {
        let ops = ctx.ops;
        (read_volatile(&raw const (*ops).op), (*ops).__bindgen_anon_2.sk)
    };
    if sk.is_null() {
        return;
    }
    if op == BPF_SOCK_OPS_TCP_CONNECT_CB {
        connecting(ctx, sk);
    } else if op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
        accepted(ctx, sk);
    } else if op == BPF_SOCK_OPS_STATE_CB && ctx.arg(1) == BPF_TCP_CLOSE {
        closed(ctx, sk);
    }
}

/// The source port is known now, and the SYN has not left: notes what `sk_lookup` and the accepted socket need.
#[inline(always)]
fn connecting(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    let Some(socket) = state::socket(sk) else { return };
    let tuple = tuple(ctx);
    let kind = match socket.kind {
        // A state that names another peer is of an earlier connect.
        kind::CAPTURED | kind::OWN | kind::NODE | kind::NATIVE => {
            if socket.peer != tuple.remote || socket.peer_port != u32::from(tuple.remote_port) {
                return;
            }
            socket.kind
        }
        kind::DIAL => kind::DIAL,
        kind::AGENT => match loop_kind(&tuple) {
            Some(kind) => kind,
            None => return,
        },
        _ => return,
    };
    let owner = owner(ctx);
    if kind == kind::NODE {
        if node::begin(&tuple, owner) {
            watch(ctx);
        }
        return;
    }
    if kind == kind::NATIVE && socket.address != tuple.local {
        // Not from where the permit is for: the other end refuses it for want of an entry.
        return state::count(counter::REFUSED_NATIVE);
    }
    let entry = Handshake {
        owner,
        address: socket.address,
        port: socket.port,
        kind,
        netns: socket.netns,
        generation: socket.generation,
    };
    if !state::begin(&tuple, &entry) {
        // The SYN leaves whatever is returned here; `sk_lookup` refuses it for want of an entry.
        state::count(counter::REFUSED_OVERLOAD);
        return;
    }
    if kind == kind::CAPTURED && is_mptcp_subflow(sk) {
        let name = Name { owner, address: socket.address, port: socket.port, pad: 0 };
        // Without room the application sees the redirected address: a wrong name, and a connection that works.
        let _ = NAMES.insert(tuple, name, 0);
    }
    if kind == kind::CAPTURED || kind == kind::DIAL {
        never_pace(ctx);
    }
    watch(ctx);
}

/// Asks to be told when the socket is closed.
#[inline(always)]
fn watch(ctx: &SockOpsContext) {
    let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
}

/// The agent's own connections to its own pod: what needs an entry to get past `sk_lookup`.
#[inline(always)]
fn loop_kind(tuple: &Tuple) -> Option<u32> {
    let pod = state::pod_of(tuple.netns)?;
    if !pod.owns(&tuple.remote) {
        return None;
    }
    match tuple.remote_port {
        HBONE_PORT => Some(kind::LOOPED),
        1..=LAST_REDIRECT_PORT => Some(kind::OWN),
        _ => None,
    }
}

/// The other end of a handshake is established: moves what is known into its storage.
#[inline(always)]
fn accepted(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    let here = tuple(ctx);
    // The entry is keyed as the connecting side sees it.
    let there = Tuple {
        netns: here.netns,
        local: here.remote,
        remote: here.local,
        local_port: here.remote_port,
        remote_port: here.local_port,
        pad: 0,
    };
    let Some(Handshake { address, port, kind, .. }) = state::handshake(&there) else {
        if !native::accepted(&here, &there, sk) {
            inbound(&here, sk);
        }
        return;
    };
    let kind = match kind {
        kind::CAPTURED => kind::ACCEPTED,
        kind::DIAL => {
            state::count(counter::SUBSTITUTED);
            kind::SUBSTITUTED
        }
        _ => return state::end(&there),
    };
    never_pace(ctx);
    let known = Socket::new(kind, (address, port), (there.local, there.local_port.into()));
    // Without memory the agent finds no destination and refuses; an application sees loopback.
    let _ = state::remember(sk, known);
    state::end(&there);
}

/// Nobody in the pod has made this connection, and the agent does not carry it: it comes from outside to an application
/// of the pod. Whoever lists the pod's sockets cannot tell such a connection from one that the pod made, once the
/// application listens no more.
#[inline(always)]
fn inbound(here: &Tuple, sk: *mut bpf_sock) {
    let Some(pod) = state::pod_of(here.netns) else { return };
    // What the agent's listeners accept has inherited their mark.
    if here.remote.is_loopback() || pod.owns(&here.remote) || state::socket(sk).is_some() {
        return;
    }
    let (address, port) = (here.remote, here.remote_port.into());
    let known = Socket::new(kind::INBOUND, (address, port), (address, port));
    // Without memory it is told by its listener, as what is older than the pod's enrolment.
    let _ = state::remember(sk, known);
}

/// A connecting socket has ended: takes away what its handshake left, and the name that its peer had.
#[inline(always)]
fn closed(ctx: &SockOpsContext, sk: *mut bpf_sock) {
    let Some(socket) = state::socket(sk) else { return };
    let tuple = tuple(ctx);
    let owner = owner(ctx);
    if socket.kind == kind::NODE {
        return node::end(&tuple, owner);
    }
    if socket.kind == kind::NATIVE {
        native::closed(ctx, socket, &tuple, owner);
    }
    // By then the ends may belong to another socket already.
    if state::handshake(&tuple).is_some_and(|entry| entry.owner == owner) {
        state::end(&tuple);
    }
    // SAFETY: the number is compared at once.
    if socket.kind == kind::CAPTURED && unsafe { NAMES.get(tuple) }.is_some_and(|name| name.owner == owner) {
        let _ = NAMES.remove(tuple);
    }
}

/// Has one end of a connection between an application and the agent, both on this node, send as fast as the other reads,
/// where the congestion control that it has is one that paces (BBR): that sets a timer for nearly each piece
/// (net/ipv4/tcp_output.c, `tcp_pacing_check`), for bytes that leave the node in a tunnel, by whose congestion control they
/// are paced. To be called before the socket is established, when the kernel begins with it: a socket that has begun to pace
/// goes on. Where it fails, the socket stays as it is.
#[inline(always)]
fn never_pace(ctx: &SockOpsContext) {
    const SOL_TCP: i32 = 6;
    const TCP_CONGESTION: i32 = 13;
    let mut name = [0_u8; 16];
    // Every kernel has it.
    let mut reno = *b"reno";
    // SAFETY: the helpers take the context, and as many bytes as there are.
    unsafe {
        let (bytes, size) = (name.as_mut_ptr().cast(), name.len() as i32);
        let known = bpf_getsockopt(ctx.ops.cast(), SOL_TCP, TCP_CONGESTION, bytes, size) == 0;
        // "bbr", and its later versions.
        if known && name[0] == b'b' && name[1] == b'b' && name[2] == b'r' {
            let (bytes, size) = (reno.as_mut_ptr().cast(), reno.len() as i32);
            let _ = bpf_setsockopt(ctx.ops.cast(), SOL_TCP, TCP_CONGESTION, bytes, size);
        }
    }
}

#[inline(always)]
fn owner(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes the context.
    unsafe { bpf_get_socket_cookie(ctx.ops.cast()) }
}

/// Returns the socket's two ends as itself sees them.
#[inline(always)]
fn tuple(ctx: &SockOpsContext) -> Tuple {
    let ((local, local_port), (remote, remote_port)) = context::ends(ctx.ops);
    // SAFETY: the helper takes the context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.ops.cast()) };
    Tuple { netns, local, remote, local_port, remote_port, pad: 0 }
}
