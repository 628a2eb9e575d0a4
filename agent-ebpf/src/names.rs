//! `getpeername` and `accept`: the application sees the destination that it asked for, or the client in whose name the
//! agent connects.
//!
//! Runs for every such call on the node: a socket without storage costs one look at an empty pointer.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    bindings::bpf_sock, helpers::generated::bpf_get_netns_cookie, programs::SockAddrContext,
};

use agent_ebpf::{Address, Tuple, kind};

use crate::{
    connect::{AF_INET, IPPROTO_MPTCP, host_port},
    state::{self, NAMES},
};

#[inline(always)]
pub(crate) fn getpeername4(ctx: &SockAddrContext) {
    // SAFETY: the context is valid while the program runs. Volatile: see `connect4`.
    let (address, port) = unsafe {
        let ctx = ctx.sock_addr;
        (Address::v4(read_volatile(&raw const (*ctx).user_ip4)), read_volatile(&raw const (*ctx).user_port))
    };
    let Some((shown, port)) = shown(ctx, address, host_port(port)) else { return };
    if !shown.is_v4() {
        return;
    }
    // SAFETY: as above.
    unsafe {
        let ctx = ctx.sock_addr;
        write_volatile(&raw mut (*ctx).user_ip4, shown.0[3]);
        write_volatile(&raw mut (*ctx).user_port, u32::from(port.to_be()));
    }
}

#[inline(always)]
pub(crate) fn getpeername6(ctx: &SockAddrContext) {
    // SAFETY: as in `getpeername4`.
    let (address, port) = unsafe {
        let ctx = ctx.sock_addr;
        let words = [
            read_volatile(&raw const (*ctx).user_ip6[0]),
            read_volatile(&raw const (*ctx).user_ip6[1]),
            read_volatile(&raw const (*ctx).user_ip6[2]),
            read_volatile(&raw const (*ctx).user_ip6[3]),
        ];
        (Address(words), read_volatile(&raw const (*ctx).user_port))
    };
    let Some((shown, port)) = shown(ctx, address, host_port(port)) else { return };
    // SAFETY: as in `getpeername4`.
    unsafe {
        let ctx = ctx.sock_addr;
        write_volatile(&raw mut (*ctx).user_ip6[0], shown.0[0]);
        write_volatile(&raw mut (*ctx).user_ip6[1], shown.0[1]);
        write_volatile(&raw mut (*ctx).user_ip6[2], shown.0[2]);
        write_volatile(&raw mut (*ctx).user_ip6[3], shown.0[3]);
        write_volatile(&raw mut (*ctx).user_port, u32::from(port.to_be()));
    }
}

/// Returns the peer to show instead of the real one.
#[inline(always)]
fn shown(ctx: &SockAddrContext, peer: Address, port: u16) -> Option<(Address, u16)> {
    // SAFETY: as in `getpeername4`.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    if let Some(socket) = state::socket(sk) {
        let stands_in = socket.kind == kind::CAPTURED || socket.kind == kind::SUBSTITUTED;
        // What was noted for another peer is of an earlier connection of the socket.
        return (stands_in && socket.peer == peer && socket.peer_port == u32::from(port))
            .then_some((socket.address, socket.port as u16));
    }
    // SAFETY: as in `getpeername4`.
    if unsafe { read_volatile(&raw const (*ctx.sock_addr).protocol) } != IPPROTO_MPTCP {
        return None;
    }
    // An MPTCP socket is not the one that connected: that was its subflow. They share their ends.
    // SAFETY: the helper takes the context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    let (local, local_port) = local_end(sk);
    let tuple = Tuple { netns, local, remote: peer, local_port, remote_port: port, pad: 0 };
    // SAFETY: the value is copied at once.
    let name = unsafe { NAMES.get(tuple) }?;
    Some((name.address, name.port as u16))
}

#[inline(always)]
fn local_end(sk: *mut bpf_sock) -> (Address, u16) {
    // SAFETY: the verifier knows that the context's socket is one; the fields are read with their own width.
    unsafe {
        let address = if read_volatile(&raw const (*sk).family) == AF_INET {
            Address::v4(read_volatile(&raw const (*sk).src_ip4))
        } else {
            Address([
                read_volatile(&raw const (*sk).src_ip6[0]),
                read_volatile(&raw const (*sk).src_ip6[1]),
                read_volatile(&raw const (*sk).src_ip6[2]),
                read_volatile(&raw const (*sk).src_ip6[3]),
            ])
        };
        (address, read_volatile(&raw const (*sk).src_port) as u16)
    }
}
