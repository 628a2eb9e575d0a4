//! A Kubernetes cluster on this machine is a real one, and leaves nothing behind: what every suite over Kubernetes stands on.
//!
//! All tests but those of `leftovers` share one cluster, which is up in some ten seconds.

mod leftovers;
mod machine;
mod nodes;
mod pods;
mod server;
mod world;
