//! Which way the kernel sends packets for an address.

use std::io;
use std::net::IpAddr;

use futures::TryStreamExt;
use nix::libc::{EACCES, EHOSTUNREACH, EINVAL, ENETUNREACH};
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteMessage, RouteType};

use super::read::{devices, gateway, hops, kind};
use super::{Kind, owner};
use crate::netlink::{Netlink, run};

const NO_ROUTE: &str = "there is no route to it";

/// A way, as `ip route get` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the host itself.
    Local,
    Device {
        name: String,
        gateway: Option<IpAddr>,
        /// Whose the device is, where its name tells.
        owner: Option<&'static str>,
    },
    /// There is none, or a route says so.
    Nowhere(&'static str),
}

/// Tells the way. That needs no privilege.
pub(crate) async fn way(netlink: &Netlink, address: IpAddr) -> io::Result<Way> {
    let route = match ask(netlink, address).await? {
        Ok(route) => route,
        Err(why) => return Ok(Way::Nowhere(why)),
    };
    match kind(route.header.kind) {
        Some(Kind::Unicast) => {}
        Some(Kind::Local) => return Ok(Way::Local),
        Some(Kind::Closed(_)) | None => {
            return Ok(Way::Nowhere("a route of this laptop closes the way"));
        }
    }
    let devices = devices(netlink).await?;
    let hops = hops(&route.attributes);
    let index = hops.first().and_then(|hop| hop.device);
    let name = index.and_then(|index| devices.get(&index).cloned());
    let name = name.unwrap_or_default();
    Ok(Way::Device {
        owner: owner(&name),
        gateway: route.attributes.iter().find_map(gateway),
        name,
    })
}

/// Tells whether packets to the address stay on this host.
pub(crate) async fn is_local(netlink: &Netlink, address: IpAddr) -> io::Result<bool> {
    let route = ask(netlink, address).await?;
    Ok(route.is_ok_and(|route| route.header.kind == RouteType::Local))
}

/// The kernel's route for an address, or why there is none.
async fn ask(netlink: &Netlink, address: IpAddr) -> io::Result<Result<RouteMessage, &'static str>> {
    let length = if address.is_ipv4() { 32 } else { 128 };
    let question = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(address, length)
        .map_err(io::Error::other)?
        .build();
    let mut answers = netlink.handle().route().get(question).execute();
    match run(answers.try_next()).await {
        Ok(Some(route)) => Ok(Ok(route)),
        Ok(None) => Ok(Err(NO_ROUTE)),
        Err(error) => nowhere(error).map(Err),
    }
}

/// How the kernel tells which kind of no route it is (ip-route(8)).
fn nowhere(error: io::Error) -> io::Result<&'static str> {
    match error.raw_os_error() {
        Some(ENETUNREACH) => Ok(NO_ROUTE),
        Some(EHOSTUNREACH) => Ok("an unreachable route of this laptop holds it"),
        Some(EACCES) => Ok("a prohibit route of this laptop holds it"),
        Some(EINVAL) => Ok("a blackhole route of this laptop holds it"),
        Some(_) | None => Err(error),
    }
}
