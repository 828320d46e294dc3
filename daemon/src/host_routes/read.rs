//! Reads addresses, rules and routes from the kernel. That needs no privilege.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::IpVersion;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use super::{HostRoutes, Kind, MAIN, Route, Stage};
use crate::netlink::{Netlink, run};

/// Priority of the rule that looks up the main table, where nobody changed it.
const MAIN_PRIORITY: u32 = 32766;

/// Names of the host's devices, by their index.
pub(super) type Devices = HashMap<u32, String>;

/// The priority of the first rule that looks up a table, by family and table.
type Tables = HashMap<(u8, u32), u32>;

impl HostRoutes {
    /// Reads all but what belongs to the device of this name.
    pub(crate) async fn read(netlink: &Netlink, except: Option<&str>) -> io::Result<Self> {
        let devices = devices(netlink).await?;
        let own = devices
            .iter()
            .find(|(_, name)| Some(name.as_str()) == except)
            .map(|(index, _)| *index);
        let tables = tables(netlink).await?;
        let mut host = Self {
            addresses: addresses(netlink, own).await?,
            ..Self::default()
        };
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            let messages: Vec<RouteMessage> =
                run(netlink.handle().route().get(filter).execute().try_collect()).await?;
            for message in messages {
                let hops = hops(&message.attributes);
                let is_own = own.is_some() && hops.iter().any(|hop| hop.device == own);
                // A kernel without IPv6 tells IPv4's routes again.
                if is_own || message.header.address_family != family {
                    continue;
                }
                host.add(&message, &hops, &devices, &tables);
            }
        }
        Ok(host)
    }

    fn add(&mut self, message: &RouteMessage, hops: &[Hop], devices: &Devices, tables: &Tables) {
        let (Some(kind), Some(subnet)) = (kind(message.header.kind), subnet(message)) else {
            return;
        };
        let table = find(&message.attributes, table).unwrap_or(message.header.table.into());
        let family = message.header.address_family;
        let stage = stage(tables, family, table);
        let device = hops.first().and_then(|hop| hop.device);
        let route = Route {
            subnet,
            kind,
            gateways: hops.iter().filter_map(|hop| hop.gateway).collect(),
            device: device.and_then(|index| devices.get(&index)).cloned(),
            table,
            stage: stage.unwrap_or(Stage::AfterMain),
            metric: find(&message.attributes, metric).unwrap_or_default(),
        };
        if route.is_default() {
            self.gateways.extend(&route.gateways);
        }
        if stage.is_some() {
            self.routes.push(route);
        }
    }
}

/// Where a route leads.
#[derive(Debug, Default)]
pub(super) struct Hop {
    pub(super) device: Option<u32>,
    gateway: Option<IpAddr>,
}

/// Several where packets are spread over them.
pub(super) fn hops(attributes: &[RouteAttribute]) -> Vec<Hop> {
    let mut hops = vec![Hop {
        device: find(attributes, output),
        gateway: find(attributes, gateway),
    }];
    for attribute in attributes {
        if let RouteAttribute::MultiPath(many) = attribute {
            hops = many
                .iter()
                .map(|hop| Hop {
                    device: Some(hop.interface_index),
                    gateway: find(&hop.attributes, gateway),
                })
                .collect();
        }
    }
    hops
}

fn find<T>(attributes: &[RouteAttribute], read: fn(&RouteAttribute) -> Option<T>) -> Option<T> {
    attributes.iter().find_map(read)
}

fn output(attribute: &RouteAttribute) -> Option<u32> {
    if let RouteAttribute::Oif(index) = attribute {
        Some(*index)
    } else {
        None
    }
}

fn table(attribute: &RouteAttribute) -> Option<u32> {
    if let RouteAttribute::Table(table) = attribute {
        Some(*table)
    } else {
        None
    }
}

fn metric(attribute: &RouteAttribute) -> Option<u32> {
    if let RouteAttribute::Priority(metric) = attribute {
        Some(*metric)
    } else {
        None
    }
}

pub(super) fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    if let RouteAttribute::Gateway(address) = attribute {
        ip(address)
    } else if let RouteAttribute::Via(RouteVia::Inet6(address)) = attribute {
        Some(IpAddr::V6(*address))
    } else {
        None
    }
}

fn destination(attribute: &RouteAttribute) -> Option<IpAddr> {
    if let RouteAttribute::Destination(address) = attribute {
        ip(address)
    } else {
        None
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(address) = address {
        Some(IpAddr::V4(*address))
    } else if let RouteAddress::Inet6(address) = address {
        Some(IpAddr::V6(*address))
    } else {
        None
    }
}

fn subnet(message: &RouteMessage) -> Option<IpNet> {
    let any = if message.header.address_family == AddressFamily::Inet6 {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    };
    let address = find(&message.attributes, destination).unwrap_or(any);
    IpNet::new(address, message.header.destination_prefix_length).ok()
}

/// What packets are not sent by is nothing to us.
pub(super) fn kind(kind: RouteType) -> Option<Kind> {
    const KINDS: [(RouteType, Kind); 6] = [
        (RouteType::Unicast, Kind::Unicast),
        (RouteType::Local, Kind::Local),
        (RouteType::BlackHole, Kind::Closed("blackhole")),
        (RouteType::Unreachable, Kind::Closed("unreachable")),
        (RouteType::Prohibit, Kind::Closed("prohibit")),
        (RouteType::Throw, Kind::Closed("throw")),
    ];
    let found = KINDS.iter().find(|(told, _)| *told == kind);
    found.map(|(_, kind)| *kind)
}

/// When a table is looked up, if ever.
fn stage(tables: &Tables, family: AddressFamily, table: u32) -> Option<Stage> {
    let priority = |table| tables.get(&(family.into(), table)).copied();
    let main = priority(MAIN).unwrap_or(MAIN_PRIORITY);
    if table == MAIN {
        return Some(Stage::Main);
    }
    Some(if priority(table)? < main {
        Stage::BeforeMain
    } else {
        Stage::AfterMain
    })
}

async fn tables(netlink: &Netlink) -> io::Result<Tables> {
    let mut question = netlink.handle().rule().get(IpVersion::V4);
    // Asked for IPv6 alone, a kernel without it answers with an error.
    question.message_mut().header.family = AddressFamily::Unspec;
    let rules: Vec<_> = run(question.execute().try_collect()).await?;
    let mut tables = Tables::new();
    for rule in rules {
        if rule.header.action != RuleAction::ToTable {
            continue;
        }
        let (mut table, mut priority) = (rule.header.table.into(), 0);
        for attribute in &rule.attributes {
            if let RuleAttribute::Table(told) = attribute {
                table = *told;
            } else if let RuleAttribute::Priority(told) = attribute {
                priority = *told;
            }
        }
        if table == MAIN && selects(&rule) {
            continue;
        }
        let first = tables
            .entry((rule.header.family.into(), table))
            .or_insert(priority);
        *first = priority.min(*first);
    }
    Ok(tables)
}

/// Tells whether a rule is for some packets only, as those with the mark that a VPN
/// sets on its own (ip-rule(8)).
fn selects(rule: &RuleMessage) -> bool {
    let header = &rule.header;
    // Packets have the mark 0 as a rule, and come from this host itself.
    let is_usual = |attribute: &RuleAttribute| {
        matches!(attribute, RuleAttribute::FwMark(0))
            || matches!(attribute, RuleAttribute::Iifname(name) if name == "lo")
    };
    let is_selector = |attribute: &RuleAttribute| {
        !matches!(
            attribute,
            RuleAttribute::Priority(_)
                | RuleAttribute::Table(_)
                | RuleAttribute::Protocol(_)
                | RuleAttribute::Realm(_)
                | RuleAttribute::FwMask(_)
                | RuleAttribute::SuppressPrefixLen(_)
                | RuleAttribute::SuppressIfGroup(_)
        ) && !is_usual(attribute)
    };
    // "not" those of a mark is what packets are as a rule.
    !header.flags.contains(RuleFlags::Invert)
        && (header.tos != 0 || rule.attributes.iter().any(is_selector))
}

pub(super) async fn devices(netlink: &Netlink) -> io::Result<Devices> {
    let links: Vec<_> = run(netlink.handle().link().get().execute().try_collect()).await?;
    let mut devices = Devices::new();
    for link in links {
        for attribute in link.attributes {
            if let LinkAttribute::IfName(name) = attribute {
                devices.insert(link.header.index, name);
            }
        }
    }
    Ok(devices)
}

/// The addresses of the host on other devices than its own.
async fn addresses(netlink: &Netlink, own: Option<u32>) -> io::Result<Vec<IpAddr>> {
    let messages: Vec<_> = run(netlink.handle().address().get().execute().try_collect()).await?;
    let mut addresses = Vec::new();
    for message in messages {
        if Some(message.header.index) == own {
            continue;
        }
        let mut address = None;
        for attribute in message.attributes {
            if let AddressAttribute::Local(local) = attribute {
                address = Some(local);
            } else if let AddressAttribute::Address(local_or_peer) = attribute {
                address = address.or(Some(local_or_peer));
            }
        }
        addresses.extend(address);
    }
    Ok(addresses)
}
