//! Connections to a pod's applications that the agent does not carry: those that the kernel let pass, and those that
//! are older than enrolment.
//!
//! The kernel does not say which side of a connection made it. What was accepted since the pod was enrolled is marked as
//! such; else inbound is what has the port of a listener of the pod. A connection that is older than the enrolment, and whose
//! listener has been closed since, looks like one of the pod's own, and is left alone.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
};

use agent_ebpf::{Address, HBONE_PORT, Pod, Socket, Tuple, from_bytes, kind, maps};

use super::{
    Capture, NetNs,
    native::is_native,
    sock_diag::{self, Listed, SockDiag, SocketId, states},
    sys,
};

/// What an application or its peer may still send or receive in.
const ALIVE: u32 = states::ESTABLISHED | states::SYN_RECV | states::FIN_WAIT | states::CLOSE_WAIT;

/// A connection from outside to an application of the pod, without the agent.
#[derive(Clone, Debug)]
pub struct Bypass {
    /// The peer outside.
    pub source: SocketAddr,
    /// The pod's end.
    pub destination: SocketAddr,
    id: SocketId,
}

/// Where the pod's applications listen; without an address, at every one of both families.
#[derive(Default)]
struct Listening(HashSet<(Option<IpAddr>, u16)>);

/// Looks for such connections of a pod.
pub(super) fn find(capture: &Capture, netns: &NetNs, pod: &Pod) -> io::Result<Vec<Bypass>> {
    let diag = netns.run(SockDiag::open)??;
    let sockets = sys::open_pin(&capture.pins.map(maps::SOCKETS))?;
    let mut listening = Listening::default();
    diag.list(states::LISTEN, sockets.as_fd(), |listener| {
        listening.add(listener);
        Ok(())
    })?;
    let mut found = Vec::new();
    diag.list(ALIVE, sockets.as_fd(), |socket| {
        let (local, remote) = (socket.id.local(), socket.id.remote());
        let inside = is_inside(pod, local.ip(), remote.ip());
        let inbound = mark(socket) == Some(kind::INBOUND) || listening.has(local);
        let native = known(socket).is_some_and(|known| is_native(&known, remote));
        if !inside && inbound && !native && !is_the_agents(socket, pod) {
            let tuple = tuple(capture.host.cookie(), remote, local);
            if !capture.tables.node().made(&tuple).map_err(io::Error::other)? {
                found.push(Bypass { source: remote, destination: local, id: socket.id });
            }
        }
        Ok(())
    })?;
    Ok(found)
}

/// Ends one.
pub(super) fn destroy(netns: &NetNs, bypass: &Bypass) -> io::Result<()> {
    sock_diag::end(netns, &bypass.id)
}

impl Listening {
    fn add(&mut self, listener: &Listed<'_>) {
        if is_marked(listener) {
            return;
        }
        let at = listener.id.local();
        let of_both = at.ip().is_unspecified() && listener.id.is_ipv6() && !listener.is_ipv6_only();
        self.0.insert(((!of_both).then_some(at.ip()), at.port()));
    }

    fn has(&self, at: SocketAddr) -> bool {
        let any: IpAddr = if at.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        [Some(at.ip()), Some(any), None].into_iter().any(|listens| self.0.contains(&(listens, at.port())))
    }
}

/// Returns whether the pod talks to itself, as `sk_lookup` sees it.
fn is_inside(pod: &Pod, local: IpAddr, remote: IpAddr) -> bool {
    remote.is_loopback() || remote == local || pod.owns(&Address::from(remote))
}

/// Returns whether the agent made or accepted the socket. A mere request inherits nothing yet; those to HBONE's port are
/// the agent's, whoever else listens there.
fn is_the_agents(socket: &Listed<'_>, pod: &Pod) -> bool {
    let local = socket.id.local();
    let hbone = local.port() == HBONE_PORT && pod.owns(&Address::from(local.ip()));
    is_marked(socket) || (socket.is_request && hbone)
}

fn is_marked(socket: &Listed<'_>) -> bool {
    mark(socket).is_some_and(|kind| matches!(kind, kind::AGENT | kind::DIAL))
}

/// Returns what the programs know the socket as.
fn mark(socket: &Listed<'_>) -> Option<u32> {
    known(socket).map(|known| known.kind)
}

fn known(socket: &Listed<'_>) -> Option<Socket> {
    socket.storage().and_then(from_bytes)
}

fn tuple(netns: u64, local: SocketAddr, remote: SocketAddr) -> Tuple {
    Tuple {
        netns,
        local: local.ip().into(),
        remote: remote.ip().into(),
        local_port: local.port(),
        remote_port: remote.port(),
        pad: 0,
    }
}
