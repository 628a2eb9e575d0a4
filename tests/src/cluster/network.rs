//! The cluster's network: a namespace for the control plane with a bridge in it, one for each node, and routes to every
//! node's pods. Nothing of it is in the machine's own namespace.
//!
//! ```text
//! control (fabric, 172.30.0.1) ──┬── node-a (eth0, 172.30.0.11) ── cni0 ── pods 10.244.1.0/24
//!                                └── node-b (eth0, 172.30.0.12) ── cni0 ── pods 10.244.2.0/24
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};

use super::place::Place;
use crate::{NetNs, ip::batch, netns::sysctl, node::quick_addresses};

/// The control plane's own address, where the API server answers.
pub(crate) const CONTROL: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);

/// The port of the API server.
pub(crate) const API_PORT: u16 = 6443;

/// The ranges of services.
pub(crate) const SERVICES: [&str; 2] = ["10.96.0.0/16", "fd96::/112"];

/// The address of the service `kubernetes`: the first of the range.
pub(crate) const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// The ranges of all pods.
pub(crate) const PODS: [&str; 2] = ["10.244.0.0/16", "fd44::/16"];

/// The name of the control plane's namespace, after the cluster's own.
pub(crate) const CONTROL_NETNS: &str = "control";

/// The addresses of a node, by its number from 1.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Addresses {
    number: u8,
}

impl Addresses {
    pub(crate) fn of(number: u8) -> Self {
        Self { number }
    }

    /// The node's own, of both families.
    pub(crate) fn own(self) -> [IpAddr; 2] {
        let last = 10 + self.number;
        [Ipv4Addr::new(172, 30, 0, last).into(), Ipv6Addr::new(0xfd30, 0, 0, 0, 0, 0, 0, last.into()).into()]
    }

    /// The ranges of its pods.
    pub(crate) fn pods(self) -> [String; 2] {
        [format!("10.244.{}.0/24", self.number), format!("fd44:{:x}::/64", self.number)]
    }
}

/// Makes the namespaces and joins them.
pub(crate) fn create(place: &Place, nodes: &[(&str, Addresses)]) -> Result<()> {
    let control = NetNs::create(&place.unique(CONTROL_NETNS), quick_addresses)?;
    let mut lines = vec![
        "link set lo up".to_owned(),
        "link add fabric type bridge".to_owned(),
        format!("addr add {CONTROL}/24 dev fabric"),
        "addr add fd30::1/64 dev fabric nodad".to_owned(),
        "link set fabric up".to_owned(),
    ];
    for ((node, addresses), number) in nodes.iter().zip(1..) {
        let name = place.unique(node);
        NetNs::create(&name, forwarding).with_context(|| format!("node {node}"))?;
        // Indexes that differ: where both ends of a veth have the same one the kernel is slow to handle "carrier is up".
        let index = 100 + number;
        lines.push(format!(
            "link add port{number} index {index} type veth peer name eth0 index 10 netns {name}"
        ));
        lines.push(format!("link set port{number} master fabric up"));
        lines.extend(routes_to_pods(*addresses));
    }
    batch(&control, &lines)?;
    for (node, addresses) in nodes {
        let netns = NetNs::open(&place.netns(node))?;
        batch(&netns, &node_lines(*addresses, nodes))?;
        netns.wait_for_path(CONTROL.into())?;
    }
    Ok(())
}

/// Sysctls of a node's namespace.
fn forwarding() -> Result<()> {
    quick_addresses()?;
    sysctl("ipv4/ip_forward", "1")?;
    sysctl("ipv6/conf/all/forwarding", "1")?;
    // A service's reply between two pods of one bridge must pass by what translated its address (kube-proxy's own
    // requirement). The file is there once br_netfilter is.
    sysctl("bridge/bridge-nf-call-iptables", "1")
        .and_then(|()| sysctl("bridge/bridge-nf-call-ip6tables", "1"))
        .context("services between pods of one node need br_netfilter: `modprobe br_netfilter`")
}

fn node_lines(own: Addresses, nodes: &[(&str, Addresses)]) -> Vec<String> {
    let [v4, v6] = own.own();
    let mut lines = vec![
        "link set lo up".to_owned(),
        format!("addr add {v4}/24 dev eth0"),
        format!("addr add {v6}/64 dev eth0 nodad"),
        "link set eth0 up".to_owned(),
        format!("route add default via {CONTROL}"),
        "route add default via fd30::1".to_owned(),
    ];
    let others = nodes.iter().filter(|(_, addresses)| *addresses != own);
    lines.extend(others.flat_map(|(_, addresses)| routes_to_pods(*addresses)));
    lines
}

fn routes_to_pods(addresses: Addresses) -> Vec<String> {
    let pairs = addresses.pods().into_iter().zip(addresses.own());
    pairs.map(|(pods, node)| format!("route add {pods} via {node}")).collect()
}
