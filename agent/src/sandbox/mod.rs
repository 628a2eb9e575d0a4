//! Where a pod's network namespace is.
//!
//! Two sources: the container runtime's CNI ADD names it, before any process of the pod runs; otherwise the pod's sandbox
//! process is found by the pod's cgroup. Never just any process of the pod: one may sit in a namespace that it unshared
//! itself.
