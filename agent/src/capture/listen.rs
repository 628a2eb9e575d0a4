//! A pod's listeners: where `sk_lookup` hands captured, HBONE and plaintext connections to.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
};

use agent_ebpf::listener;
use rand::Rng as _;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{Error, NetNs, dial::agent_mark, reset_on_close, tables::Tables};

/// Where listeners bind: above the default range of ephemeral ports, so that no connection of the pod has the port, and
/// where few applications listen: one that binds 0.0.0.0 meets EADDRINUSE on a port where 127.0.0.1 listens.
const PORTS: std::ops::RangeInclusive<u16> = 61000..=65535;

/// How many ports are tried before giving up.
const ATTEMPTS: u32 = 64;

/// The length of the accept queue; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// The listeners of one pod, by `agent_ebpf::listener`; none for a family in which the pod has no address. Plaintext has
/// one wherever it can be: it may come to an address that is not one of the pod's, such as that of a second interface.
#[derive(Debug)]
pub(super) struct Listeners([Option<TcpListener>; listener::COUNT as usize]);

impl Listeners {
    /// Binds what the pod's addresses need, inside its namespace.
    pub(super) fn bind(netns: &NetNs, addresses: &[IpAddr]) -> Result<Self, Error> {
        let v4 = addresses.iter().any(IpAddr::is_ipv4).then_some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let v6 = addresses.iter().any(IpAddr::is_ipv6).then_some(IpAddr::V6(Ipv6Addr::LOCALHOST));
        let bind = |at: Option<IpAddr>| at.map(bind).transpose();
        let bound = netns.run(|| {
            let plain4 = bind(v4)?.or_else(|| self::bind(Ipv4Addr::LOCALHOST.into()).ok());
            let plain6 = bind(v6)?.or_else(|| self::bind(Ipv6Addr::LOCALHOST.into()).ok());
            // In the order of `agent_ebpf::listener`.
            let listeners = [bind(v4)?, bind(v6)?, bind(v4)?, bind(v6)?, plain4, plain6];
            // Accepted sockets inherit all of these, from the moment on when they are in the queue.
            for listener in listeners.iter().flatten() {
                // What is accepted has the local port that the client asked for, 15008 for one. With this, and only where
                // both sides have it, as servers do, an application can still listen on that port. Not before our own
                // bind: that must not share a port with anybody.
                SockRef::from(listener).set_reuse_address(true)?;
            }
            for application in listeners[..2].iter().chain(&listeners[4..]).flatten() {
                reset_on_close(application)?;
                SockRef::from(application).set_tcp_nodelay(true)?;
            }
            io::Result::Ok(listeners)
        });
        bound.and_then(|bound| bound).map(Self).map_err(Error::netns(netns))
    }

    /// Returns the ports, zero where there is no listener.
    pub(super) fn ports(&self) -> io::Result<[u16; listener::COUNT as usize]> {
        let mut ports = [0; listener::COUNT as usize];
        for (port, listener) in ports.iter_mut().zip(&self.0) {
            if let Some(listener) = listener {
                *port = listener.local_addr()?.port();
            }
        }
        Ok(ports)
    }

    /// Puts the listeners in their places, from where `sk_lookup` takes them. What they accept is known for the agent's,
    /// from the moment on when it exists.
    pub(super) fn publish(&self, tables: &Tables, slot: u32) -> Result<(), Error> {
        for (which, listener) in (0..).zip(&self.0) {
            match listener {
                Some(listener) => {
                    tables.mark(listener, &agent_mark())?;
                    tables.set_listener(slot, which, listener)?;
                }
                None => tables.clear_listener(slot, which)?,
            }
        }
        Ok(())
    }

    /// Returns descriptors of their own for two of the listeners.
    pub(super) fn duplicate(&self, which: [u32; 2]) -> io::Result<Vec<TcpListener>> {
        which
            .iter()
            .filter_map(|which| self.0[*which as usize].as_ref())
            .map(TcpListener::try_clone)
            .collect()
    }
}

fn bind(at: IpAddr) -> io::Result<TcpListener> {
    let domain = if at.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..ATTEMPTS {
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        if at.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        let port = rand::rng().random_range(PORTS);
        match socket.bind(&SocketAddr::new(at, port).into()) {
            Ok(()) => {
                socket.listen(BACKLOG)?;
                return Ok(socket.into());
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}
