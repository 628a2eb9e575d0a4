//! What the eBPF programs and the agent share: the maps' names and bounds, what their numbers mean, the keys and values,
//! and the layout's version.

#![cfg_attr(target_arch = "bpf", no_std)]

mod types;
#[cfg(all(feature = "user", not(target_arch = "bpf")))]
mod user;

pub use types::{
    Address, Handshake, Name, NativeEnd, NativeKey, NativePermit, Pod, PodPort, Pulse, Rules, Socket, Tuple,
};
#[cfg(all(feature = "user", not(target_arch = "bpf")))]
pub use user::from_bytes;

/// The version of the maps below as they are pinned. Change it with every change of a type, a bound or a meaning.
pub const LAYOUT: u32 = 3;

/// How many pods of one node can be enrolled.
pub const MAX_PODS: u32 = 1024;
/// How many addresses one pod can have: one a family is what Kubernetes gives, twice that for pods with more.
pub const MAX_ADDRESSES: usize = 4;
/// How many destinations the mesh can have: pods and services.
pub const MAX_DESTINATIONS: u32 = 262_144;
/// How many pod ranges can be configured.
pub const MAX_RANGES: u32 = 256;
/// How many handshakes of one pod can be under way at once. An entry lives from the SYN to the end of the handshake,
/// microseconds on loopback, so that only an agent that does not accept lets them pile up, once its listener's queue
/// is full too.
pub const MAX_HANDSHAKES: u32 = 4_096;
/// How many captured MPTCP connections of the node can ask who their peer is.
pub const MAX_NAMES: u32 = 65_536;
/// How many ports of all pods can have a rule of their own for plaintext.
pub const MAX_PLAINTEXT: u32 = 65_536;
/// How many ports of one pod can.
pub const MAX_PLAINTEXT_OF_POD: usize = 256;
/// How many connections of the node's own processes to its pods can be under way or established.
pub const MAX_NODE_CONNECTIONS: u32 = 16_384;
/// How many cgroups can be told to hold pods. The kubelet makes one.
pub const MAX_KUBEPODS: u32 = 64;
/// How far below the root of the hierarchy such a cgroup is looked for: a node that is a container itself has it at 4.
pub const KUBEPODS_LEVELS: u32 = 4;
/// The size of the ring buffer of refusals, in bytes: some 4,600 of them.
pub const REFUSALS_BYTES: u32 = 1 << 18;

/// How many permits for native connections there can be.
pub const MAX_NATIVE: u32 = 16_384;
/// The size of the ring buffer of native connections that have ended, in bytes: some 2,500 of them.
pub const NATIVE_ENDS_BYTES: u32 = 1 << 18;

/// The port of HBONE.
pub const HBONE_PORT: u16 = 15008;
/// The last port that a captured connection is redirected to; the first is 1.
pub const LAST_REDIRECT_PORT: u16 = 1023;

/// Names of the maps, as the agent asks for them and as they are pinned.
pub mod maps {
    /// Netns cookie -> slot, a `u32`.
    pub const PODS: &str = "PODS";
    /// Slot -> [`super::Pod`].
    pub const TABLE: &str = "TABLE";
    /// [`super::Address`] -> an action, see [`super::action`].
    pub const DESTINATIONS: &str = "DESTINATIONS";
    /// Prefix of [`super::Address`] -> 1: an unknown address in it is captured.
    pub const RANGES: &str = "RANGES";
    /// Netns cookie -> a map of the pod's own: [`super::Tuple`] -> [`super::Handshake`].
    pub const HANDSHAKES: &str = "HANDSHAKES";
    /// [`super::Tuple`] -> [`super::Name`]: the peers of captured MPTCP connections.
    pub const NAMES: &str = "NAMES";
    /// Socket -> [`super::Socket`]. What a listener accepts begins with what is known of the listener.
    pub const SOCKETS: &str = "SOCKETS";
    /// Slot × [`super::listener::COUNT`] + [`super::listener`] -> listening socket.
    pub const LISTENERS: &str = "LISTENERS";
    /// [`super::PodPort`] -> [`super::plaintext`], where it differs from the rest of the pod.
    pub const PLAINTEXT: &str = "PLAINTEXT";
    /// [`super::Address`] of an enrolled pod of this node -> its netns cookie.
    pub const LOCAL: &str = "LOCAL";
    /// [`super::Tuple`] of a connection of the node's own processes to an enrolled pod -> its socket's cookie.
    pub const NODE: &str = "NODE";
    /// Id of a cgroup with pods in it -> 1. The id 0, which none has: the pods' cgroups cannot be told.
    pub const KUBEPODS: &str = "KUBEPODS";
    /// A ring buffer of [`super::Tuple`], with the pod's cookie: plaintext that was refused.
    pub const REFUSALS: &str = "REFUSALS";
    /// [`super::counter`] -> how often, a `u64` for each CPU.
    pub const COUNTERS: &str = "COUNTERS";

    /// [`super::NativeKey`] -> [`super::NativePermit`].
    pub const NATIVE: &str = "NATIVE";
    /// 0 -> [`super::Pulse`].
    pub const PULSE: &str = "PULSE";
    /// A ring buffer of [`super::NativeEnd`].
    pub const NATIVE_ENDS: &str = "NATIVE_ENDS";

    /// [`super::Tuple`] -> [`super::Handshake`]: the one that belongs into `HANDSHAKES` for the pod that a copy of the
    /// programs is loaded for. Not pinned by itself.
    pub const OWN_HANDSHAKES: &str = "OWN_HANDSHAKES";

    /// All that are pinned.
    pub const ALL: [&str; 17] = [
        PODS,
        TABLE,
        DESTINATIONS,
        RANGES,
        HANDSHAKES,
        NAMES,
        SOCKETS,
        LISTENERS,
        PLAINTEXT,
        LOCAL,
        NODE,
        KUBEPODS,
        REFUSALS,
        COUNTERS,
        NATIVE,
        PULSE,
        NATIVE_ENDS,
    ];
}

/// What happens to a connection of an enrolled pod to a destination.
pub mod action {
    /// It is redirected to the agent.
    pub const CAPTURE: u32 = 1;
    /// It fails with ECONNREFUSED.
    pub const REFUSE: u32 = 2;
    /// It is let alone.
    pub const PASS: u32 = 3;
}

/// What happens to plaintext from outside a pod.
pub mod plaintext {
    /// It goes to the agent. Zero, so that what nobody has written is looked at.
    pub const INSPECT: u32 = 0;
    /// It goes to the application.
    pub const PASS: u32 = 1;
    /// It is refused.
    pub const REFUSE: u32 = 2;
}

/// The listeners of a pod.
pub mod listener {
    /// For captured connections over IPv4.
    pub const OUTBOUND4: u32 = 0;
    /// For captured connections over IPv6.
    pub const OUTBOUND6: u32 = 1;
    /// For HBONE over IPv4.
    pub const HBONE4: u32 = 2;
    /// For HBONE over IPv6.
    pub const HBONE6: u32 = 3;
    /// For plaintext from outside over IPv4.
    pub const PLAIN4: u32 = 4;
    /// For plaintext from outside over IPv6.
    pub const PLAIN6: u32 = 5;
    /// How many there are.
    pub const COUNT: u32 = 6;
}

/// What the programs count.
pub mod counter {
    /// Connections redirected to the agent.
    pub const CAPTURED: u32 = 0;
    /// Connections from outside that were given to a pod's HBONE listener.
    pub const HBONE: u32 = 1;
    /// Refused: the destination says so (a service without a ready endpoint).
    pub const REFUSED_DESTINATION: u32 = 2;
    /// Refused: too many handshakes of the pod are under way, or there is no memory to note another.
    pub const REFUSED_OVERLOAD: u32 = 3;
    /// Refused: the pod has no address of the destination's family, or is bound to loopback.
    pub const REFUSED_UNREACHABLE: u32 = 4;
    /// Refused: the connection did not come through the connect hook.
    pub const REFUSED_UNKNOWN: u32 = 5;
    /// Refused: no agent listens for the pod.
    pub const REFUSED_NO_AGENT: u32 = 6;
    /// Refused: a process in the pod connected straight to a listener of the agent.
    pub const REFUSED_DIRECT: u32 = 7;
    /// Connections whose application sees the client's address instead of loopback.
    pub const SUBSTITUTED: u32 = 8;
    /// Plaintext from outside that was given to a pod's plaintext listener.
    pub const INSPECTED: u32 = 9;
    /// Plaintext from outside that was refused by rule.
    pub const REFUSED_PLAINTEXT: u32 = 10;
    /// Refusals of plaintext that found the ring buffer full.
    pub const LOST: u32 = 11;
    /// Connections that no rule was asked about: the node's own processes made them.
    pub const NODE: u32 = 12;
    /// Connections of the node's own processes that could not be noted: they are treated as anybody's.
    pub const NODE_OVERLOAD: u32 = 13;
    /// Connections that went natively.
    pub const NATIVE: u32 = 14;
    /// Refused: from a pod with a permit for native connections, and not one of them; or one whose permit has gone.
    pub const REFUSED_NATIVE: u32 = 15;
    /// Ends of native connections that found the ring buffer full.
    pub const NATIVE_LOST: u32 = 16;
    /// How many there are.
    pub const COUNT: u32 = 17;
}

/// What a socket or a handshake is.
pub mod kind {
    /// A captured connection, at the application's end.
    pub const CAPTURED: u32 = 1;
    /// A connection of the pod to itself, to a port that captured connections use too.
    pub const OWN: u32 = 2;
    /// A socket of the agent, and what its listeners accept: never captured.
    pub const AGENT: u32 = 3;
    /// A socket of the agent that connects to the application in a client's name.
    pub const DIAL: u32 = 4;
    /// A connection of the agent to the pod's own HBONE listener.
    pub const LOOPED: u32 = 5;
    /// A captured connection, at the agent's end.
    pub const ACCEPTED: u32 = 6;
    /// A connection made in a client's name, at the application's end.
    pub const SUBSTITUTED: u32 = 7;
    /// A connection of the node's own to an enrolled pod.
    pub const NODE: u32 = 8;
    /// A connection from outside that an application of an enrolled pod accepted itself.
    pub const INBOUND: u32 = 9;
    /// A native connection, at the end that connects.
    pub const NATIVE: u32 = 10;
    /// A native connection, at the end that accepts.
    pub const NATIVE_SERVER: u32 = 11;
}
