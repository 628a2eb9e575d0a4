//! `connect`: redirects what goes into the mesh to the agent, and notes where it was to go.
//!
//! The hook runs for every `connect` of every process, for TCP Fast Open's `sendto` and for io_uring alike, before the
//! kernel picks a source. Not for AF_UNSPEC (`__inet_stream_connect` disconnects first), and not for a socket that is
//! connected or connecting already, so that a fork gains nothing by connecting a captured socket again.

use core::ptr::read_volatile;

use aya_ebpf::{
    bindings::bpf_sock,
    btf_maps::lpm_trie::Key,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_set_retval, bpf_skc_to_mptcp_sock},
    programs::SockAddrContext,
};

use agent_ebpf::{Address, LAST_REDIRECT_PORT, Pod, Socket, action, counter, kind};

use crate::{
    context::{self, IPPROTO_TCP},
    native, node,
    state::{self, DESTINATIONS, HAS_MPTCP_SOCK, HAS_SET_RETVAL, RANGES},
};

/// Why a connect fails.
pub(crate) enum Refusal {
    /// The destination is to be refused.
    Destination,
    /// There is no memory to note the destination.
    Overload,
    /// The pod has no address of the destination's family.
    NoAddress,
    /// The socket is bound to loopback, from where nothing outside can be reached.
    BoundToLoopback,
}

impl Refusal {
    /// Counts the refusal and chooses the error that `connect` returns, the one that plain TCP would give.
    #[inline(always)]
    pub(crate) fn report(self) {
        const EINVAL: i32 = 22;
        const ENETUNREACH: i32 = 101;
        const ENOBUFS: i32 = 105;
        const ECONNREFUSED: i32 = 111;
        let (counter, errno) = match self {
            Self::Destination => (counter::REFUSED_DESTINATION, ECONNREFUSED),
            Self::Overload => (counter::REFUSED_OVERLOAD, ENOBUFS),
            Self::NoAddress => (counter::REFUSED_UNREACHABLE, ENETUNREACH),
            Self::BoundToLoopback => (counter::REFUSED_UNREACHABLE, EINVAL),
        };
        state::count(counter);
        if HAS_SET_RETVAL.load() != 0 {
            // SAFETY: the helper takes a number.
            unsafe { bpf_set_retval(-errno) };
        }
    }
}

/// Where a captured connection is sent instead.
struct Redirect {
    to: Address,
    port: u16,
}

#[inline(always)]
pub(crate) fn connect4(ctx: &SockAddrContext) -> Result<(), Refusal> {
    let (address, port) = context::user4(ctx.sock_addr);
    if let Some(Redirect { to, port }) = decide(ctx, address, port)? {
        context::set_user4(ctx.sock_addr, &to, port);
    }
    Ok(())
}

#[inline(always)]
pub(crate) fn connect6(ctx: &SockAddrContext) -> Result<(), Refusal> {
    let (address, port) = context::user6(ctx.sock_addr);
    if let Some(Redirect { to, port }) = decide(ctx, address, port)? {
        context::set_user6(ctx.sock_addr, &to, port);
    }
    Ok(())
}

/// Decides on a connect to `address`; none means that it is let alone.
#[inline(always)]
fn decide(ctx: &SockAddrContext, address: Address, port: u16) -> Result<Option<Redirect>, Refusal> {
    // SAFETY: the context is valid while the program runs; volatile as in `context`.
    let (sk, protocol) = unsafe {
        let ctx = ctx.sock_addr;
        ((*ctx).__bindgen_anon_1.sk, read_volatile(&raw const (*ctx).protocol))
    };
    if protocol != IPPROTO_TCP {
        return Ok(None); // the hook runs for UDP too; for MPTCP it is the subflow that connects, which is TCP
    }
    // SAFETY: the helper takes the context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    // What an earlier connect left in a pod that has been un-enrolled since needs no clearing: it names the peer that
    // it holds for.
    let Some(pod) = state::pod_of(netns) else {
        node::connect(sk, netns, address, port);
        return Ok(None);
    };
    if state::socket(sk).is_some_and(|known| known.kind == kind::AGENT || known.kind == kind::DIAL) {
        return Ok(None);
    }
    state::forget(sk);

    if address.is_unspecified() || address.is_loopback() {
        return Ok(None); // `connect` to 0.0.0.0 or :: means loopback
    }
    if pod.owns(&address) {
        if port <= LAST_REDIRECT_PORT {
            let own = Socket::new(kind::OWN, (address, port.into()), (address, port.into()));
            return if state::remember(sk, own) { Ok(None) } else { Err(Refusal::Overload) };
        }
        return Ok(None);
    }
    if pod.captures == 0 {
        return Ok(None);
    }
    match action_of(address) {
        action::CAPTURE => {}
        action::REFUSE => return Err(Refusal::Destination),
        _ => return Ok(None),
    }

    let local = context::local_end(sk);
    if native::connect(sk, netns, &address, port, &local.0) {
        return Ok(None);
    }
    let redirect = redirect(local, pod, &address)?;
    let peer = (redirect.to, redirect.port.into());
    let captured = Socket::new(kind::CAPTURED, (address, port.into()), peer);
    if !state::remember(sk, captured) {
        return Err(Refusal::Overload);
    }
    state::count(counter::CAPTURED);
    Ok(Some(redirect))
}

/// Returns what is to happen to connections to an address. An address that nobody knows, inside a configured pod range,
/// is the agent's to wait for.
#[inline(always)]
fn action_of(address: Address) -> u32 {
    // SAFETY: the number is copied at once.
    if let Some(action) = unsafe { DESTINATIONS.get(address) } {
        return *action;
    }
    if RANGES.get(&Key::new(128, address)).is_some() { action::CAPTURE } else { action::PASS }
}

/// Picks the pod's own address, so that the kernel picks it as the source too and the application sees the local
/// address that it expects, and a random port, so that the pod's captured connections do not share one space of source
/// ports. Never the port that the socket is bound to: that would connect it to itself.
#[inline(always)]
fn redirect((source, bound): (Address, u16), pod: &Pod, address: &Address) -> Result<Redirect, Refusal> {
    let to = if address.is_v4() { pod.redirect4 } else { pod.redirect6 };
    if to.is_zero() {
        return Err(Refusal::NoAddress);
    }
    if source.is_loopback() {
        return Err(Refusal::BoundToLoopback);
    }
    // SAFETY: the helper takes nothing.
    let random = unsafe { bpf_get_prandom_u32() };
    let mut port = 1 + (random % u32::from(LAST_REDIRECT_PORT)) as u16;
    if port == bound {
        port = 1 + port % LAST_REDIRECT_PORT;
    }
    Ok(Redirect { to, port })
}

/// Returns whether a socket is the subflow of an MPTCP connection; true also where the kernel cannot tell.
#[inline(always)]
pub(crate) fn is_mptcp_subflow(sk: *mut bpf_sock) -> bool {
    if HAS_MPTCP_SOCK.load() == 0 {
        return true;
    }
    // SAFETY: the verifier has seen that `sk` is a socket; the result is only compared.
    !unsafe { bpf_skc_to_mptcp_sock(sk.cast()) }.is_null()
}
