//! The maps, and the few ways in which the hooks use them.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    Global,
    bindings::{
        BPF_ANY, BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE,
        bpf_map_type::BPF_MAP_TYPE_SK_STORAGE, bpf_sock,
    },
    btf_maps::{Array, HashMap, HashOfMaps, LpmTrie, PerCpuArray, RingBuf, SockMap},
    helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get},
    macros::btf_map,
};

use agent_ebpf::{
    Address, Handshake, MAX_ADDRESSES, MAX_DESTINATIONS, MAX_HANDSHAKES, MAX_KUBEPODS, MAX_NAMES, MAX_NATIVE,
    MAX_NODE_CONNECTIONS, MAX_PLAINTEXT, MAX_PODS, MAX_RANGES, NATIVE_ENDS_BYTES, Name, NativeEnd, NativeKey,
    NativePermit, Pod, PodPort, Pulse, REFUSALS_BYTES, Socket, Tuple, counter, listener,
};

/// Memory only for what there is: these maps are far larger than what a usual node needs.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

/// One pod's. Each pod has a map of its own, so that the kernel itself keeps a pod from taking more than its share.
type Handshakes = HashMap<Tuple, Handshake, { MAX_HANDSHAKES as usize }, ON_DEMAND>;

#[btf_map]
static PODS: HashMap<u64, u32, { MAX_PODS as usize }> = HashMap::new();
#[btf_map]
static TABLE: Array<Pod, { MAX_PODS as usize }> = Array::new();
#[btf_map]
pub(crate) static DESTINATIONS: HashMap<Address, u32, { MAX_DESTINATIONS as usize }, ON_DEMAND> =
    HashMap::new();
#[btf_map]
pub(crate) static RANGES: LpmTrie<Address, u32, { MAX_RANGES as usize }> = LpmTrie::new();
#[btf_map]
static HANDSHAKES: HashOfMaps<u64, Handshakes, { MAX_PODS as usize }> = HashOfMaps::new();
/// The map that a pod's own copy of `sk_lookup` looks into, and that [`HANDSHAKES`] has for the pod: made with each copy
/// of the object. Made by itself it would not fit: kernels before 6.2 compare what is known of the values' types.
#[btf_map]
pub(crate) static OWN_HANDSHAKES: Handshakes = Handshakes::new();
#[btf_map]
pub(crate) static NAMES: HashMap<Tuple, Name, { MAX_NAMES as usize }, ON_DEMAND> = HashMap::new();
#[btf_map]
static SOCKETS: Inherited<Socket> = Inherited::new();
#[btf_map]
pub(crate) static LISTENERS: SockMap<{ (MAX_PODS * listener::COUNT) as usize }> = SockMap::new();
#[btf_map]
pub(crate) static PLAINTEXT: HashMap<PodPort, u32, { MAX_PLAINTEXT as usize }, ON_DEMAND> = HashMap::new();
#[btf_map]
pub(crate) static LOCAL: HashMap<Address, u64, { MAX_PODS as usize * MAX_ADDRESSES }, ON_DEMAND> =
    HashMap::new();
#[btf_map]
pub(crate) static NODE: HashMap<Tuple, u64, { MAX_NODE_CONNECTIONS as usize }, ON_DEMAND> = HashMap::new();
#[btf_map]
pub(crate) static KUBEPODS: HashMap<u64, u32, { MAX_KUBEPODS as usize }> = HashMap::new();
#[btf_map]
pub(crate) static REFUSALS: RingBuf<Tuple, { REFUSALS_BYTES as usize }> = RingBuf::new();
#[btf_map]
pub(crate) static NATIVE: HashMap<NativeKey, NativePermit, { MAX_NATIVE as usize }, ON_DEMAND> =
    HashMap::new();
#[btf_map]
pub(crate) static PULSE: Array<Pulse, 1> = Array::new();
#[btf_map]
pub(crate) static NATIVE_ENDS: RingBuf<NativeEnd, { NATIVE_ENDS_BYTES as usize }> = RingBuf::new();
#[btf_map]
static COUNTERS: PerCpuArray<u64, { counter::COUNT as usize }> = PerCpuArray::new();

/// The network namespace of the node itself, by its cookie.
#[unsafe(no_mangle)]
pub(crate) static HOST: Global<u64> = Global::new(0);
/// Whether the kernel has `bpf_set_retval` for these programs (5.18); without it every refusal is EPERM.
#[unsafe(no_mangle)]
pub(crate) static HAS_SET_RETVAL: Global<u32> = Global::new(0);
/// Whether the kernel has `bpf_skc_to_mptcp_sock` (5.19); without it every socket is taken for an MPTCP one.
#[unsafe(no_mangle)]
pub(crate) static HAS_MPTCP_SOCK: Global<u32> = Global::new(0);

/// Storage of sockets that what a listener accepts inherits, from the moment on when it exists: aya's own does not.
#[repr(C)]
struct Inherited<T> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: a definition for the loader; nothing ever reads the pointers.
unsafe impl<T> Sync for Inherited<T> {}

impl<T> Inherited<T> {
    const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }
}

/// Adds one to a counter of this CPU.
#[inline(always)]
pub(crate) fn count(index: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: the slot is this CPU's own, and a program is not interrupted by another of its kind on the same CPU
        // in a way that matters for a counter.
        unsafe { *value += 1 }
    }
}

/// Returns the pod in a slot.
#[inline(always)]
pub(crate) fn pod_at(slot: u32) -> Option<&'static Pod> {
    TABLE.get(slot)
}

/// Returns the pod of a network namespace.
#[inline(always)]
pub(crate) fn pod_of(netns: u64) -> Option<&'static Pod> {
    // SAFETY: the number is copied at once.
    let slot = unsafe { *PODS.get(netns)? };
    let pod = pod_at(slot)?;
    // The slot may have changed hands since; a cookie is never reused.
    (pod.netns == netns).then_some(pod)
}

/// Returns what is known of a socket.
#[inline(always)]
pub(crate) fn socket(sk: *mut bpf_sock) -> Option<&'static mut Socket> {
    storage(sk, ptr::null_mut(), 0)
}

/// Notes what is known of a socket, in place of what was; false where there is no memory.
#[inline(always)]
pub(crate) fn remember(sk: *mut bpf_sock, mut value: Socket) -> bool {
    let Some(known) = storage(sk, &raw mut value, BPF_SK_STORAGE_GET_F_CREATE.into()) else { return false };
    // Only a new one has the value already; a socket that was accepted has what it inherited.
    *known = value;
    true
}

/// Forgets what was known of a socket.
#[inline(always)]
pub(crate) fn forget(sk: *mut bpf_sock) {
    // SAFETY: the verifier has seen that `sk` is a socket. That there is nothing to delete is no error.
    let _ = unsafe { bpf_sk_storage_delete(sockets(), sk.cast()) };
}

#[inline(always)]
fn storage(sk: *mut bpf_sock, value: *mut Socket, flags: u64) -> Option<&'static mut Socket> {
    // SAFETY: the verifier has seen that `sk` is a socket; the storage lives as long as the socket, which outlives the
    // program's run.
    unsafe { bpf_sk_storage_get(sockets(), sk.cast(), value.cast(), flags).cast::<Socket>().as_mut() }
}

#[inline(always)]
fn sockets() -> *mut c_void {
    ptr::from_ref(&SOCKETS).cast_mut().cast()
}

/// Returns the handshake of a pod under way between two ends.
#[inline(always)]
pub(crate) fn handshake(tuple: &Tuple) -> Option<Handshake> {
    // SAFETY: the value is copied at once.
    unsafe { HANDSHAKES.get(&tuple.netns)?.get(tuple) }.copied()
}

/// Notes a handshake, in place of what an earlier connection left; false where the pod has no room for it.
#[inline(always)]
pub(crate) fn begin(tuple: &Tuple, value: &Handshake) -> bool {
    // SAFETY: a map in a map lives until the program has run.
    unsafe { HANDSHAKES.get(&tuple.netns) }
        .is_some_and(|pod| pod.insert(tuple, value, BPF_ANY.into()).is_ok())
}

/// Removes a handshake.
#[inline(always)]
pub(crate) fn end(tuple: &Tuple) {
    // SAFETY: as in `begin`.
    if let Some(pod) = unsafe { HANDSHAKES.get(&tuple.netns) } {
        let _ = pod.remove(tuple);
    }
}
