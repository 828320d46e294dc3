//! Whether the cluster's subnets are in the way of the laptop's own network.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use kvpn_proto::check::Check;
use kvpn_proto::{Failure, Reason};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

use super::ROUTES;

/// Flag of a route to an address of the host itself (`RTF_LOCAL`).
const LOCAL: u32 = 0x8000_0000;

/// A route of the host, or an address of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Route {
    subnet: IpNet,
    device: String,
    /// It is the host's own address.
    own: bool,
}

/// Holds the subnets against the host's routes and addresses, but for those on
/// kvpn's own device.
pub(super) fn check(subnets: &[IpNet], device: &str) -> Check {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut routes = ipv4_routes(&read("/proc/self/net/route"));
    routes.extend(ipv6_routes(&read("/proc/self/net/ipv6_route")));
    routes.extend(own_addresses());
    routes.retain(|route| route.device != device);
    finding(subnets, &routes)
}

fn finding(subnets: &[IpNet], routes: &[Route]) -> Check {
    let next_step = "leave the network or VPN that uses the same addresses";
    let own = conflicts(subnets, routes, true).next();
    if let Some((subnet, route)) = own {
        let failure = Failure::new(
            Reason::HostRefused,
            format!(
                "the cluster's subnet {subnet} holds this host's own address {} on {}",
                route.subnet.addr(),
                route.device
            ),
            format!("{next_step}, then connect"),
        );
        return Check::failure(ROUTES, failure);
    }
    let overlaps: Vec<String> = conflicts(subnets, routes, false)
        .map(|(subnet, route)| format!("{subnet} with {} on {}", route.subnet, route.device))
        .collect();
    if overlaps.is_empty() {
        let subnets: Vec<String> = subnets.iter().map(ToString::to_string).collect();
        return Check::ok(
            ROUTES,
            format!("nothing else uses the cluster's {}", subnets.join(", ")),
        );
    }
    Check::warning(
        ROUTES,
        format!(
            "the cluster's subnets overlap with the host's routes: {}; the longer prefix wins",
            overlaps.join(", ")
        ),
        format!("{next_step} if either cannot be reached"),
    )
}

fn conflicts<'a>(
    subnets: &'a [IpNet],
    routes: &'a [Route],
    own: bool,
) -> impl Iterator<Item = (IpNet, &'a Route)> {
    let routes = routes.iter().filter(move |route| route.own == own);
    routes.flat_map(|route| {
        let overlapping = subnets
            .iter()
            .filter(|subnet| subnet.contains(&route.subnet) || route.subnet.contains(*subnet));
        overlapping.map(move |subnet| (*subnet, route))
    })
}

/// Reads `/proc/net/route`: device, destination and mask are its columns 1, 2
/// and 8, the latter two as the machine stores them.
fn ipv4_routes(text: &str) -> Vec<Route> {
    let address = |hex: &str| {
        Some(Ipv4Addr::from(
            u32::from_str_radix(hex, 16).ok()?.to_ne_bytes(),
        ))
    };
    let route = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (device, destination, mask) = (columns.first()?, columns.get(1)?, columns.get(7)?);
        let subnet = Ipv4Net::with_netmask(address(destination)?, address(mask)?).ok()?;
        kept(subnet.into(), device, false)
    };
    text.lines().skip(1).filter_map(route).collect()
}

/// Reads `/proc/net/ipv6_route`: destination, prefix length, flags and device
/// are its columns 1, 2, 9 and 10.
fn ipv6_routes(text: &str) -> Vec<Route> {
    let route = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let address = u128::from_str_radix(columns.first()?, 16).ok()?;
        let length = u8::from_str_radix(columns.get(1)?, 16).ok()?;
        let flags = u32::from_str_radix(columns.get(8)?, 16).ok()?;
        let subnet = Ipv6Net::new(Ipv6Addr::from_bits(address), length).ok()?;
        // The host's own addresses come from elsewhere.
        let device = columns.get(9).filter(|_| flags & LOCAL == 0)?;
        kept(subnet.into(), device, false)
    };
    text.lines().filter_map(route).collect()
}

fn own_addresses() -> Vec<Route> {
    let own = |device: String, address: SockaddrStorage| {
        let address: IpAddr = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(address), _) => address.ip().into(),
            (None, Some(address)) => address.ip().into(),
            (None, None) => return None,
        };
        kept(address.into(), &device, true)
    };
    let interfaces = getifaddrs().into_iter().flatten();
    interfaces
        .filter_map(|interface| own(interface.interface_name, interface.address?))
        .collect()
}

/// Default routes and the loopback are in nobody's way.
fn kept(subnet: IpNet, device: &str, own: bool) -> Option<Route> {
    let keep = subnet.prefix_len() > 0 && device != "lo";
    keep.then(|| Route {
        subnet,
        device: device.to_owned(),
        own,
    })
}

#[cfg(test)]
mod tests {
    use kvpn_proto::check::Finding;

    use super::*;

    fn subnets() -> Vec<IpNet> {
        vec![
            "10.96.0.0/16".parse().unwrap(),
            "fd00:96::/108".parse().unwrap(),
        ]
    }

    fn route(subnet: &str, own: bool) -> Route {
        Route {
            subnet: subnet.parse().unwrap(),
            device: "eth0".into(),
            own,
        }
    }

    #[test]
    fn routes_elsewhere_are_well() {
        let routes = [route("10.97.0.0/16", false), route("192.168.1.7/32", true)];
        let check = finding(&subnets(), &routes);
        assert!(matches!(check.finding, Finding::Ok { .. }), "{check:?}");
    }

    #[test]
    fn overlap_in_either_direction_is_a_warning() {
        for subnet in ["10.0.0.0/8", "10.96.3.0/24", "fd00::/16"] {
            let check = finding(&subnets(), &[route(subnet, false)]);
            let Finding::Warning { message, .. } = check.finding else {
                panic!("{check:?}");
            };
            assert!(message.contains(subnet), "{message}");
        }
    }

    #[test]
    fn own_address_in_the_cluster_is_a_failure() {
        let check = finding(&subnets(), &[route("10.96.3.4/32", true)]);
        let Finding::Failure(failure) = check.finding else {
            panic!("{check:?}");
        };
        assert_eq!(failure.reason, Reason::HostRefused);
        assert!(failure.message.contains("10.96.3.4"), "{failure}");
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernels_tables_are_read() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                  eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(ipv4_routes(v4), [route("192.168.1.0/24", false)]);
        let zeros = "0".repeat(32);
        let line = |destination: &str, length: &str, flags: &str, device: &str| {
            format!("{destination} {length} {zeros} 00 {zeros} 00000400 1 0 {flags} {device}\n")
        };
        let v6 = [
            line("fd000010000000000000000000000000", "40", "00000001", "eth0"),
            line("fd000010000000000000000000000007", "80", "80200001", "eth0"),
            line(&zeros, "00", "00200200", "lo"),
        ];
        assert_eq!(ipv6_routes(&v6.concat()), [route("fd00:10::/64", false)]);
    }
}
