//! Sets of IP addresses.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// The blocks of an address field. IPv4-mapped IPv6 is IPv4, and `::/0` holds no IPv4 address.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct IpBlocks {
    v4: Ranges,
    v6: Ranges,
}

/// First and last address of each range; in order, with a gap between any two. IPv4 addresses are numbers too.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Ranges(Vec<(u128, u128)>);

impl IpBlocks {
    /// Returns whether the address is in one of the blocks.
    pub fn holds(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => self.v4.hold(address.to_bits().into()),
            IpAddr::V6(address) => self.v6.hold(address.to_bits()),
        }
    }

    /// Returns whether each address of `other` is in one of the blocks.
    pub(super) fn cover(&self, other: &Self) -> bool {
        self.v4.cover(&other.v4) && self.v6.cover(&other.v6)
    }

    /// Returns whether every address of both families is in one of the blocks.
    pub fn holds_all(&self) -> bool {
        self.v4.0 == [(0, u32::MAX.into())] && self.v6.0 == [(0, u128::MAX)]
    }
}

impl FromIterator<IpNet> for IpBlocks {
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> Self {
        let mut blocks = Self::default();
        for net in nets {
            match net {
                IpNet::V4(net) => {
                    let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
                    blocks.v4.0.push((first.into(), last.into()));
                }
                IpNet::V6(net) if net.prefix_len() >= MAPPED && is_mapped(net.network()) => {
                    let low = |address: Ipv6Addr| address.to_bits() & u128::from(u32::MAX);
                    blocks.v4.0.push((low(net.network()), low(net.broadcast())));
                }
                IpNet::V6(net) => blocks.v6.0.push((net.network().to_bits(), net.broadcast().to_bits())),
            }
        }
        blocks.v4.tidy();
        blocks.v6.tidy();
        blocks
    }
}

impl Ranges {
    fn hold(&self, address: u128) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= address);
        after.checked_sub(1).is_some_and(|last| address <= self.0[last].1)
    }

    fn cover(&self, other: &Self) -> bool {
        // With a gap between any two, a range of `other` lies in one of them or not at all.
        let within = |(first, last)| self.0.iter().any(|range| range.0 <= first && last <= range.1);
        other.0.iter().copied().all(within)
    }

    fn tidy(&mut self) {
        self.0.sort_unstable();
        self.0.dedup_by(|next, range| {
            let touches = next.0 <= range.1.saturating_add(1);
            if touches {
                range.1 = range.1.max(next.1);
            }
            touches
        });
    }
}

fn is_mapped(address: Ipv6Addr) -> bool {
    address.to_ipv4_mapped().is_some()
}

/// The bits before the IPv4 address in `::ffff:0:0/96` (RFC 4291 §2.5.5.2).
const MAPPED: u8 = 96;

#[cfg(test)]
mod tests {
    use super::*;

    fn check(nets: &[&str], inside: &[&str], outside: &[&str]) {
        let blocks: IpBlocks = nets.iter().map(|net| net.parse::<IpNet>().unwrap()).collect();
        for address in inside {
            assert!(blocks.holds(address.parse().unwrap()), "{address} is not in {nets:?}");
        }
        for address in outside {
            assert!(!blocks.holds(address.parse().unwrap()), "{address} is in {nets:?}");
        }
    }

    #[test]
    fn blocks_may_overlap_and_touch() {
        let nets = ["10.0.0.0/9", "10.64.0.0/10", "10.128.0.0/9", "192.0.2.1/32"];
        check(
            &nets,
            &["10.0.0.0", "10.127.0.1", "10.255.255.255", "192.0.2.1"],
            &["9.255.255.255", "11.0.0.0"],
        );
        check(&nets, &[], &["192.0.2.0", "192.0.2.2", "::10.0.0.1", "0.0.0.0", "255.255.255.255"]);
        check(&[], &[], &["10.0.0.1", "::1"]);
    }

    #[test]
    fn mapped_addresses_are_ipv4_on_both_sides() {
        check(&["10.0.0.0/8"], &["::ffff:10.0.0.1"], &["::ffff:11.0.0.1"]);
        check(&["::ffff:10.0.0.0/104"], &["10.0.0.1", "::ffff:10.0.0.1"], &["11.0.0.1", "::1"]);
        check(&["::ffff:0:0/96"], &["10.0.0.1"], &["::1"]);
        check(&["::/0", "::ffff:0:0/95"], &["::1", "ffff::"], &["10.0.0.1", "::ffff:10.0.0.1"]);
    }

    #[test]
    fn everything_is_both_families() {
        let all = |nets: &[&str]| {
            let blocks: IpBlocks = nets.iter().map(|net| net.parse::<IpNet>().unwrap()).collect();
            blocks.holds_all()
        };
        assert!(all(&["0.0.0.0/0", "::/0"]));
        assert!(all(&["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"]));
        assert!(!all(&["::/0"]));
        assert!(!all(&["0.0.0.0/0", "::/1"]));
    }
}
