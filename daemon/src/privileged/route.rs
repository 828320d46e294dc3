//! Routes.

use std::io;
use std::net::IpAddr;

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{RouteMessageBuilder, packet_route::AddressFamily};

use super::netlink::{Netlink, run};

/// Routes a subnet to the device, with the device's address as the source.
pub(super) async fn add(
    netlink: &Netlink,
    index: u32,
    subnet: IpNet,
    source: IpAddr,
) -> io::Result<()> {
    let message = message(index, subnet, source)?;
    run(netlink.handle().route().add(message).execute()).await
}

/// Takes back what `add` did.
pub(super) async fn delete(
    netlink: &Netlink,
    index: u32,
    subnet: IpNet,
    source: IpAddr,
) -> io::Result<()> {
    let message = message(index, subnet, source)?;
    run(netlink.handle().route().del(message).execute()).await
}

/// Tells whether packets to the address stay on this host.
pub(super) async fn is_local(netlink: &Netlink, address: IpAddr) -> io::Result<bool> {
    let length = if address.is_ipv4() { 32 } else { 128 };
    let question = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(address, length)
        .map_err(io::Error::other)?
        .build();
    let mut answers = netlink.handle().route().get(question).execute();
    let route = run(answers.try_next()).await?;
    Ok(route.is_some_and(|route| route.header.kind == RouteType::Local))
}

/// The gateways of the host's default routes.
pub(super) async fn default_gateways(netlink: &Netlink) -> io::Result<Vec<IpAddr>> {
    let mut gateways = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut filter = RouteMessage::default();
        filter.header.address_family = family;
        let routes: Vec<_> =
            run(netlink.handle().route().get(filter).execute().try_collect()).await?;
        for route in routes {
            if route.header.destination_prefix_length == 0 {
                collect_gateways(&route.attributes, &mut gateways);
            }
        }
    }
    Ok(gateways)
}

fn collect_gateways(attributes: &[RouteAttribute], gateways: &mut Vec<IpAddr>) {
    for attribute in attributes {
        if let RouteAttribute::Gateway(RouteAddress::Inet(address)) = attribute {
            gateways.push(IpAddr::V4(*address));
        } else if let RouteAttribute::Gateway(RouteAddress::Inet6(address)) = attribute {
            gateways.push(IpAddr::V6(*address));
        } else if let RouteAttribute::MultiPath(hops) = attribute {
            for hop in hops {
                collect_gateways(&hop.attributes, gateways);
            }
        }
    }
}

fn message(index: u32, subnet: IpNet, source: IpAddr) -> io::Result<RouteMessage> {
    let builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(subnet.addr(), subnet.prefix_len())
        .and_then(|builder| builder.pref_source(source))
        .map_err(io::Error::other)?;
    Ok(builder
        .output_interface(index)
        .scope(RouteScope::Link)
        .protocol(RouteProtocol::Static)
        .build())
}
