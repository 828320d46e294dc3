//! The host's own addresses and routes, and what a session may have routed to its
//! device beside them.

mod conflicts;
mod join;
mod read;
pub(crate) mod subnets;
pub(crate) mod way;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use kvpn_proto::Failure;

/// The table that a host without rules of its own looks up (rtnetlink(7)).
pub(crate) const MAIN: u32 = 254;

/// The host's network, but for a session's device.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostRoutes {
    /// Its own addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// Gateways of its default routes.
    gateways: Vec<IpAddr>,
    /// Those in tables that its rules look up.
    routes: Vec<Route>,
}

/// What is to be routed to a session's device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) subnets: &'a BTreeSet<IpNet>,
    /// Where other routes do not matter.
    pub(crate) allowed_conflicts: &'a BTreeSet<IpNet>,
    /// What the device has, or had; routes that came later are not held against it.
    pub(crate) routed: &'a BTreeSet<IpNet>,
    /// What of it there are routes to the device for.
    pub(crate) held: &'a BTreeSet<IpNet>,
}

/// A route to a session's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DeviceRoute {
    pub(crate) subnet: IpNet,
    pub(crate) table: u32,
    /// The smaller, the better; 0 is the kernel's usual one.
    pub(crate) metric: u32,
}

impl HostRoutes {
    /// Tells whether the host uses nothing of a range.
    pub(crate) fn is_free(&self, range: &IpNet) -> bool {
        let is_apart = |route: &Route| {
            route.is_default() || !(route.subnet.contains(range) || range.contains(&route.subnet))
        };
        self.routes.iter().all(is_apart)
            && !self.addresses.iter().any(|address| range.contains(address))
    }

    /// The routes that lead to the device what is wanted. Some are there only to
    /// win against the host's own.
    ///
    /// # Errors
    /// `HostRefused` when the host would lose what it needs, and `Usage` for what
    /// is nobody's to route.
    pub(crate) fn plan(&self, wanted: Wanted<'_>) -> Result<BTreeSet<DeviceRoute>, Failure> {
        subnets::check(wanted.subnets, self)?;
        conflicts::plan(wanted, &self.routes)
    }
}

/// A route of the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Route {
    subnet: IpNet,
    kind: Kind,
    gateways: Vec<IpAddr>,
    /// Its name.
    device: Option<String>,
    table: u32,
    stage: Stage,
    metric: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// To a device or a gateway.
    Unicast,
    /// To the host itself.
    Local,
    /// To nowhere, in the word of ip-route(8).
    Closed(&'static str),
}

/// When a table is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    BeforeMain,
    Main,
    AfterMain,
}

impl Route {
    /// Tells whether it is for whatever has no route of its own. VPNs that take
    /// everything have one for each half of the address space.
    fn is_default(&self) -> bool {
        self.subnet.prefix_len() <= 1
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Unicast => write!(f, "route {}", self.subnet)?,
            Kind::Local => write!(f, "local route {}", self.subnet)?,
            Kind::Closed(word) => return write!(f, "{word} route {}", self.subnet),
        }
        if let Some(gateway) = self.gateways.first() {
            write!(f, " via {gateway}")?;
        }
        let Some(device) = &self.device else {
            return Ok(());
        };
        write!(f, " on {device}")?;
        match owner(device) {
            Some(owner) => write!(f, " ({owner})"),
            None => Ok(()),
        }
    }
}

/// Whose a device is, by the names that programs give to theirs.
fn owner(device: &str) -> Option<&'static str> {
    const OWNERS: [(&str, &str); 10] = [
        ("kvpn", "another connection of kvpn"),
        ("docker", "a network of Docker's"),
        ("br-", "a network of Docker's"),
        ("podman", "a network of Podman's"),
        ("virbr", "a network of virtual machines"),
        ("tailscale", "Tailscale"),
        ("wg", "WireGuard"),
        ("tun", "a VPN"),
        ("tap", "a VPN"),
        ("ppp", "a VPN"),
    ];
    let mut owners = OWNERS.iter();
    let found = owners.find(|(start, _)| device.starts_with(start));
    found.map(|(_, owner)| *owner)
}
