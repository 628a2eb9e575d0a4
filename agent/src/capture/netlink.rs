//! Netlink, as far as it is used here: a request, the messages of its answer, and their attributes (netlink(7)).

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_ACK: u16 = 4;
pub(super) const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// The bits of an attribute's type that are not the type.
const NLA_TYPE_MASK: u16 = 0x3fff;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// The kernel fills buffers of 32 KiB at most (net/netlink/af_netlink.c, `netlink_recvmsg`).
const BUFFER: usize = 64 << 10;

/// A way to ask about the namespace that it was made in.
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    /// Opens the way into the namespace of the calling thread.
    pub(super) fn open(protocol: SockProtocol) -> io::Result<Self> {
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .map(Self)
            .map_err(Into::into)
    }

    /// Sends a request. One that asks for no dump needs [`NLM_F_ACK`], so that its answer has an end.
    pub(super) fn send(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
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
    pub(super) fn receive(&self, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
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
pub(super) fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
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

pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
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
        }
        assert_eq!(find(&[0; 8], 1), None, "a length of zero leads nowhere");
    }
}
