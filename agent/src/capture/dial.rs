//! Connections made from inside a pod's namespace, by sockets that the connect hook leaves alone.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use agent_ebpf::{Address, Socket as Mark, kind};
use rand::Rng as _;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

use super::{NetNs, reset_on_close, sys, tables::Tables};

/// Makes connections from inside one pod's namespace. Cheap to clone.
///
/// A connection outlives the enrolment: it belongs to the namespace, and keeps it alive.
#[derive(Clone, Debug)]
pub struct Dialler {
    netns: NetNs,
    tables: Arc<Tables>,
}

impl Dialler {
    pub(super) fn new(netns: NetNs, tables: Arc<Tables>) -> Self {
        Self { netns, tables }
    }

    /// Connects to a peer's agent from the pod's own address `source`.
    ///
    /// The socket is never captured and sends without delay (TCP_NODELAY). Its close is an orderly one, which delivers
    /// what the last tunnels still have to send; that a tunnel was cut shows in its missing END_STREAM. A connection to
    /// the pod's own HBONE port reaches the agent's listener of the pod, also where an application has that port.
    ///
    /// # Errors
    /// As `connect`; where the namespace has gone, or `source` is not in it.
    pub async fn dial_peer(&self, source: IpAddr, peer: SocketAddr) -> io::Result<TcpStream> {
        self.connect(Some(source), peer, &agent_mark()).await
    }

    /// Connects to a destination outside the mesh; the kernel chooses the source. The socket's close is a reset until
    /// [`end_cleanly`](super::end_cleanly) says otherwise. Otherwise as [`Self::dial_peer`].
    ///
    /// # Errors
    /// As `connect`; where the namespace has gone.
    pub async fn dial_plain(&self, target: SocketAddr) -> io::Result<TcpStream> {
        let stream = self.connect(None, target, &agent_mark()).await?;
        reset_on_close(&stream)?;
        Ok(stream)
    }

    /// Connects to the application at the pod's own address, so that its `accept` and `getpeername` say `client`.
    ///
    /// The connection comes from a random address of 127.0.0.0/8, or over IPv6 from the pod's own. What listens on
    /// 127.0.0.1 only is not reached. Otherwise as [`Self::dial_plain`].
    ///
    /// `client` must be of the target's family, and the caller sees to it that its port is of no other live connection
    /// of that client address to this pod: servers take (address, port) for a name. The real port of the client has
    /// that property as long as the client's connection lives; so has one that the caller picks from a set of its own.
    ///
    /// # Errors
    /// As `connect`; `InvalidInput` where `client` is of the other family.
    pub async fn dial_app(&self, target: SocketAddr, client: SocketAddr) -> io::Result<TcpStream> {
        let (target_ip, client_ip) = (target.ip().to_canonical(), client.ip().to_canonical());
        if target_ip.is_ipv4() != client_ip.is_ipv4() {
            let what = format!("the client {client} and the application {target} are of different families");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let mark = Mark {
            address: Address::from(client_ip),
            port: client.port().into(),
            kind: kind::DIAL,
            ..Mark::default()
        };
        let stream = match target_ip {
            // Some 16 million sources: neither TIME_WAIT nor a busy client runs out of ports.
            IpAddr::V4(_) => {
                let source = Ipv4Addr::from(0x7f00_0000 | rand::rng().random_range(2..0x00ff_ffff_u32));
                self.connect(Some(source.into()), target, &mark).await?
            }
            IpAddr::V6(_) => self.dial_app_v6(target, &mark).await?,
        };
        reset_on_close(&stream)?;
        Ok(stream)
    }

    /// IPv6 has only ::1 for loopback, and a reset never reaches it: the kernel wants the route to a loopback address by
    /// the interface that the packet came in by (net/ipv6/tcp_ipv6.c, `tcp_v6_send_response`, `rt6_need_strict`), which
    /// is that of the pod's address. A refused connection would time out, and one to an application that has closed would
    /// hang. So it comes from the address that it goes to, and from ::1 only once all ports of that are in TIME_WAIT:
    /// those of ::1 are used again after a second (net/ipv4/tcp_ipv4.c, `tcp_twsk_unique`).
    async fn dial_app_v6(&self, target: SocketAddr, mark: &Mark) -> io::Result<TcpStream> {
        let stream = match self.connect(Some(target.ip()), target, mark).await {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                self.connect(Some(Ipv6Addr::LOCALHOST.into()), target, mark).await?
            }
            connected => connected?,
        };
        // The kernel may choose the destination's port where nobody listens on it, and join the socket to itself.
        if stream.local_addr()? == stream.peer_addr()? {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Ok(stream)
    }

    async fn connect(&self, source: Option<IpAddr>, to: SocketAddr, mark: &Mark) -> io::Result<TcpStream> {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket =
            self.netns.run(|| Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP)))??;
        self.tables.mark(&socket, mark).map_err(io::Error::other)?;
        socket.set_tcp_nodelay(true)?;
        // For an application that begins to listen on the port that this connection gets.
        socket.set_reuse_address(true)?;
        if let Some(source) = source {
            sys::bind_address_no_port(&socket)?;
            socket.bind(&SocketAddr::new(source.to_canonical(), 0).into())?;
        }
        TcpSocket::from_std_stream(socket.into()).connect(to).await
    }
}

/// What the programs are to know of a socket that is the agent's and nothing else.
pub(super) fn agent_mark() -> Mark {
    Mark { kind: kind::AGENT, ..Mark::default() }
}
