//! The places on the host for leases that are held at the same time, each with a
//! device and addresses of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// How many leases there may be at once.
pub(crate) const MAX_LEASES: u8 = 8;

/// A place for one lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot(u8);

impl Slot {
    /// All of them, the usual one first.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..MAX_LEASES).map(Self)
    }

    /// Name of the TUN device.
    pub(crate) fn device(self) -> String {
        format!("kvpn{}", self.0)
    }

    /// The file that names whom its session asks for names of other networks, while
    /// resolv.conf names the session.
    pub(crate) fn upstreams(self, run_dir: &Path) -> PathBuf {
        run_dir.join(format!("{}.upstreams", self.device()))
    }

    /// The host's address on the device, from the block for benchmarks (RFC 2544),
    /// which networks and clusters hardly use.
    pub(crate) fn v4(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.0, 1)
    }

    /// The host's address on the device, from a unique local prefix of kvpn's own.
    pub(crate) fn v6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd6b, 0x7670, 0x006e, self.0.into(), 0, 0, 0, 1)
    }
}

/// The host's addresses on all of the devices.
pub(crate) fn addresses() -> impl Iterator<Item = IpAddr> {
    Slot::all().flat_map(|slot| [slot.v4().into(), slot.v6().into()])
}

/// Tells whether this is an address of the host on one of the devices.
pub(crate) fn is_own(address: &IpAddr) -> bool {
    addresses().any(|own| own == *address)
}

/// The first hop behind the device that has the host's address `own`: the address
/// that follows.
pub(crate) fn hop(own: IpAddr) -> IpAddr {
    match own {
        IpAddr::V4(own) => Ipv4Addr::from_bits(own.to_bits().wrapping_add(1)).into(),
        IpAddr::V6(own) => Ipv6Addr::from_bits(own.to_bits().wrapping_add(1)).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn slots_share_nothing() {
        let devices: BTreeSet<String> = Slot::all().map(Slot::device).collect();
        let all: BTreeSet<IpAddr> = addresses().flat_map(|own| [own, hop(own)]).collect();
        assert_eq!(devices.len(), usize::from(MAX_LEASES));
        assert_eq!(all.len(), 4 * usize::from(MAX_LEASES));
        assert_eq!(devices.first().map(String::as_str), Some("kvpn0"));
    }

    #[test]
    fn only_the_hosts_ends_are_its_own() {
        let own: IpAddr = "198.18.7.1".parse().unwrap();
        assert!(is_own(&own) && !is_own(&hop(own)));
        assert!(is_own(&"fd6b:7670:6e:7::1".parse().unwrap()));
        assert!(!is_own(&"198.18.8.1".parse().unwrap()));
    }
}
