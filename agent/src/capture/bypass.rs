//! Connections to a pod's applications that the agent does not carry: those that the kernel let pass, and those that
//! are older than enrolment.

use std::net::SocketAddr;

/// An established connection from outside to an application of the pod, without the agent.
#[derive(Clone, Debug)]
pub struct Bypass {
    /// The peer outside.
    pub source: SocketAddr,
    /// The pod's end.
    pub destination: SocketAddr,
}
