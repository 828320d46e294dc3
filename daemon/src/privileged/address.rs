//! The device's own addresses.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::route;
use crate::host_routes::way::is_local;
use crate::host_routes::{DeviceRoute, MAIN};
use crate::lease::slot::{Slot, hop};
use crate::netlink::{Netlink, run};

/// Packets that wait for the session; a lost one costs a second.
const QUEUE_LENGTH: u32 = 1000;

/// How long an address may take to become the host's own, and how often that
/// is looked at.
const LOCAL_DEADLINE: Duration = Duration::from_secs(2);
const LOCAL_RETRY: Duration = Duration::from_millis(1);

/// Tells whether the host has IPv6 on this device.
pub(super) fn has_v6(device: &str) -> bool {
    std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"))
        .is_ok_and(|text| text.trim() == "0")
}

/// Brings the slot's device up and gives it its addresses, which are returned.
pub(super) async fn configure(
    netlink: &Netlink,
    slot: Slot,
    index: u32,
) -> io::Result<Vec<IpAddr>> {
    let mut addresses = vec![IpAddr::V4(slot.v4())];
    if has_v6(&slot.device()) {
        addresses.push(IpAddr::V6(slot.v6()));
        // Without a link-local address the kernel sends no packets of its own
        // into the device, such as router solicitations. The device must still
        // be down for that.
        let no_link_local = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let inet6 = AfSpecUnspec::Inet6(vec![no_link_local]);
        let attribute = LinkAttribute::AfSpecUnspec(vec![inet6]);
        set(netlink, link(index).append_extra_attribute(attribute)).await?;
    }
    let queue = LinkAttribute::TxQueueLen(QUEUE_LENGTH);
    let up = link(index)
        .multicast(false)
        .append_extra_attribute(queue)
        .up();
    set(netlink, up).await?;
    for address in &addresses {
        add(netlink, index, *address).await?;
        wait_until_local(netlink, *address).await?;
        match route::add(netlink, index, to_hop(*address), *address).await {
            // The connection works without it, but the host may drop what the first
            // hop says: unreachable, too big, TTL exceeded.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                warn!(hop = %hop(*address), "The host has another route to the first hop, and may not hear its ICMP errors");
            }
            outcome => outcome?,
        }
    }
    Ok(addresses)
}

/// A host that checks where packets come from believes the first hop's answers
/// only when it has a route to it.
fn to_hop(own: IpAddr) -> DeviceRoute {
    DeviceRoute {
        subnet: hop(own).into(),
        table: MAIN,
        metric: 0,
    }
}

/// Waits until packets to the address stay on this host. The kernel sees to
/// that a moment after an IPv6 address was added.
async fn wait_until_local(netlink: &Netlink, address: IpAddr) -> io::Result<()> {
    let deadline = Instant::now() + LOCAL_DEADLINE;
    while !is_local(netlink, address).await? {
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        sleep(LOCAL_RETRY).await;
    }
    Ok(())
}

async fn add(netlink: &Netlink, index: u32, address: IpAddr) -> io::Result<()> {
    let length = if address.is_ipv4() { 32 } else { 128 };
    let mut request = netlink.handle().address().add(index, address, length);
    // Nobody else is on this link, so the address is good at once.
    if address.is_ipv6() {
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    }
    run(request.execute()).await
}

async fn set(netlink: &Netlink, link: LinkMessageBuilder<LinkUnspec>) -> io::Result<()> {
    run(netlink.handle().link().set(link.build()).execute()).await
}

fn link(index: u32) -> LinkMessageBuilder<LinkUnspec> {
    LinkUnspec::new_with_index(index)
}
