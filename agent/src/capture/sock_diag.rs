//! The TCP sockets of a network namespace: listing them, and ending one (sock_diag(7), <linux/inet_diag.h>).
//!
//! A list is read piece by piece and never held whole, however many sockets there are.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Attributes of a request.
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
/// Attributes of an answer.
const INET_DIAG_SKV6ONLY: u16 = 11;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;

/// The bits of an attribute's type that are not the type.
const NLA_TYPE_MASK: u16 = 0x3fff;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct inet_diag_msg`.
const MESSAGE: usize = 72;
/// `struct inet_diag_sockid`.
const ID: usize = 48;
/// The kernel fills buffers of 32 KiB at most (net/netlink/af_netlink.c, `netlink_recvmsg`).
const BUFFER: usize = 64 << 10;

/// What `idiag_timer` says of what is no socket any more and only waits.
const TIME_WAIT_TIMER: u8 = 3;

/// Sets of states, as the kernel numbers them (<net/tcp_states.h>).
pub(super) mod states {
    pub(in crate::capture) const ESTABLISHED: u32 = 1 << 1;
    /// A handshake under way, both as a socket (Fast Open) and as a mere request.
    pub(in crate::capture) const SYN_RECV: u32 = 1 << 3 | 1 << 12;
    pub(in crate::capture) const FIN_WAIT: u32 = 1 << 4 | 1 << 5;
    pub(in crate::capture) const CLOSE_WAIT: u32 = 1 << 8;
    pub(in crate::capture) const LISTEN: u32 = 1 << 10;
}

/// The families, as the kernel numbers them.
const FAMILIES: [u8; 2] = [2, 10];

/// A way to ask about the sockets of the namespace that it was made in.
pub(super) struct SockDiag(OwnedFd);

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
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        Ok(Self(socket))
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
            self.send(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &[question, storages.clone()].concat())?;
            self.receive(|body| Listed::parse(body).map_or(Ok(()), |listed| each(&listed)))?;
        }
        Ok(())
    }

    /// Ends a connection: the application gets ECONNABORTED, the peer a reset.
    ///
    /// # Errors
    /// ENOENT and ESTALE where there is no such socket any more; EOPNOTSUPP where the kernel has not been built for it.
    pub(super) fn destroy(&self, id: &SocketId) -> io::Result<()> {
        self.send(SOCK_DESTROY, NLM_F_ACK, &id.request(u32::MAX))?;
        self.receive(|_| Ok(()))
    }

    fn send(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        // Well below the 32 bits of the length.
        let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
        let mut message = Vec::from(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        send(self.0.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }

    /// Receives an answer to its end, and hands on the body of each message.
    fn receive(&self, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..length];
            while let Some((kind, body, next)) = message(rest) {
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return acknowledged(body),
                    _ => each(body)?,
                }
                rest = next;
            }
        }
    }
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

/// `struct nlmsgerr` begins with the error, negative; zero is an acknowledgement.
fn acknowledged(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().map(|error| i32::from_ne_bytes(*error)) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Splits the first message off: its kind, its body, and the rest.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?);
    let length = usize::try_from(length).ok().filter(|length| *length >= HEADER)?;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, bytes.get(HEADER..length)?, rest))
}

/// Returns the value of an attribute.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?) & NLA_TYPE_MASK;
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // What is made here is a few bytes long.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_among_others_and_cut_ones_are_none() {
        let bytes = [attribute(1, b"abc"), attribute(20 | 0x8000, b"de")].concat();
        assert_eq!(find(&bytes, 1), Some(&b"abc"[..]));
        assert_eq!(find(&bytes, 20), Some(&b"de"[..]));
        assert_eq!(find(&bytes, 3), None);
        for end in 0..bytes.len() {
            let _ = find(&bytes[..end], 20);
            let _ = message(&bytes[..end]);
            let _ = Listed::parse(&bytes[..end]);
        }
        assert_eq!(find(&[0; 8], 1), None, "a length of zero leads nowhere");
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
