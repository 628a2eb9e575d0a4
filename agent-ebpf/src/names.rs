//! `getpeername` and `accept`: the application sees the destination that it asked for, or the client in whose name the
//! agent connects.
//!
//! Runs for every such call on the node: a socket without storage costs one look at an empty pointer.

use core::ptr::read_volatile;

use aya_ebpf::{helpers::generated::bpf_get_netns_cookie, programs::SockAddrContext};

use agent_ebpf::{Address, Tuple, kind};

use crate::{
    context::{self, IPPROTO_MPTCP},
    state::{self, NAMES},
};

#[inline(always)]
pub(crate) fn getpeername4(ctx: &SockAddrContext) {
    let (peer, port) = context::user4(ctx.sock_addr);
    if let Some((shown, port)) = shown(ctx, peer, port) {
        context::set_user4(ctx.sock_addr, &shown, port);
    }
}

#[inline(always)]
pub(crate) fn getpeername6(ctx: &SockAddrContext) {
    let (peer, port) = context::user6(ctx.sock_addr);
    if let Some((shown, port)) = shown(ctx, peer, port) {
        context::set_user6(ctx.sock_addr, &shown, port);
    }
}

/// Returns the peer to show instead of the real one.
#[inline(always)]
fn shown(ctx: &SockAddrContext, peer: Address, port: u16) -> Option<(Address, u16)> {
    // SAFETY: the context is valid while the program runs.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if let Some(socket) = state::socket(sk) {
        let stands_in = socket.kind == kind::CAPTURED || socket.kind == kind::SUBSTITUTED;
        // What was noted for another peer is of an earlier connection of the socket.
        return (stands_in && socket.peer == peer && socket.peer_port == u32::from(port))
            .then_some((socket.address, socket.port as u16));
    }
    // SAFETY: the context is valid while the program runs.
    if unsafe { read_volatile(&raw const (*ctx.sock_addr).protocol) } != IPPROTO_MPTCP {
        return None;
    }
    // An MPTCP socket is not the one that connected: that was its subflow. They share their ends.
    // SAFETY: the helper takes the context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    let (local, local_port) = context::local_end(sk);
    let tuple = Tuple { netns, local, remote: peer, local_port, remote_port: port, pad: 0 };
    // SAFETY: the value is copied at once.
    let name = unsafe { NAMES.get(tuple) }?;
    Some((name.address, name.port as u16))
}
