//! The lab's network namespaces and the links between them.
//!
//! ```text
//! kvpn-laptop1 ── laptop1 ┐
//!                         kvpn-wire ── node ── kvpn-node ── pods
//! kvpn-laptop2 ── laptop2 ┘
//! ```
//! None has an uplink, so nothing leaves the machine.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::process::namespace_inode;
use crate::Cmd;

pub const NODE: &str = "kvpn-node";
pub const WIRE: &str = "kvpn-wire";

pub const NODE_V4: &str = "10.77.0.1";
pub const NODE_V6: &str = "fd00:77::1";
pub const API_SERVICE_V4: &str = "10.96.0.1";
pub const CLUSTER_DNS_V4: &str = "10.96.0.10";
pub const CLUSTER_DNS_V6: &str = "fd00:96::a";
pub const POD_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:244::/56"];
pub const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:96::/108"];

/// Numbers of the laptops.
pub const LAPTOPS: [u8; 2] = [1, 2];

/// Network namespace of a laptop.
pub fn laptop(number: u8) -> String {
    format!("kvpn-laptop{number}")
}

/// The laptop's own addresses.
pub fn laptop_addresses(number: u8) -> [String; 2] {
    [format!("10.77.{number}.2"), format!("fd00:77:{number}::2")]
}

/// The wire's address in a laptop's network: gateway and name server.
pub fn gateway_v4(number: u8) -> String {
    format!("10.77.{number}.1")
}

/// Every namespace of the lab.
pub fn namespaces() -> Vec<String> {
    let laptops = LAPTOPS.into_iter().map(laptop);
    [NODE, WIRE]
        .into_iter()
        .map(str::to_owned)
        .chain(laptops)
        .collect()
}

/// Where a namespace can be entered.
pub fn file(namespace: &str) -> PathBuf {
    Path::new("/run/netns").join(namespace)
}

/// A program inside a network namespace, seeing the host's files.
pub fn inside(namespace: &str, program: impl AsRef<std::ffi::OsStr>) -> Cmd {
    Cmd::new("nsenter")
        .arg(format!("--net={}", file(namespace).display()))
        .arg(program)
}

/// Inode numbers of those namespaces that exist.
pub(crate) fn inodes() -> Vec<u64> {
    namespaces()
        .iter()
        .filter_map(|name| namespace_inode(&file(name)))
        .collect()
}

/// Makes the namespaces and links, with addresses and routes.
pub(crate) fn create() -> Result<()> {
    for name in namespaces() {
        ip(&["netns", "add", &name])?;
        inside(&name, "sysctl")
            .args(["-qw", "net.ipv6.conf.all.keep_addr_on_down=1"])
            .ok()?;
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
    }
    for name in [NODE, WIRE] {
        let forward = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"];
        inside(name, "sysctl").arg("-qw").args(forward).ok()?;
    }
    link(
        NODE,
        "node",
        [NODE_V4, NODE_V6],
        ["10.77.0.254", "fd00:77::fe"],
    )?;
    for number in LAPTOPS {
        let settings = [
            // The benchmark opens more connections within a minute than there are ports.
            "net.ipv4.tcp_tw_reuse=1",
            // As many distributions have it: replies come from where requests go.
            "net.ipv4.conf.all.rp_filter=1",
            "net.ipv4.conf.default.rp_filter=1",
        ];
        inside(&laptop(number), "sysctl")
            .arg("-qw")
            .args(settings)
            .ok()?;
        let [v4, v6] = laptop_addresses(number);
        let gateways = [gateway_v4(number), format!("fd00:77:{number}::1")];
        let gateways = [gateways[0].as_str(), gateways[1].as_str()];
        link(
            &laptop(number),
            &wire_interface(number),
            [&v4, &v6],
            gateways,
        )?;
    }
    // The wire knows the way, so that its packet filter is what isolates.
    for cidr in POD_CIDRS.iter().chain(&SERVICE_CIDRS) {
        let via = if cidr.contains(':') { NODE_V6 } else { NODE_V4 };
        ip(&["-n", WIRE, "route", "add", cidr, "via", via])?;
    }
    Ok(())
}

/// Has every segment sent as a packet of its own, as on a wire of copper, or lets
/// the kernel pass many of them at once.
pub(crate) fn segment(alone: bool) -> Result<()> {
    let segments = if alone { "1" } else { "65535" };
    for name in LAPTOPS.map(laptop).iter().map(String::as_str).chain([NODE]) {
        ip(&["-n", name, "link", "set", "eth0", "gso_max_segs", segments])?;
    }
    Ok(())
}

/// The wire's interface towards a laptop.
pub(crate) fn wire_interface(number: u8) -> String {
    format!("laptop{number}")
}

/// Removes the namespaces, and with them the links.
pub(crate) fn remove() -> Result<()> {
    for name in namespaces() {
        if file(&name).exists() {
            ip(&["netns", "delete", &name])?;
        }
    }
    Ok(())
}

/// Runs `ip` in the host's namespace.
pub(crate) fn ip(args: &[&str]) -> Result<String> {
    Cmd::new("ip").args(args).ok()
}

/// Joins a namespace's `eth0` to an interface of the wire.
fn link(name: &str, wire_end: &str, own: [&str; 2], gateways: [&str; 2]) -> Result<()> {
    ip(&[
        "link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", wire_end, "netns",
        WIRE,
    ])
    .with_context(|| format!("link {name} to the wire"))?;
    for (namespace, device, [v4, v6]) in [(name, "eth0", own), (WIRE, wire_end, gateways)] {
        let set = |args: &[&str]| ip(&[&["-n", namespace][..], args].concat());
        set(&["address", "add", &format!("{v4}/24"), "dev", device])?;
        set(&[
            "address",
            "add",
            &format!("{v6}/64"),
            "dev",
            device,
            "nodad",
        ])?;
        set(&["link", "set", device, "up"])?;
    }
    let [v4, v6] = gateways;
    ip(&["-n", name, "route", "add", "default", "via", v4])?;
    ip(&["-n", name, "-6", "route", "add", "default", "via", v6])?;
    Ok(())
}
