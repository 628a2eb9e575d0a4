//! A node: a network namespace that routes between its pods and the other nodes.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{
        Once,
        atomic::{AtomicU16, Ordering},
    },
};

use anyhow::{Context, Result};

use crate::{NetNs, ip::batch, netns::sysctl};

/// The interface of a node that leads to the other nodes.
pub(crate) const WIRE: &str = "wire";

/// The bridge of pods that are on one.
const BRIDGE: &str = "cni0";

/// What nobody but the mesh answers for: services have addresses in these ranges.
const SERVICE_RANGES: [&str; 2] = ["10.96.0.0/16", "fd00:96::/32"];

/// A node of the mesh.
#[derive(Debug)]
pub struct Node {
    name: String,
    unique: String,
    index: u8,
    netns: NetNs,
    pods: AtomicU16,
    bridge: Once,
}

impl Node {
    /// Makes the namespace of the `index`th node (from 1), still without a wire.
    pub(crate) fn create(mesh: &str, name: &str, index: u8) -> Result<Self> {
        let unique = format!("{mesh}-{name}");
        let netns = NetNs::create(&unique, || {
            sysctl("ipv4/ip_forward", "1")?;
            sysctl("ipv6/conf/all/forwarding", "1")?;
            quick_addresses()
        })
        .with_context(|| format!("node {name}"))?;
        Ok(Self { name: name.to_owned(), unique, index, netns, pods: AtomicU16::new(1), bridge: Once::new() })
    }

    /// The name that people read: `node-a`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name that agents and manifests know, which no other run on this machine has (pins are kept by node name).
    pub fn unique_name(&self) -> &str {
        &self.unique
    }

    /// The node's namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// The node's own IPv4 address, on the wire.
    pub fn ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::new(172, 31, 0, self.index)
    }

    /// The node's own IPv6 address, on the wire.
    pub fn ipv6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfdff, 0, 0, 0, 0, 0, 0, self.index.into())
    }

    /// The interface that leads to the other nodes.
    pub fn wire(&self) -> &'static str {
        WIRE
    }

    /// Runs `f` on a fresh thread inside the node's namespace.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.netns.run(f)
    }

    /// A command that enters the node's namespace.
    pub fn command(&self, program: &str) -> Command {
        self.netns.command(program)
    }

    /// Listens on every address of the node.
    pub fn listen(&self, port: u16) -> io::Result<TcpListener> {
        self.netns.listen(port)
    }

    /// Connects from the node itself, as a kubelet's probe does.
    pub fn connect(&self, target: SocketAddr) -> io::Result<TcpStream> {
        self.netns.connect(target)
    }

    /// Gives the node's end of the wire its addresses, and routes to the other nodes' pods.
    pub(crate) fn join(&self, others: &[u8]) -> Result<()> {
        let (v4, v6) = (self.ipv4(), self.ipv6());
        let mut lines = vec![
            "link set lo up".to_owned(),
            format!("addr add {v4}/24 dev {WIRE}"),
            format!("addr add {v6}/64 dev {WIRE} nodad"),
            format!("link set {WIRE} up"),
        ];
        lines.extend(SERVICE_RANGES.map(|range| format!("route add unreachable {range}")));
        for other in others.iter().filter(|other| **other != self.index) {
            lines.push(format!("route add 10.{other}.0.0/16 via 172.31.0.{other}"));
            lines.push(format!("route add fd00:{other}::/32 via fdff::{other:x}"));
        }
        batch(&self.netns, &lines)
    }

    /// Numbers for one more pod.
    pub(crate) fn next_slot(&self, bridged: bool) -> Slot {
        Slot { node: self.index, number: self.pods.fetch_add(1, Ordering::Relaxed), bridged }
    }

    /// Makes the bridge, once.
    pub(crate) fn ensure_bridge(&self) -> Result<()> {
        let mut result = Ok(());
        self.bridge.call_once(|| {
            let index = self.index;
            result = batch(
                &self.netns,
                &[
                    // Without an address of its own a bridge takes its ports' lowest, another one when a pod joins, and
                    // the pods that know the old one reach nobody.
                    format!("link add {BRIDGE} address {GATEWAY_MAC} type bridge"),
                    format!("addr add 10.{index}.128.1/17 dev {BRIDGE}"),
                    format!("addr add fd00:{index}:0:b::1/64 dev {BRIDGE} nodad"),
                    format!("link set {BRIDGE} up"),
                ],
            );
        });
        result
    }
}

/// A pod's place on its node: what its link and its addresses are numbered by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    node: u8,
    number: u16,
    bridged: bool,
}

impl Slot {
    pub(crate) fn ipv4(self) -> IpAddr {
        let [high, low] = (self.number + 1).to_be_bytes();
        let third = if self.bridged { 128 + high } else { high };
        Ipv4Addr::new(10, self.node, third, low).into()
    }

    pub(crate) fn ipv6(self) -> IpAddr {
        let subnet = if self.bridged { 0xb } else { 0 };
        // The node's number as it reads in the IPv4 address: node 12 is fd00:12::.
        let node = u16::from_str_radix(&self.node.to_string(), 16).unwrap_or_default();
        Ipv6Addr::new(0xfd00, node, 0, subnet, 0, 0, 0, self.number + 1).into()
    }

    /// The node's end of the pod's link: `v3-web-0`, within the kernel's 15 bytes.
    pub(crate) fn link(self, pod: &str) -> String {
        let mut link = format!("v{}-{pod}", self.number);
        link.truncate(15);
        link
    }

    fn mac(self) -> String {
        let [high, low] = self.number.to_be_bytes();
        format!("02:00:0a:{:02x}:{high:02x}:{low:02x}", self.node)
    }

    /// What the node does to give the pod its link.
    pub(crate) fn node_lines(self, link: &str, pod: &NetNs, addresses: &[IpAddr]) -> Vec<String> {
        let mac = self.mac();
        // Another index than the pod's end will have (see `mesh::wire`).
        let index = 100 + u32::from(self.number);
        let mut lines = vec![format!(
            "link add {link} index {index} type veth peer name eth0 address {mac} netns {}",
            pod.name()
        )];
        if self.bridged {
            lines.push(format!("link set {link} master {BRIDGE}"));
            lines.push(format!("link set {link} up"));
            return lines;
        }
        lines.push(format!("link set {link} address {GATEWAY_MAC}"));
        lines.push(format!("addr add {GATEWAY_V6}/64 dev {link} nodad"));
        lines.push(format!("link set {link} up"));
        for address in addresses {
            lines.push(format!("route add {address} dev {link}"));
            lines.push(format!("neigh add {address} lladdr {mac} dev {link} nud permanent"));
        }
        lines
    }

    /// What the pod does afterwards.
    pub(crate) fn pod_lines(self, addresses: &[IpAddr]) -> Vec<String> {
        let mut lines = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
        for address in addresses {
            lines.extend(if self.bridged { self.bridged_lines(*address) } else { routed_lines(*address) });
        }
        lines
    }

    fn bridged_lines(self, address: IpAddr) -> Vec<String> {
        let node = self.node;
        match address {
            IpAddr::V4(v4) => vec![
                format!("addr add {v4}/17 dev eth0"),
                format!("route add default via 10.{node}.128.1 dev eth0"),
            ],
            IpAddr::V6(v6) => vec![
                format!("addr add {v6}/64 dev eth0 nodad"),
                format!("route add default via fd00:{node}:0:b::1 dev eth0"),
            ],
        }
    }
}

/// As Calico routes a pod: a gateway that is on no subnet, with a fixed hardware address.
const GATEWAY_MAC: &str = "ee:ee:ee:ee:ee:ee";
const GATEWAY_V4: &str = "169.254.1.1";
const GATEWAY_V6: &str = "fe80::1";

fn routed_lines(address: IpAddr) -> Vec<String> {
    let (prefix, gateway, flags) = match address {
        IpAddr::V4(_) => (32, GATEWAY_V4, ""),
        IpAddr::V6(_) => (128, GATEWAY_V6, " nodad"),
    };
    vec![
        format!("addr add {address}/{prefix} dev eth0{flags}"),
        format!("neigh add {gateway} lladdr {GATEWAY_MAC} dev eth0 nud permanent"),
        format!("route add default via {gateway} dev eth0 onlink"),
    ]
}

/// Sysctls of a fresh namespace: no address waits for duplicate detection, and nothing depends on the machine's own
/// settings (a new namespace inherits some of them).
pub(crate) fn quick_addresses() -> Result<()> {
    for scope in ["all", "default"] {
        sysctl(&format!("ipv6/conf/{scope}/disable_ipv6"), "0")?;
        sysctl(&format!("ipv6/conf/{scope}/accept_dad"), "0")?;
        sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0")?;
    }
    Ok(())
}
