//! The zones of names that addresses are looked up by (RFC 1035 section 3.5 and RFC
//! 3596 section 2.5).

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The zones that hold the reverse names of a subnet's addresses, and of no others:
/// several where its length is not that of a zone.
pub(super) fn zones(subnet: IpNet) -> Vec<String> {
    let bits_of_label = match subnet {
        IpNet::V4(_) => 8,
        IpNet::V6(_) => 4,
    };
    let labels = subnet.prefix_len().div_ceil(bits_of_label);
    let Ok(subnets) = subnet.subnets(labels * bits_of_label) else {
        return Vec::new();
    };
    subnets.map(|subnet| zone(subnet, labels.into())).collect()
}

fn zone(subnet: IpNet, count: usize) -> String {
    let (labels, suffix): (Vec<String>, _) = match subnet {
        IpNet::V4(subnet) => (octets(subnet.network()), "in-addr.arpa"),
        IpNet::V6(subnet) => (nibbles(subnet.network()), "ip6.arpa"),
    };
    let mut zone: Vec<&str> = labels[..count].iter().rev().map(String::as_str).collect();
    zone.push(suffix);
    zone.join(".")
}

fn octets(address: Ipv4Addr) -> Vec<String> {
    address.octets().map(|octet| octet.to_string()).into()
}

fn nibbles(address: Ipv6Addr) -> Vec<String> {
    let octets = address.octets().into_iter();
    octets
        .flat_map(|octet| [octet >> 4, octet & 0x0f])
        .map(|nibble| format!("{nibble:x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zones_of(subnet: &str) -> Vec<String> {
        zones(subnet.parse().unwrap())
    }

    #[test]
    fn a_zone_has_a_label_for_each_octet_or_nibble() {
        assert_eq!(zones_of("10.244.0.0/16"), ["244.10.in-addr.arpa"]);
        assert_eq!(zones_of("10.244.3.7/32"), ["7.3.244.10.in-addr.arpa"]);
        assert_eq!(zones_of("fd00:96::/32"), ["6.9.0.0.0.0.d.f.ip6.arpa"]);
    }

    #[test]
    fn other_lengths_take_several_zones() {
        assert_eq!(
            zones_of("10.96.0.0/15"),
            ["96.10.in-addr.arpa", "97.10.in-addr.arpa"]
        );
        assert_eq!(zones_of("10.0.0.0/9").len(), 128);
        assert_eq!(
            zones_of("fd00::/14"),
            [
                "0.0.d.f.ip6.arpa",
                "1.0.d.f.ip6.arpa",
                "2.0.d.f.ip6.arpa",
                "3.0.d.f.ip6.arpa"
            ]
        );
    }
}
