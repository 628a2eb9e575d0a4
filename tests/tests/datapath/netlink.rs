//! Just enough rtnetlink to join two namespaces by a veth pair: the suite runs where there is no `ip` command.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

// <linux/rtnetlink.h>, <linux/if_link.h>, <linux/if_addr.h>, <linux/veth.h>
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 2;
const RTA_GATEWAY: u16 = 5;
const IFF_UP: u32 = 1;
const NESTED: u16 = 0x8000;

/// Makes a veth pair: one end here, the other in another namespace, both of one name.
pub(crate) fn veth(name: &str, peer_netns: RawFd) -> io::Result<()> {
    let name = [name.as_bytes(), &[0]].concat();
    let peer =
        [ifinfo(0, 0), attr(IFLA_IFNAME, &name), attr(IFLA_NET_NS_FD, &peer_netns.to_ne_bytes())].concat();
    let data = attr(IFLA_INFO_DATA | NESTED, &attr(VETH_INFO_PEER | NESTED, &peer));
    let info = [attr(IFLA_INFO_KIND, b"veth\0"), data].concat();
    let body = [ifinfo(0, 0), attr(IFLA_IFNAME, &name), attr(IFLA_LINKINFO | NESTED, &info)].concat();
    request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &body)
}

/// Brings a link up.
pub(crate) fn up(index: u32) -> io::Result<()> {
    request(RTM_NEWLINK, 0, &ifinfo(index, IFF_UP))
}

/// Gives a link an address, without duplicate address detection.
pub(crate) fn address(index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
    let (family, octets) = parts(address);
    // struct ifaddrmsg { family, prefixlen, flags, scope, index }
    let mut body = vec![family, prefix, IFA_F_NODAD, 0];
    body.extend(index.to_ne_bytes());
    body.extend(attr(IFA_LOCAL, &octets));
    body.extend(attr(IFA_ADDRESS, &octets));
    request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &body)
}

/// Adds the default route.
pub(crate) fn default_route(gateway: IpAddr) -> io::Result<()> {
    const RT_TABLE_MAIN: u8 = 254;
    const RTPROT_BOOT: u8 = 3;
    const RTN_UNICAST: u8 = 1;
    let (family, octets) = parts(gateway);
    // struct rtmsg { family, dst_len, src_len, tos, table, protocol, scope, type, flags }
    let mut body = vec![family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST, 0, 0, 0, 0];
    body.extend(attr(RTA_GATEWAY, &octets));
    request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &body)
}

fn parts(address: IpAddr) -> (u8, Vec<u8>) {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    match address {
        IpAddr::V4(v4) => (AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (AF_INET6, v6.octets().to_vec()),
    }
}

fn ifinfo(index: u32, flags: u32) -> Vec<u8> {
    // struct ifinfomsg { family, pad, type: u16, index, flags, change }
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body
}

fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("attributes here are short");
    let mut bytes = Vec::from(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn request(kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let socket: OwnedFd =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    // struct nlmsghdr { length, type: u16, flags: u16, sequence, port }
    let mut message =
        Vec::from(u32::try_from(16 + body.len()).expect("requests here are short").to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0; 4096];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let word = |at: usize| <[u8; 4]>::try_from(&answer[at..at + 4]).expect("four bytes");
    if length < 20 || u16::from_ne_bytes([answer[4], answer[5]]) != NLMSG_ERROR {
        return Err(io::Error::other("netlink answered with something else than an acknowledgement"));
    }
    match i32::from_ne_bytes(word(16)) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}
