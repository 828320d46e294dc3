//! Subnets that cover addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Prefix lengths (IPv4, IPv6) beyond which addresses do not share a subnet:
/// wider ones would catch what is not the cluster's.
const WIDEST: (u8, u8) = (16, 48);

/// Prefix lengths (IPv4, IPv6) that subnets are widened to, so that they do
/// not change with every new address.
const NARROWEST: (u8, u8) = (24, 112);

/// The smallest subnets that cover all addresses.
pub(crate) fn cover(addresses: impl IntoIterator<Item = IpAddr>) -> Vec<IpNet> {
    let mut groups: BTreeMap<IpNet, IpNet> = BTreeMap::new();
    for address in addresses {
        let (group, narrow) = match address {
            IpAddr::V4(_) => (WIDEST.0, NARROWEST.0),
            IpAddr::V6(_) => (WIDEST.1, NARROWEST.1),
        };
        let (group, narrow) = (subnet(address, group), subnet(address, narrow));
        groups
            .entry(group)
            .and_modify(|cover| *cover = join(*cover, narrow))
            .or_insert(narrow);
    }
    let covers: Vec<IpNet> = groups.into_values().collect();
    IpNet::aggregate(&covers)
}

/// The subnet of that prefix length around an address.
fn subnet(address: IpAddr, length: u8) -> IpNet {
    match address {
        IpAddr::V4(ip) => IpNet::V4(Ipv4Net::new_assert(ip, length).trunc()),
        IpAddr::V6(ip) => IpNet::V6(Ipv6Net::new_assert(ip, length).trunc()),
    }
}

/// The smallest subnet around two of the same family.
fn join(mut a: IpNet, b: IpNet) -> IpNet {
    while !a.contains(&b) {
        match a.supernet() {
            Some(wider) => a = wider,
            None => return a,
        }
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cover_texts(addresses: &[&str]) -> Vec<String> {
        let subnets = cover(addresses.iter().map(|address| address.parse().unwrap()));
        subnets.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn both_families_are_covered() {
        let subnets = cover_texts(&["10.96.0.1", "10.96.3.7", "fd00:96::1", "fd00:96::a"]);
        assert_eq!(subnets, ["10.96.0.0/22", "fd00:96::/112"]);
    }

    #[test]
    fn one_address_is_widened_so_that_its_neighbours_change_nothing() {
        assert_eq!(cover_texts(&["10.96.0.10"]), ["10.96.0.0/24"]);
        assert_eq!(
            cover_texts(&["10.96.0.10", "10.96.0.200"]),
            ["10.96.0.0/24"]
        );
    }

    #[test]
    fn addresses_far_apart_share_no_subnet() {
        let subnets = cover_texts(&["10.0.0.1", "192.168.0.1", "10.200.0.1"]);
        assert_eq!(subnets, ["10.0.0.0/24", "10.200.0.0/24", "192.168.0.0/24"]);
    }

    #[test]
    fn nothing_is_covered_by_nothing() {
        assert!(cover([]).is_empty());
    }
}
