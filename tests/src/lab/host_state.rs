//! What a connection may change on a laptop, to compare before and after.

use std::collections::BTreeMap;

use anyhow::Result;

use super::laptop::Laptop;

/// A laptop's network settings, as text by what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostState {
    parts: BTreeMap<&'static str, String>,
}

const COMMANDS: &[(&str, &[&str])] = &[
    ("addresses", &["ip", "-d", "address"]),
    (
        "IPv4 routes",
        &["ip", "-4", "route", "show", "table", "all"],
    ),
    (
        "IPv6 routes",
        &["ip", "-6", "route", "show", "table", "all"],
    ),
    ("IPv4 rules", &["ip", "-4", "rule"]),
    ("IPv6 rules", &["ip", "-6", "rule"]),
    ("packet filter", &["nft", "list", "ruleset"]),
    (
        "mounted files",
        &["sh", "-c", "grep ' fuse.kvpn ' /proc/self/mounts || true"],
    ),
];

/// What systemd-resolved was told, where it runs.
const RESOLVED: &[(&str, &[&str])] = &[
    ("name servers of links", &["resolvectl", "dns"]),
    ("domains of links", &["resolvectl", "domain"]),
    ("links for all names", &["resolvectl", "default-route"]),
    ("DNSSEC of links", &["resolvectl", "dnssec"]),
    ("DNS over TLS of links", &["resolvectl", "dnsovertls"]),
    ("LLMNR of links", &["resolvectl", "llmnr"]),
    ("mDNS of links", &["resolvectl", "mdns"]),
];

const FILES: &[&str] = &["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"];

impl HostState {
    pub(crate) fn capture(laptop: &Laptop) -> Result<Self> {
        let mut parts = BTreeMap::new();
        let resolved = laptop.has_resolved().then_some(RESOLVED);
        for (name, command) in COMMANDS.iter().chain(resolved.into_iter().flatten()) {
            let output = laptop.root().run(*command)?.success()?;
            parts.insert(*name, output.stdout);
        }
        for file in FILES {
            let listing = laptop
                .root()
                .run(["stat", "-c", "%N %F %a %u:%g", file])?
                .success()?;
            // At the laptop, where a link leads to the laptop's own file.
            let content = laptop.root().run(["cat", file])?.success()?.stdout;
            let content = content.escape_default();
            parts.insert(file, format!("{}{content}", listing.stdout));
        }
        Ok(Self { parts })
    }

    /// What differs, in words; empty when nothing does.
    pub fn differences(&self, after: &Self) -> Vec<String> {
        let changed = self
            .parts
            .iter()
            .filter(|(name, text)| after.parts.get(*name) != Some(text));
        let describe = |(name, before): (&&'static str, &String)| {
            let after = after.parts.get(*name).map_or("", String::as_str);
            format!("{name} before:\n{before}\n{name} after:\n{after}")
        };
        changed.map(describe).collect()
    }
}
