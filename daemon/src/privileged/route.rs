//! Routes.

use std::io;
use std::net::IpAddr;

use futures::TryStreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol, RouteScope, RouteType};

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

/// Tells whether packets to the address stay on this host.
pub(super) async fn is_local(netlink: &Netlink, address: IpAddr) -> io::Result<bool> {
    let length = if address.is_ipv4() { 32 } else { 128 };
    let question = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(address, length)
        .map_err(io::Error::other)?
        .build();
    let mut answers = netlink.handle().route().get(question).execute();
    match run(answers.try_next()).await {
        Ok(route) => Ok(route.is_some_and(|route| route.header.kind == RouteType::Local)),
        Err(error) if is_no_route(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// How the kernel tells that there is no route, or which kind of none: unreachable,
/// prohibit, blackhole (ip-route(8)).
fn is_no_route(error: &io::Error) -> bool {
    use nix::libc::{EACCES, EHOSTUNREACH, EINVAL, ENETUNREACH};
    let none = [ENETUNREACH, EHOSTUNREACH, EACCES, EINVAL];
    error
        .raw_os_error()
        .is_some_and(|code| none.contains(&code))
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
