//! Which client ports a pod's application sees at the moment: unique among the live connections of one client, as they
//! would be without the mesh, since applications tell their clients' connections apart by them.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use rand::Rng as _;

/// The client addresses in use toward one pod.
#[derive(Clone, Debug, Default)]
pub(super) struct ClientPorts {
    used: Arc<Mutex<HashSet<SocketAddr>>>,
}

/// One client address in use; dropping it frees it.
#[derive(Debug)]
pub(super) struct ClientPort {
    address: SocketAddr,
    used: Arc<Mutex<HashSet<SocketAddr>>>,
}

/// How often to try another random port. With half of a client's ports in use, 32 tries fail once in four billion.
const TRIES: usize = 32;

impl ClientPorts {
    /// Reserves a port of the client: the one that its agent says it has, where that is free, else a random one. None
    /// where the client has nearly every port in use.
    pub(super) fn reserve(&self, client: IpAddr, hint: Option<u16>) -> Option<ClientPort> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let mut random = std::iter::repeat_with(|| rand::rng().random_range(1024..=u16::MAX)).take(TRIES);
        let hint = hint.filter(|port| *port != 0);
        let free = |port: &u16| used.insert(SocketAddr::new(client, *port));
        let port = hint.into_iter().chain(&mut random).find({
            let mut free = free;
            move |port| free(port)
        })?;
        Some(ClientPort { address: SocketAddr::new(client, port), used: self.used.clone() })
    }
}

impl ClientPort {
    /// Returns the client's address as the application is to see it.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for ClientPort {
    fn drop(&mut self) {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9));

    #[test]
    fn the_clients_own_port_is_taken_where_it_is_free() {
        let ports = ClientPorts::default();
        let first = ports.reserve(CLIENT, Some(4711)).unwrap();
        assert_eq!(first.address(), SocketAddr::new(CLIENT, 4711));
        let second = ports.reserve(CLIENT, Some(4711)).unwrap();
        assert_ne!(second.address(), first.address());
        drop(first);
        assert_eq!(ports.reserve(CLIENT, Some(4711)).unwrap().address().port(), 4711);
    }

    #[test]
    fn a_client_without_free_ports_gets_none_and_others_do() {
        let ports = ClientPorts::default();
        let all: Vec<_> = (1..=u16::MAX).map(|port| ports.reserve(CLIENT, Some(port)).unwrap()).collect();
        assert!(ports.reserve(CLIENT, Some(80)).is_none());
        assert!(ports.reserve("10.0.0.10".parse().unwrap(), Some(80)).is_some());
        drop(all);
        assert!(ports.used.lock().unwrap().is_empty());
    }
}
