//! The TCP sockets of a network namespace: listing them, and ending one (sock_diag(7), <linux/inet_diag.h>).
//!
//! A list is read piece by piece and never held whole, however many sockets there are.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, BorrowedFd},
};

use nix::sys::socket::SockProtocol;

use super::{
    NetNs,
    netlink::{NLM_F_ACK, NLM_F_DUMP, Netlink, attribute, find},
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// Attributes of a request.
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
/// Attributes of an answer.
const INET_DIAG_SKV6ONLY: u16 = 11;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;

/// `struct inet_diag_msg`.
const MESSAGE: usize = 72;
/// `struct inet_diag_sockid`.
const ID: usize = 48;
/// What `idiag_timer` says of what is no socket any more and only waits.
const TIME_WAIT_TIMER: u8 = 3;

/// Sets of states, as the kernel numbers them (<net/tcp_states.h>).
pub(super) mod states {
    pub(in crate::capture) const ESTABLISHED: u32 = 1 << 1;
    /// A handshake under way, both as a socket (Fast Open) and as a mere request.
    pub(in crate::capture) const SYN_RECV: u32 = 1 << 3 | 1 << 12;
    pub(in crate::capture) const SYN_SENT: u32 = 1 << 2;
    pub(in crate::capture) const FIN_WAIT: u32 = 1 << 4 | 1 << 5;
    pub(in crate::capture) const CLOSE_WAIT: u32 = 1 << 8;
    /// Data may still be on its way.
    pub(in crate::capture) const LAST_ACK: u32 = 1 << 9;
    pub(in crate::capture) const CLOSING: u32 = 1 << 11;
    pub(in crate::capture) const LISTEN: u32 = 1 << 10;
}

/// The families, as the kernel numbers them.
const FAMILIES: [u8; 2] = [2, 10];

/// A way to ask about the sockets of the namespace that it was made in.
pub(super) struct SockDiag(Netlink);

/// What names a socket, cookie included: no later socket has the same name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct SocketId {
    family: u8,
    /// `struct inet_diag_sockid` as the kernel gave it.
    bytes: [u8; ID],
}

/// A socket of a list.
pub(super) struct Listed<'a> {
    pub(super) id: SocketId,
    /// A handshake under way, of which there is no socket yet.
    pub(super) is_request: bool,
    attributes: &'a [u8],
}

impl SockDiag {
    /// Opens the way into the namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        Netlink::open(SockProtocol::NetlinkSockDiag).map(Self)
    }

    /// Goes through the sockets of both families in some states, each with what a socket storage map knows of it.
    pub(super) fn list(
        &self,
        states: u32,
        storage: BorrowedFd<'_>,
        mut each: impl FnMut(&Listed<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let map = attribute(SK_DIAG_BPF_STORAGE_REQ_MAP_FD, &storage.as_raw_fd().to_ne_bytes());
        let storages = attribute(INET_DIAG_REQ_SK_BPF_STORAGES, &map);
        for family in FAMILIES {
            let question = SocketId { family, bytes: [0; ID] }.request(states);
            self.0.send(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &[question, storages.clone()].concat())?;
            self.0.receive(|body| Listed::parse(body).map_or(Ok(()), |listed| each(&listed)))?;
        }
        Ok(())
    }

    /// Ends a connection: the application gets ECONNABORTED, the peer a reset.
    ///
    /// # Errors
    /// ENOENT and ESTALE where there is no such socket any more; EOPNOTSUPP where the kernel has not been built for it.
    pub(super) fn destroy(&self, id: &SocketId) -> io::Result<()> {
        self.0.send(SOCK_DESTROY, NLM_F_ACK, &id.request(u32::MAX))?;
        self.0.receive(|_| Ok(()))
    }
}

/// Ends a connection of a namespace, as [`SockDiag::destroy`] does. That it has ended already is no error.
pub(super) fn end(netns: &NetNs, id: &SocketId) -> io::Result<()> {
    let diag = netns.run(SockDiag::open)??;
    diag.destroy(id).or_else(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ESTALE) => Ok(()),
        Some(libc::EOPNOTSUPP) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the kernel cannot end a connection: it was built without CONFIG_INET_DIAG_DESTROY",
        )),
        _ => Err(error),
    })
}

impl SocketId {
    /// Returns the socket's own end, canonical.
    pub(super) fn local(&self) -> SocketAddr {
        self.end(0, 4)
    }

    /// Returns the peer's end, canonical.
    pub(super) fn remote(&self) -> SocketAddr {
        self.end(2, 20)
    }

    /// Returns the socket's cookie, as the programs know it.
    pub(super) fn cookie(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.bytes[ID - 8..]);
        // Two words, the lower one first.
        let [low, high] = [0, 4].map(|at| {
            u64::from(u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
        });
        high << 32 | low
    }

    /// Returns a name that no socket has.
    pub(super) fn nobody() -> Self {
        Self { family: FAMILIES[0], bytes: [0; ID] }
    }

    fn end(&self, port: usize, address: usize) -> SocketAddr {
        let port = u16::from_be_bytes([self.bytes[port], self.bytes[port + 1]]);
        let mut octets = [0; 16];
        octets.copy_from_slice(&self.bytes[address..address + 16]);
        let [a, b, c, d, ..] = octets;
        let address = if self.family == FAMILIES[0] {
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        } else {
            IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
        };
        SocketAddr::new(address, port)
    }

    /// Returns whether the socket is of the IPv6 family, be its addresses IPv4-mapped or not.
    pub(super) fn is_ipv6(&self) -> bool {
        self.family != FAMILIES[0]
    }

    /// `struct inet_diag_req_v2`.
    fn request(&self, states: u32) -> Vec<u8> {
        const IPPROTO_TCP: u8 = 6;
        let mut request = vec![self.family, IPPROTO_TCP, 0, 0];
        request.extend(states.to_ne_bytes());
        request.extend(self.bytes);
        request
    }
}

impl<'a> Listed<'a> {
    /// Reads `struct inet_diag_msg` and what follows it; none for what is no socket any more.
    fn parse(body: &'a [u8]) -> Option<Self> {
        const SYN_RECV: u8 = 3;
        let (message, attributes) = body.split_at_checked(MESSAGE)?;
        let &[family, state, timer, _, ref rest @ ..] = message else { return None };
        let id = SocketId { family, bytes: *rest.first_chunk()? };
        let is_request = state == SYN_RECV;
        (timer != TIME_WAIT_TIMER).then_some(Self { id, is_request, attributes })
    }

    /// Returns whether a listener of the IPv6 family takes no IPv4.
    pub(super) fn is_ipv6_only(&self) -> bool {
        find(self.attributes, INET_DIAG_SKV6ONLY).is_some_and(|value| value.first() == Some(&1))
    }

    /// Returns what the socket storage map knows of the socket.
    pub(super) fn storage(&self) -> Option<&'a [u8]> {
        let storages = find(self.attributes, INET_DIAG_SK_BPF_STORAGES)?;
        find(find(storages, SK_DIAG_BPF_STORAGE)?, SK_DIAG_BPF_STORAGE_MAP_VALUE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_off_is_no_socket() {
        let bytes = [0; MESSAGE];
        for end in 0..bytes.len() {
            assert!(Listed::parse(&bytes[..end]).is_none());
        }
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let mut bytes = [0; ID];
        bytes[..4].copy_from_slice(&[0x1f, 0x90, 0, 80]);
        bytes[4..20].copy_from_slice(&"::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets());
        bytes[20..24].copy_from_slice(&[10, 0, 0, 2]);
        assert_eq!(SocketId { family: 10, bytes }.local().to_string(), "10.0.0.1:8080");
        assert_eq!(SocketId { family: 2, bytes }.remote().to_string(), "10.0.0.2:80");
    }
}
