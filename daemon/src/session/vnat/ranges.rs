//! Where subnets of a cluster can be shown: ranges that no network should use.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Reserved for future use (RFC 1112 section 4), yet routed by Linux.
const V4: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(246, 0, 0, 0), 8);

/// A unique local prefix of kvpn's own (RFC 4193).
const V6: Ipv6Net = Ipv6Net::new_assert(
    std::net::Ipv6Addr::new(0xfd6b, 0x7670, 0x6e00, 0, 0, 0, 0, 0),
    40,
);

/// Ranges of the same length; none where the subnet is too large.
pub(super) fn of_length(subnet: &IpNet) -> Box<dyn Iterator<Item = IpNet>> {
    match subnet {
        IpNet::V4(subnet) => {
            let ranges = V4.subnets(subnet.prefix_len()).into_iter().flatten();
            Box::new(ranges.map(IpNet::V4))
        }
        IpNet::V6(subnet) => {
            let ranges = V6.subnets(subnet.prefix_len()).into_iter().flatten();
            Box::new(ranges.map(IpNet::V6))
        }
    }
}
