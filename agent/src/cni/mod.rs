//! The CNI plugin `culvert cni`: the last of a node's chain (CNI specification 1.0 and 1.1).
//!
//! It asks the node's agent over a unix socket, and lets ADD succeed once the pod is enrolled. Owns the protocol of both
//! sides, what the plugin does while no agent runs, and the plugin's place in the node's configuration.
