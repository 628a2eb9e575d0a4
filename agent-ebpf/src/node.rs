//! The node's own connections to its pods, such as the kubelet's probes, which no rule is asked about.
//!
//! They are told apart where they begin: by the network namespace of the socket and the cgroup of the process that connects,
//! neither of which a packet can forge. `sockops` notes the connection's ends before its SYN leaves, and until the socket is
//! closed; `sk_lookup` of the pod finds them. What is forwarded, or has the node's address for another reason, is not noted.

use aya_ebpf::{
    bindings::{BPF_ANY, bpf_sock},
    helpers::generated::bpf_get_current_ancestor_cgroup_id,
};

use agent_ebpf::{Address, KUBEPODS_LEVELS, Socket, Tuple, counter, kind};

use crate::state::{self, HOST, KUBEPODS, LOCAL, NODE};

/// A connect from a namespace that is not enrolled: marks the socket where it is one of the node's own, to a pod of the
/// mesh.
#[inline(always)]
pub(crate) fn connect(sk: *mut bpf_sock, netns: u64, address: Address, port: u16) {
    // A mark that an earlier connect left needs no clearing where this one goes elsewhere: it names its peer.
    // SAFETY: what it points to is not used.
    if netns != HOST.load() || unsafe { LOCAL.get(address) }.is_none() {
        return;
    }
    state::forget(sk);
    if is_in_a_pod() {
        return;
    }
    let (port, peer_port) = (port.into(), port.into());
    let own = Socket::new(kind::NODE, (address, port), (address, peer_port));
    if !state::remember(sk, own) {
        state::count(counter::NODE_OVERLOAD);
    }
}

/// Returns whether the process is in a pod that shares the node's network, or may be.
#[inline(always)]
fn is_in_a_pod() -> bool {
    // SAFETY: what it points to is not used.
    let is_kubepods = |id: u64| unsafe { KUBEPODS.get(id) }.is_some();
    if is_kubepods(0) {
        return true;
    }
    for level in 1..=KUBEPODS_LEVELS {
        // SAFETY: the helper takes a number.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
        if id != 0 && is_kubepods(id) {
            return true;
        }
    }
    false
}

/// The SYN is about to leave: notes the connection. False where there is no room: it is treated as anybody's.
#[inline(always)]
pub(crate) fn begin(tuple: &Tuple, owner: u64) -> bool {
    let noted = NODE.insert(tuple, owner, BPF_ANY.into()).is_ok();
    if !noted {
        state::count(counter::NODE_OVERLOAD);
    }
    noted
}

/// The socket is closed. By then the ends may belong to another one.
#[inline(always)]
pub(crate) fn end(tuple: &Tuple, owner: u64) {
    // SAFETY: the number is compared at once.
    if unsafe { NODE.get(tuple) }.is_some_and(|socket| *socket == owner) {
        let _ = NODE.remove(tuple);
    }
}

/// Returns whether a connection was noted: one of the node's own processes makes it.
#[inline(always)]
pub(crate) fn owns(tuple: &Tuple) -> bool {
    // SAFETY: what it points to is not used.
    unsafe { NODE.get(tuple) }.is_some()
}
