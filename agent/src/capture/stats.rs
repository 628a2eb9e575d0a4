//! What the kernel counts.

use agent_ebpf::counter;

use super::{Error, tables::Tables};

/// What the programs have counted since they were first loaded, and how full their maps are.
///
/// Counters go on over a restart of the agent. What passes untouched is not counted: it costs nothing that way.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stats {
    /// Connections redirected to the agent.
    pub captured: u64,
    /// Packets from outside that opened a connection to a pod's HBONE port.
    pub hbone: u64,
    /// Connections whose application sees the client's address.
    pub substituted: u64,
    /// Refused: a service without a ready endpoint.
    pub refused_destination: u64,
    /// Refused: too many handshakes of the pod were under way, or memory was short.
    pub refused_overload: u64,
    /// Refused: the pod has no address of the destination's family, or the socket was bound to loopback.
    pub refused_unreachable: u64,
    /// Refused: a packet to a redirection port that belongs to no captured connection.
    pub refused_unknown: u64,
    /// Refused: no agent listened.
    pub refused_no_agent: u64,
    /// Refused: straight to a listener of the agent.
    pub refused_direct: u64,
    /// Handshakes of captured connections and of the agent's own that are under way.
    pub handshakes: usize,
    /// Enrolled pods.
    pub pods: usize,
    /// Destinations.
    pub destinations: usize,
}

impl Stats {
    pub(super) fn read(tables: &Tables, pods: Vec<u64>) -> Result<Self, Error> {
        Ok(Self {
            captured: tables.counter(counter::CAPTURED)?,
            hbone: tables.counter(counter::HBONE)?,
            substituted: tables.counter(counter::SUBSTITUTED)?,
            refused_destination: tables.counter(counter::REFUSED_DESTINATION)?,
            refused_overload: tables.counter(counter::REFUSED_OVERLOAD)?,
            refused_unreachable: tables.counter(counter::REFUSED_UNREACHABLE)?,
            refused_unknown: tables.counter(counter::REFUSED_UNKNOWN)?,
            refused_no_agent: tables.counter(counter::REFUSED_NO_AGENT)?,
            refused_direct: tables.counter(counter::REFUSED_DIRECT)?,
            pods: pods.len(),
            handshakes: pods.into_iter().map(|netns| tables.handshakes(netns)).sum::<Result<_, _>>()?,
            destinations: tables.destinations(),
        })
    }
}
