//! The kernel datapath: `culvert::capture` and its programs, on real sockets in namespaces of their own.
//!
//! Needs root and nothing else: no `ip` command, no agent. Runs in a VM's initramfs too, and there under emulation: no
//! check depends on time.

mod bypass;
mod greeter;
mod guard;
mod inbound;
mod lifetime;
mod net;
mod netlink;
mod node;
mod outbound;
mod plaintext;
mod raw;
mod refusals;
mod untouched;
mod world;
