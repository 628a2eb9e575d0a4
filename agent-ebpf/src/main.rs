//! Culvert's eBPF programs: the maps, and the entry points as shims over one file a hook.
//!
//! ```text
//! connect ──► SOCKETS (socket) ──► sockops TCP_CONNECT ──► HANDSHAKES (tuple) ──► sk_lookup: which listener
//!                    │                                          │
//!                    ▼                                          ▼
//!              getpeername: the destination asked for     sockops PASSIVE_ESTABLISHED ──► SOCKETS (accepted socket):
//!                                                         the agent reads the destination, the application sees the client
//! ```
//!
//! Plaintext from outside a pod is `sk_lookup`'s alone: by the pod's rules it goes to the application or to the agent, or is
//! refused. The rules are the agent's, derived from policy. `node` tells the node's own connections apart.
//!
//! Two pods of this node may be permitted to connect without the agent: `native`.
//!
//! The shim alone says what an error means: for an enrolled pod an error denies. Nothing here decides on policy.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        unsafe_code,
        reason = "contexts, helpers and map values are raw pointers; the verifier checks their use"
    )
)]

#[cfg(target_arch = "bpf")]
mod connect;
#[cfg(target_arch = "bpf")]
mod context;
#[cfg(target_arch = "bpf")]
mod established;
#[cfg(target_arch = "bpf")]
mod lookup;
#[cfg(target_arch = "bpf")]
mod names;
#[cfg(target_arch = "bpf")]
mod native;
#[cfg(target_arch = "bpf")]
mod node;
#[cfg(target_arch = "bpf")]
mod state;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        macros::{cgroup_sock_addr, sk_lookup, sock_ops},
        programs::{SkLookupContext, SockAddrContext, SockOpsContext},
    };

    use super::{connect, established, lookup, names};

    /// The verdict of a cgroup hook that lets the call go on.
    const PROCEED: i32 = 1;
    /// The verdict of a cgroup hook that fails the call, with EPERM if nothing else was set.
    const FAIL: i32 = 0;

    #[cgroup_sock_addr(connect4)]
    fn culvert_conn4(ctx: SockAddrContext) -> i32 {
        verdict(connect::connect4(&ctx))
    }

    #[cgroup_sock_addr(connect6)]
    fn culvert_conn6(ctx: SockAddrContext) -> i32 {
        verdict(connect::connect6(&ctx))
    }

    #[inline(always)]
    fn verdict(result: Result<(), connect::Refusal>) -> i32 {
        match result {
            Ok(()) => PROCEED,
            Err(refusal) => {
                refusal.report();
                FAIL
            }
        }
    }

    #[cgroup_sock_addr(getpeername4)]
    fn culvert_peer4(ctx: SockAddrContext) -> i32 {
        names::getpeername4(&ctx);
        PROCEED
    }

    #[cgroup_sock_addr(getpeername6)]
    fn culvert_peer6(ctx: SockAddrContext) -> i32 {
        names::getpeername6(&ctx);
        PROCEED
    }

    #[sock_ops]
    fn culvert_sockops(ctx: SockOpsContext) -> u32 {
        established::sockops(&ctx);
        1
    }

    #[sk_lookup]
    fn culvert_lookup(ctx: SkLookupContext) -> u32 {
        lookup::lookup(&ctx)
    }
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
