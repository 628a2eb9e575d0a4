//! Packets that no socket made, as a process with CAP_NET_RAW can send them.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
};

use lab::Pod;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};

const TCP: u8 = 6;

/// Sends a SYN out of `pod`, whatever its source says. The source's port is the caller's to choose.
pub(crate) fn syn(pod: &Pod, from: SocketAddr, to: SocketAddr) {
    let (family, packet) = match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let (source, destination) = (source.octets(), destination.octets());
            // The kernel fills in the length and the checksum of the header (raw(7)).
            let header = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, TCP, 0, 0];
            let segment = segment(&source, &destination, from.port(), to.port());
            (AddressFamily::Inet, [&header[..], &source, &destination, &segment].concat())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let (source, destination) = (source.octets(), destination.octets());
            let segment = segment(&source, &destination, from.port(), to.port());
            let header = [0x60, 0, 0, 0, 0, segment.len() as u8, TCP, 64];
            (AddressFamily::Inet6, [&header[..], &source, &destination, &segment].concat())
        }
        _ => panic!("{from} and {to} are of different families"),
    };
    pod.run(|| {
        let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw).unwrap();
        // Port 0: to a raw socket of IPv6 it is a protocol's number.
        let to = SockaddrStorage::from(SocketAddr::new(to.ip(), 0));
        sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::empty()).unwrap();
    });
}

/// A TCP header with SYN set and its checksum right (RFC 9293 §3.1).
fn segment(source: &[u8], destination: &[u8], from: u16, to: u16) -> Vec<u8> {
    let mut tcp = [from.to_be_bytes(), to.to_be_bytes()].concat();
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, 2, 0xff, 0xff, 0, 0, 0, 0]);
    let length = tcp.len() as u8;
    // Zeroes do not count: this is the pseudo-header of both families.
    let pseudo = [source, destination, &[0, TCP, 0, length], &tcp].concat();
    let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    tcp[16..18].copy_from_slice(&(!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes());
    tcp
}
