//! Routes.

use std::io;
use std::net::IpAddr;

use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol, RouteScope};

use crate::host_routes::DeviceRoute;
use crate::netlink::{Netlink, run};

/// Adds a route to the device, with the device's address as the source.
pub(super) async fn add(
    netlink: &Netlink,
    index: u32,
    route: DeviceRoute,
    source: IpAddr,
) -> io::Result<()> {
    let message = message(index, route, source)?;
    run(netlink.handle().route().add(message).execute()).await
}

/// Takes back what `add` did.
pub(super) async fn delete(
    netlink: &Netlink,
    index: u32,
    route: DeviceRoute,
    source: IpAddr,
) -> io::Result<()> {
    let message = message(index, route, source)?;
    run(netlink.handle().route().del(message).execute()).await
}

fn message(index: u32, route: DeviceRoute, source: IpAddr) -> io::Result<RouteMessage> {
    let builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(route.subnet.addr(), route.subnet.prefix_len())
        .and_then(|builder| builder.pref_source(source))
        .map_err(io::Error::other)?;
    Ok(builder
        .output_interface(index)
        .table_id(route.table)
        .priority(route.metric)
        .scope(RouteScope::Link)
        .protocol(RouteProtocol::Static)
        .build())
}
