//! Whether a pod's interface shares a layer-2 segment with others.
//!
//! What may go natively has to be on a link that leads to the node and to nobody else: a veth whose other end is in the node's
//! namespace and is no port of anything (a bridge, Open vSwitch, a bond, a VRF). Whatever is not just that is refused: macvlan,
//! ipvlan, SR-IOV, a veth into a third namespace. On a shared segment any other pod with `CAP_NET_RAW` could take over an address
//! by ARP, and read and inject what goes there.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _},
};

use nix::{ifaddrs::getifaddrs, net::if_::if_nametoindex, sys::socket::SockProtocol};

use super::{
    NetNs,
    netlink::{NLM_F_ACK, Netlink, attribute, find},
    netns,
};

const RTM_GETLINK: u16 = 18;
const RTM_GETNSID: u16 = 90;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_LINK_NETNSID: u16 = 37;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
/// `struct ifinfomsg`.
const IFINFO: usize = 16;
/// `struct rtgenmsg` with its padding.
const RTGEN: usize = 4;

/// Why what comes to a pod may be seen or sent by others than the node.
#[derive(Debug, thiserror::Error)]
pub enum Shared {
    /// The interface with the pod's address does not lead to the node and nowhere else.
    #[error("its interface with {address} {why}")]
    Interface {
        /// The pod's address.
        address: IpAddr,
        /// What the interface is.
        why: String,
    },
    /// The kernel does not tell.
    #[error("what its interface with {address} leads to cannot be told: {source}")]
    Unknown {
        /// The pod's address.
        address: IpAddr,
        /// Why.
        source: io::Error,
    },
}

/// One interface.
struct Link {
    kind: Option<String>,
    /// The other end's index.
    other: Option<u32>,
    /// The namespace of the other end, as the namespace asked calls it.
    namespace: Option<i32>,
    /// The interface that this one is a port of.
    master: Option<u32>,
}

/// Checks that the interface of a pod that holds `address` leads to `node` and to nobody else. Blocks for some microseconds.
pub(super) fn check(pod: &NetNs, node: &NetNs, address: IpAddr) -> Result<(), Shared> {
    match look(pod, node, address) {
        Ok(None) => Ok(()),
        Ok(Some(why)) => Err(Shared::Interface { address, why }),
        Err(source) => Err(Shared::Unknown { address, source }),
    }
}

/// Returns what is wrong with the interface.
fn look(pod: &NetNs, node: &NetNs, address: IpAddr) -> io::Result<Option<String>> {
    let inside = pod.run(|| -> io::Result<_> {
        let mut names = Vec::new();
        for link in getifaddrs()? {
            if link.address.as_ref().and_then(netns::ip) == Some(address.to_canonical()) {
                names.push(link.interface_name);
            }
        }
        let [name] = &names[..] else { return Ok(Err(names.len())) };
        let index = if_nametoindex(name.as_str())?;
        let routes = Netlink::open(SockProtocol::NetlinkRoute)?;
        Ok(Ok((index, link(&routes, index)?, namespace_id(&routes, node)?)))
    })??;
    let (index, inner, here) = match inside {
        Ok(found) => found,
        Err(interfaces) => return Ok(Some(format!("is one of {interfaces}"))),
    };
    if inner.kind.as_deref() != Some("veth") {
        let kind = inner.kind.as_deref().unwrap_or("no virtual one");
        return Ok(Some(format!("is {kind}, and not one end of a veth pair")));
    }
    if inner.master.is_some() {
        return Ok(Some("is a port of another one in the pod".to_owned()));
    }
    let (Some(other), Some(namespace)) = (inner.other, inner.namespace) else {
        return Ok(Some("does not say where its other end is".to_owned()));
    };
    if namespace != here {
        return Ok(Some("has its other end in another namespace than the node's".to_owned()));
    }
    let outer = node.run(|| -> io::Result<_> {
        let routes = Netlink::open(SockProtocol::NetlinkRoute)?;
        Ok((link(&routes, other)?, namespace_id(&routes, pod)?))
    })?;
    let (outer, there) = outer?;
    if outer.kind.as_deref() != Some("veth") || outer.other != Some(index) || outer.namespace != Some(there) {
        return Ok(Some("has an other end that is not what it says".to_owned()));
    }
    Ok(outer.master.is_some().then(|| "shares a bridge, or the like, with others".to_owned()))
}

fn link(routes: &Netlink, index: u32) -> io::Result<Link> {
    let mut body = vec![0; IFINFO];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    routes.send(RTM_GETLINK, NLM_F_ACK, &body)?;
    let mut found = None;
    routes.receive(|body| {
        let Some(attributes) = body.get(IFINFO..) else { return Ok(()) };
        let kind = find(attributes, IFLA_LINKINFO).and_then(|info| find(info, IFLA_INFO_KIND));
        let kind = kind.map(|kind| String::from_utf8_lossy(kind).trim_end_matches('\0').to_owned());
        let number = |attribute| word(find(attributes, attribute)?).map(u32::from_ne_bytes);
        found = Some(Link {
            kind,
            other: number(IFLA_LINK),
            namespace: number(IFLA_LINK_NETNSID).map(u32::cast_signed),
            master: number(IFLA_MASTER).filter(|master| *master != 0),
        });
        Ok(())
    })?;
    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Returns what the namespace asked calls another one; -1 where it has no name for it.
fn namespace_id(routes: &Netlink, of: &NetNs) -> io::Result<i32> {
    let mut body = vec![0; RTGEN];
    body.extend(attribute(NETNSA_FD, &of.as_fd().as_raw_fd().to_ne_bytes()));
    routes.send(RTM_GETNSID, NLM_F_ACK, &body)?;
    let mut found = None;
    routes.receive(|body| {
        found = body.get(RTGEN..).and_then(|attributes| word(find(attributes, NETNSA_NSID)?));
        Ok(())
    })?;
    // Nothing that has no name leads there, and no interface says -1 of itself.
    found
        .map(i32::from_ne_bytes)
        .filter(|id| *id >= 0)
        .ok_or_else(|| io::Error::other("no link leads to the namespace"))
}

fn word(value: &[u8]) -> Option<[u8; 4]> {
    value.first_chunk().copied()
}
