//! Which way the kernel sends packets for an address.

use std::io;
use std::net::IpAddr;

use futures::TryStreamExt;
use nix::libc::{EACCES, EHOSTUNREACH, EINVAL, ENETUNREACH};
use rtnetlink::RouteMessageBuilder;

use super::read::{devices, gateway, hops, kind};
use super::{Kind, owner};
use crate::netlink::{Netlink, run};

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

/// Asks the kernel. That needs no privilege.
pub(crate) async fn way(netlink: &Netlink, address: IpAddr) -> io::Result<Way> {
    let length = if address.is_ipv4() { 32 } else { 128 };
    let question = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(address, length)
        .map_err(io::Error::other)?
        .build();
    let mut answers = netlink.handle().route().get(question).execute();
    let route = match run(answers.try_next()).await {
        Ok(Some(route)) => route,
        Ok(None) => return Ok(Way::Nowhere("there is no route to it")),
        Err(error) => return nowhere(error),
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
    let hop = hops.first();
    let index = hop.and_then(|hop| hop.device);
    let name = index.and_then(|index| devices.get(&index).cloned());
    let name = name.unwrap_or_default();
    Ok(Way::Device {
        owner: owner(&name),
        gateway: route.attributes.iter().find_map(gateway),
        name,
    })
}

/// How the kernel tells which kind of no route it is (ip-route(8)).
fn nowhere(error: io::Error) -> io::Result<Way> {
    match error.raw_os_error() {
        Some(ENETUNREACH) => Ok(Way::Nowhere("there is no route to it")),
        Some(EHOSTUNREACH) => Ok(Way::Nowhere("an unreachable route of this laptop holds it")),
        Some(EACCES) => Ok(Way::Nowhere("a prohibit route of this laptop holds it")),
        Some(EINVAL) => Ok(Way::Nowhere("a blackhole route of this laptop holds it")),
        Some(_) | None => Err(error),
    }
}
