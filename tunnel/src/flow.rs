//! What tells one flow from another.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use kvpn_proto::flow::Protocol;

/// A flow between a port of the host and a port in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FiveTuple {
    pub protocol: Protocol,
    /// The host's own address and port, where the flow comes from.
    pub host: SocketAddr,
    /// What the host wants to reach.
    pub cluster: SocketAddr,
}

impl fmt::Display for FiveTuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        };
        write!(f, "{protocol} {} -> {}", self.host, self.cluster)
    }
}

/// Tells whether an address may be the end of a flow: not multicast, broadcast,
/// loopback, link-local or unspecified.
pub fn is_routable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => {
            !(ip.is_multicast()
                || ip.is_broadcast()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.octets()[0] == 0)
        }
        IpAddr::V6(ip) => {
            !(ip.is_multicast()
                || ip.is_loopback()
                || ip.is_unicast_link_local()
                || ip.is_unspecified()
                || ip.to_ipv4_mapped().is_some())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unicast_beyond_the_link_is_routable() {
        for address in ["10.1.2.3", "198.18.0.1", "fd6b:7670:6e::1", "2001:db8::1"] {
            assert!(is_routable(address.parse().unwrap()), "{address}");
        }
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "169.254.1.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(!is_routable(address.parse().unwrap()), "{address}");
        }
    }
}
