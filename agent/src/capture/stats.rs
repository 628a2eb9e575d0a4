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
    /// Plaintext from outside that policy has to look at: packets that opened a connection to a plaintext listener.
    pub inspected: u64,
    /// Refused: plaintext that no policy permits.
    pub refused_plaintext: u64,
    /// Refusals of plaintext of which nobody was told: they came too fast.
    pub refusals_lost: u64,
    /// Connections of the node's own processes that no policy was asked about.
    pub node: u64,
    /// Connections of the node's own processes that could not be told from others: too many at once, or no memory.
    pub node_overload: u64,
    /// Connections between two pods of the node that a permit let go past the agent.
    pub native: u64,
    /// Refused: from a pod with a permit, and not a connection that it lets through; or one whose permit has gone.
    pub refused_native: u64,
    /// Native connections of whose end nobody was told: they came too fast.
    pub native_lost: u64,
    /// Permits for native connections.
    pub permits: usize,
    /// Handshakes of captured connections and of the agent's own that are under way.
    pub handshakes: usize,
    /// Enrolled pods.
    pub pods: usize,
    /// Destinations.
    pub destinations: usize,
}

impl Stats {
    /// Returns what is counted, each with its name as a metric and what it means.
    pub fn counters(&self) -> [(&'static str, &'static str, u64); 17] {
        [
            ("culvert_capture_connections", "Connections redirected to the agent", self.captured),
            ("culvert_capture_hbone", "Packets that opened a connection to an HBONE listener", self.hbone),
            (
                "culvert_capture_substituted",
                "Connections whose application sees the client's address",
                self.substituted,
            ),
            (
                "culvert_capture_refused_destination",
                "Refused in the kernel: a service without a ready endpoint",
                self.refused_destination,
            ),
            (
                "culvert_capture_refused_overload",
                "Refused in the kernel: too many handshakes of the pod under way, or no memory",
                self.refused_overload,
            ),
            (
                "culvert_capture_refused_unreachable",
                "Refused in the kernel: no address of the destination's family, or a socket bound to loopback",
                self.refused_unreachable,
            ),
            (
                "culvert_capture_refused_unknown",
                "Refused in the kernel: a redirection port without a captured connection",
                self.refused_unknown,
            ),
            (
                "culvert_capture_refused_no_agent",
                "Refused in the kernel: no agent ran",
                self.refused_no_agent,
            ),
            (
                "culvert_capture_refused_direct",
                "Refused in the kernel: straight to a listener of the agent",
                self.refused_direct,
            ),
            (
                "culvert_capture_inspected",
                "Packets that opened a plaintext connection for policy to look at",
                self.inspected,
            ),
            (
                "culvert_capture_refused_plaintext",
                "Refused in the kernel: plaintext that no policy permits",
                self.refused_plaintext,
            ),
            (
                "culvert_capture_refusals_lost",
                "Refusals of plaintext that are counted and not logged: they came too fast",
                self.refusals_lost,
            ),
            (
                "culvert_capture_node",
                "Connections of the node's own processes that no policy was asked about",
                self.node,
            ),
            (
                "culvert_capture_node_overload",
                "Connections of the node's own processes that were not noted, and are treated as anybody's",
                self.node_overload,
            ),
            (
                "culvert_capture_native",
                "Connections between two pods of the node that went past the agent by its permit",
                self.native,
            ),
            (
                "culvert_capture_refused_native",
                "Packets refused in the kernel: from a pod with a permit for native connections, and of none of them",
                self.refused_native,
            ),
            (
                "culvert_capture_native_lost",
                "Native connections that are in no log and no other metric: they ended too fast",
                self.native_lost,
            ),
        ]
    }

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
            inspected: tables.counter(counter::INSPECTED)?,
            refused_plaintext: tables.counter(counter::REFUSED_PLAINTEXT)?,
            refusals_lost: tables.counter(counter::LOST)?,
            node: tables.counter(counter::NODE)?,
            node_overload: tables.counter(counter::NODE_OVERLOAD)?,
            native: tables.counter(counter::NATIVE)?,
            refused_native: tables.counter(counter::REFUSED_NATIVE)?,
            native_lost: tables.counter(counter::NATIVE_LOST)?,
            permits: tables.permits().len(),
            pods: pods.len(),
            handshakes: pods.into_iter().map(|netns| tables.handshakes(netns)).sum::<Result<_, _>>()?,
            destinations: tables.destinations(),
        })
    }
}
