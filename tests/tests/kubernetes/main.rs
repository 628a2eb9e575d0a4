//! What a user installs, on a real cluster: the image, the chart by helm, pods with real programs, probes of a real kubelet, the CNI
//! plugin called by a real containerd.
//!
//! All tests share one cluster with Culvert in it, each in a namespace of its own. Those that take something of the cluster away
//! run alone.

mod addresses;
mod authority;
mod changes;
mod enrolment;
mod failure;
mod install;
mod killed;
mod rights;
mod traces;
mod update;
mod world;
