//! What a connection may change on a laptop, to compare before and after.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

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
];

const FILES: &[&str] = &["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"];

impl HostState {
    pub(crate) fn capture(laptop: &Laptop) -> Result<Self> {
        let mut parts = BTreeMap::new();
        for (name, command) in COMMANDS {
            let output = laptop.root().run(*command)?.success()?;
            parts.insert(*name, output.stdout);
        }
        for file in FILES {
            let listing = laptop
                .root()
                .run(["stat", "-c", "%F %a %u:%g", file])?
                .success()?;
            let content =
                std::fs::read(laptop.path(file)).with_context(|| format!("read {file}"))?;
            let content = content.escape_ascii();
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
