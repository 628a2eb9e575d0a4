//! Reading addresses out of contexts and sockets in the way that the verifier allows.
//!
//! Every field is read by itself, always, and with its own width: the verifier refuses wider accesses ("invalid
//! bpf_context access") and a choice between two fields' addresses ("pointer arithmetic on sock prohibited"), which is
//! what the compiler makes of reads that it may merge or move. Hence the volatile reads, and hence the choice between
//! families only once both are read.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::{bpf_sk_lookup, bpf_sock, bpf_sock_addr, bpf_sock_ops};

use agent_ebpf::Address;

pub(crate) const AF_INET: u32 = 2;
pub(crate) const IPPROTO_TCP: u32 = 6;
pub(crate) const IPPROTO_MPTCP: u32 = 262;

/// Reads four words in network byte order.
///
/// # Safety
/// The pointer is to a field of a context or of a socket.
#[inline(always)]
unsafe fn words(field: *const [u32; 4]) -> Address {
    let word = field.cast::<u32>();
    // SAFETY: the caller's promise.
    unsafe {
        Address([
            read_volatile(word),
            read_volatile(word.add(1)),
            read_volatile(word.add(2)),
            read_volatile(word.add(3)),
        ])
    }
}

/// Takes a port as contexts have it: network byte order in the low half of a word.
#[inline(always)]
fn host_port(port: u32) -> u16 {
    u16::from_be(port as u16)
}

/// Returns the address that a hook for IPv4 is about.
#[inline(always)]
pub(crate) fn user4(ctx: *const bpf_sock_addr) -> (Address, u16) {
    // SAFETY: the context is valid while the program runs.
    unsafe {
        let address = read_volatile(&raw const (*ctx).user_ip4);
        (Address::v4(address), host_port(read_volatile(&raw const (*ctx).user_port)))
    }
}

/// Returns the address that a hook for IPv6 is about.
#[inline(always)]
pub(crate) fn user6(ctx: *const bpf_sock_addr) -> (Address, u16) {
    // SAFETY: the context is valid while the program runs.
    unsafe { (words(&raw const (*ctx).user_ip6), host_port(read_volatile(&raw const (*ctx).user_port))) }
}

/// Replaces the address that a hook for IPv4 is about.
#[inline(always)]
pub(crate) fn set_user4(ctx: *mut bpf_sock_addr, address: &Address, port: u16) {
    // SAFETY: the context is valid while the program runs.
    unsafe {
        write_volatile(&raw mut (*ctx).user_ip4, address.0[3]);
        write_volatile(&raw mut (*ctx).user_port, u32::from(port.to_be()));
    }
}

/// Replaces the address that a hook for IPv6 is about.
#[inline(always)]
pub(crate) fn set_user6(ctx: *mut bpf_sock_addr, address: &Address, port: u16) {
    // SAFETY: the context is valid while the program runs.
    unsafe {
        let word = (&raw mut (*ctx).user_ip6).cast::<u32>();
        write_volatile(word, address.0[0]);
        write_volatile(word.add(1), address.0[1]);
        write_volatile(word.add(2), address.0[2]);
        write_volatile(word.add(3), address.0[3]);
        write_volatile(&raw mut (*ctx).user_port, u32::from(port.to_be()));
    }
}

/// Returns the address and port that a socket is bound to; zeroes where it is not.
#[inline(always)]
pub(crate) fn local_end(sk: *const bpf_sock) -> (Address, u16) {
    // SAFETY: the verifier knows that this is a socket.
    unsafe {
        let family = read_volatile(&raw const (*sk).family);
        let v4 = Address::v4(read_volatile(&raw const (*sk).src_ip4));
        let v6 = words(&raw const (*sk).src_ip6);
        let port = read_volatile(&raw const (*sk).src_port) as u16;
        (if family == AF_INET { v4 } else { v6 }, port)
    }
}

/// Returns whether a socket is bound to an interface.
#[inline(always)]
pub(crate) fn is_bound_to_device(sk: *const bpf_sock) -> bool {
    // SAFETY: the verifier knows that this is a socket.
    unsafe { read_volatile(&raw const (*sk).bound_dev_if) != 0 }
}

/// Returns a connecting or connected socket's ends, its own first.
#[inline(always)]
pub(crate) fn ends(ops: *const bpf_sock_ops) -> ((Address, u16), (Address, u16)) {
    // SAFETY: the context is valid while the program runs.
    unsafe {
        let family = read_volatile(&raw const (*ops).family);
        let local4 = Address::v4(read_volatile(&raw const (*ops).local_ip4));
        let remote4 = Address::v4(read_volatile(&raw const (*ops).remote_ip4));
        let local6 = words(&raw const (*ops).local_ip6);
        let remote6 = words(&raw const (*ops).remote_ip6);
        // In host byte order, unlike the other one: that is in network byte order, in the upper half of the word.
        let local_port = read_volatile(&raw const (*ops).local_port) as u16;
        let remote_port = host_port(read_volatile(&raw const (*ops).remote_port) >> 16);
        let v4 = family == AF_INET || remote6.is_v4();
        let (local, remote) = if v4 { (local4, remote4) } else { (local6, remote6) };
        ((local, local_port), (remote, remote_port))
    }
}

/// A packet that looks for a listener.
pub(crate) struct Packet {
    pub(crate) v4: bool,
    pub(crate) source: (Address, u16),
    pub(crate) destination: (Address, u16),
}

impl Packet {
    #[inline(always)]
    pub(crate) fn read(lookup: *const bpf_sk_lookup) -> Self {
        // SAFETY: the context is valid while the program runs.
        unsafe {
            let v4 = read_volatile(&raw const (*lookup).family) == AF_INET;
            let source4 = Address::v4(read_volatile(&raw const (*lookup).remote_ip4));
            let destination4 = Address::v4(read_volatile(&raw const (*lookup).local_ip4));
            let source6 = words(&raw const (*lookup).remote_ip6);
            let destination6 = words(&raw const (*lookup).local_ip6);
            // Two bytes in network byte order, and a word in host byte order.
            let source_port = u16::from_be(read_volatile(&raw const (*lookup).remote_port));
            let port = read_volatile(&raw const (*lookup).local_port) as u16;
            Self {
                v4,
                source: (if v4 { source4 } else { source6 }, source_port),
                destination: (if v4 { destination4 } else { destination6 }, port),
            }
        }
    }
}
