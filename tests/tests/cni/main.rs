//! The CNI plugin in a real chain: `cnitool` plays the container runtime, Debian's `bridge` and `host-local` make the
//! network, and the agent puts its plugin behind them.

mod apiserver;
mod away;
mod install;
mod machine;
mod pods;
mod reboot;
mod world;
