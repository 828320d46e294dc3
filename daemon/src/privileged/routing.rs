//! What a lease has routed to its device.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use kvpn_proto::{Failure, Reason, v1};
use tracing::warn;

use super::{failed, route};
use crate::host_routes::{DeviceRoute, HostRoutes, Wanted, subnets};
use crate::lease::slot::Slot;
use crate::netlink::Netlink;

/// What is to be routed, and by which routes. Nothing is changed yet.
pub(super) struct Planned {
    subnets: BTreeSet<IpNet>,
    routes: BTreeSet<DeviceRoute>,
}

/// The routes that are there.
pub(super) struct Routing {
    slot: Slot,
    index: u32,
    /// Of the host, on the device.
    addresses: Vec<IpAddr>,
    /// What is asked for.
    subnets: BTreeSet<IpNet>,
    /// All that was asked for at any time, as large as it can be said.
    ever: BTreeSet<IpNet>,
    routes: BTreeSet<DeviceRoute>,
}

impl Planned {
    /// Holds what is wanted against the host, before the device is there.
    pub(super) async fn new(
        netlink: &Netlink,
        slot: Slot,
        wanted: &v1::Network,
    ) -> Result<Self, Failure> {
        let none = BTreeSet::new();
        Self::beside(netlink, slot, wanted, &none, &none).await
    }

    async fn beside(
        netlink: &Netlink,
        slot: Slot,
        wanted: &v1::Network,
        routed: &BTreeSet<IpNet>,
        held: &BTreeSet<IpNet>,
    ) -> Result<Self, Failure> {
        let host = HostRoutes::read(netlink, Some(&slot.device()))
            .await
            .map_err(|error| failed("read this host's addresses and routes", &error))?;
        check_own_addresses(slot, &host)?;
        let subnets = subnets::parse(&wanted.subnets)?;
        let routes = host.plan(Wanted {
            subnets: &subnets,
            allowed_conflicts: &subnets::parse(&wanted.allowed_conflicts)?,
            routed,
            held,
        })?;
        Ok(Self { subnets, routes })
    }
}

impl Routing {
    /// Adds the routes; after a failure, some are there.
    pub(super) async fn add(
        netlink: &Netlink,
        slot: Slot,
        index: u32,
        addresses: Vec<IpAddr>,
        planned: Planned,
    ) -> Result<Self, Failure> {
        let Planned { subnets, routes } = planned;
        for subnet in &subnets {
            if source(*subnet, &addresses).is_none() {
                warn!(%subnet, "Not routed, because IPv6 is disabled on this host");
            }
        }
        for route in &routes {
            add_route(netlink, index, *route, &addresses).await?;
        }
        Ok(Self {
            slot,
            index,
            addresses,
            ever: aggregated(&subnets),
            subnets,
            routes,
        })
    }

    /// Routes what is wanted now instead; after a failure all is as it was.
    pub(super) async fn replace(
        &mut self,
        netlink: &Netlink,
        wanted: &v1::Network,
    ) -> Result<(), Failure> {
        let held = self.routes.iter().map(|route| route.subnet).collect();
        let planned = Planned::beside(netlink, self.slot, wanted, &self.ever, &held).await?;
        let mut added = Vec::new();
        for route in planned.routes.difference(&self.routes) {
            match add_route(netlink, self.index, *route, &self.addresses).await {
                Ok(()) => added.push(*route),
                Err(failure) => {
                    self.delete(netlink, &added).await;
                    return Err(failure);
                }
            }
        }
        let dropped: Vec<DeviceRoute> = self.routes.difference(&planned.routes).copied().collect();
        self.delete(netlink, &dropped).await;
        self.ever = aggregated(self.ever.union(&planned.subnets));
        self.subnets = planned.subnets;
        self.routes = planned.routes;
        Ok(())
    }

    /// The subnets that are asked for. A later route of the host's may have won some.
    pub(super) fn subnets(&self) -> Vec<String> {
        self.subnets.iter().map(ToString::to_string).collect()
    }

    async fn delete(&self, netlink: &Netlink, routes: &[DeviceRoute]) {
        for route in routes {
            let Some(source) = source(route.subnet, &self.addresses) else {
                continue;
            };
            if let Err(error) = route::delete(netlink, self.index, *route, source).await {
                warn!(subnet = %route.subnet, %error, "The route cannot be deleted");
            }
        }
    }
}

fn aggregated<'a>(subnets: impl IntoIterator<Item = &'a IpNet>) -> BTreeSet<IpNet> {
    let subnets: Vec<IpNet> = subnets.into_iter().copied().collect();
    IpNet::aggregate(&subnets).into_iter().collect()
}

/// Adds a route, unless the host has not its family.
async fn add_route(
    netlink: &Netlink,
    index: u32,
    route: DeviceRoute,
    addresses: &[IpAddr],
) -> Result<(), Failure> {
    let subnet = route.subnet;
    let Some(source) = source(subnet, addresses) else {
        return Ok(());
    };
    match route::add(netlink, index, route, source).await {
        Ok(()) => Ok(()),
        // It came after the host was looked at.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Failure::new(
            Reason::HostRefused,
            format!("this host has just got another route to the cluster's subnet {subnet}"),
            format!("look at it with `ip route show {subnet}`, and try again"),
        )),
        Err(error) => Err(failed(&format!("add a route to {subnet}"), &error)),
    }
}

/// The address of the subnet's family.
fn source(subnet: IpNet, addresses: &[IpAddr]) -> Option<IpAddr> {
    let mut addresses = addresses.iter().copied();
    addresses.find(|address| address.is_ipv4() == subnet.addr().is_ipv4())
}

/// Refuses to share the device's addresses with somebody else's device.
fn check_own_addresses(slot: Slot, host: &HostRoutes) -> Result<(), Failure> {
    let ours = [IpAddr::V4(slot.v4()), IpAddr::V6(slot.v6())];
    match ours.iter().find(|ours| host.addresses.contains(ours)) {
        None => Ok(()),
        Some(address) => Err(Failure::new(
            Reason::HostRefused,
            format!("this host has the address {address}, which kvpn needs, on another device"),
            "end the VPN or proxy that uses it; `ip addr` shows the device",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_is_of_the_subnets_family() {
        let (v4, v6) = ("198.18.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
        let subnet = "fd00:96::/108".parse().unwrap();
        assert_eq!(source(subnet, &[v4, v6]), Some(v6));
        assert_eq!(source(subnet, &[v4]), None);
    }
}
